"""Codes of CUDA graphs, ranks and serving engines, and of stages that do not end."""

from __future__ import annotations

from fastkernels.evaluation.conflicts.code import Code, loud, silent, warn

CAPTURE_CODES: tuple[Code, ...] = (
    loud("CG_SYNC", "host_sync", "The host waits for the device: not capturable.", "Stay on the device.", "partition"),
    loud(
        "CG_H2D_PAGEABLE",
        "host_sync",
        "A copy from pageable host memory in forward.",
        "Create it on the device, once.",
        "partition",
    ),
    silent(
        "CG_WRONG_STREAM", "streams", "Work on a stream that is not the current one.", "Launch on the current stream."
    ),
    loud("CG_UNJOINED_STREAM", "capture", "A side stream is not joined before the capture ends.", "Wait for it."),
    loud("CG_CAPTURE_ERROR", "capture", "Capturing fails for another reason.", "Read its text.", "partition"),
    loud(
        "CG_CPU_TENSOR",
        "capture",
        "A CPU tensor takes part in forward.",
        "Create it on the inputs' device.",
        "partition",
    ),
    silent("CG_REPLAY", "replay", "A replay differs from eager, for another reason.", "Bisect.", "partition"),
    silent(
        "CG_HOST_VALUE_BAKED",
        "replay",
        "A value read on the host at capture is frozen in the graph.",
        "Keep it in device memory.",
        "partition",
    ),
    silent(
        "CG_ALLOC_IN_POOL", "allocation", "State born in a capture lives in the graph's pool.", "Allocate it before."
    ),
    silent(
        "CG_RNG",
        "rng",
        "A generator of its own, or host randomness, under graphs.",
        "Use the default generator.",
        "partition",
    ),
    loud("CG_JIT_IN_CAPTURE", "autotune", "Compiles or tunes on a cold shape while capturing.", "Warm each bucket."),
    silent(
        "CG_STALE_PTR",
        "workspace",
        "Scratch memory is replaced after a graph recorded its address.",
        "Allocate for the largest bucket, once.",
        "partition",
    ),
    loud(
        "NC_MISMATCH",
        "nccl",
        "The ranks do not call the same collectives in the same order: they wait for each other.",
        "Let nothing that differs between ranks decide about a collective.",
    ),
    loud("NC_ERROR", "nccl", "A collective raises, or never ends, with two ranks.", "Read its text."),
    silent("NC_PARITY", "nccl", "With two ranks the result is wrong.", "Correct the reduction."),
    loud(
        "CG_NCCL_CAPTURE",
        "nccl",
        "A collective cannot be captured and replayed: its communicator is new, or not warm.",
        "Make groups beforehand, and call each collective once outside of a capture.",
    ),
    silent(
        "CG_PINNED_REUSE",
        "workspace",
        "A replay reads page-locked host memory again, which holds something else by then.",
        "Keep the host buffer as long as the graph, unchanged, or keep the value on the device.",
        "partition",
    ),
    warn(
        "CG_DYN_STORM",
        "graph_partition",
        "More than twice the CUDA graphs that the reference needs over several batch sizes.",
        "One operator for the whole call; no addresses or numbers that change from call to call.",
        "partition",
    ),
    loud(
        "CG_PARTITION",
        "graph_partition",
        "Inductor skips CUDA graphs because of this candidate.",
        "Read its text.",
        "partition",
    ),
    silent(
        "VL_SPLIT_OP",
        "vllm",
        "Reads vLLM's forward context inside a captured piece: it keeps what a capture's empty one says.",
        "Add its operator to splitting_ops.",
        "opaque",
    ),
    silent(
        "VL_ERROR",
        "vllm",
        "Fails or differs where vLLM compiles it, piecewise and without guards.",
        "Branch inside the kernel; return one layout for all sizes; keep rows apart.",
        "opaque",
    ),
    silent(
        "SG_ERROR",
        "sglang",
        "Fails or differs in SGLang's graph runner.",
        "Keep rows apart: those that pad a batch are not empty.",
    ),
    loud("CRASH", "any", "The process died: signal or abort.", "Run the stage alone under a debugger."),
    loud("HANG", "any", "The stage did not end within the time limit.", "Look at the line where it stood."),
    loud("UNKNOWN", "any", "The stage itself raised something it does not know.", "Read its text."),
)
