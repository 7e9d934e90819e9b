"""The catalogue of conflict codes: what each means, how bad it is, and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fastkernels.evaluation.conflicts.report import Automatic, Mend, Severity


@dataclass(frozen=True, kw_only=True)
class Code:
    """A stable code. ``silent``: production would raise nothing; ``automatic``: how the library mends it."""

    name: str
    stage: str
    severity: Severity
    silent: bool
    meaning: str
    way_out: str
    automatic: Automatic | None = None

    @property
    def mend(self) -> Mend:
        return Mend(what=self.way_out, automatic=self.automatic)


def _codes() -> list[Code]:
    found: list[Code] = []

    def loud(name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None = None) -> None:
        found.append(_code(name, stage, meaning, way_out, automatic, severity="error", silent=False))

    def silent(name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None = None) -> None:
        found.append(_code(name, stage, meaning, way_out, automatic, severity="error", silent=True))

    def warn(name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None = None) -> None:
        found.append(_code(name, stage, meaning, way_out, automatic, severity="warning", silent=True))

    loud("LOAD_ERROR", "import", "The file does not import, or holds no candidate.", "Repair the import.")
    loud(
        "EAGER_ERROR",
        "eager",
        "forward raises on a call that the task allows.",
        "Handle the call, or declare supports.",
    )
    silent("PARITY", "eager", "Outside the task's accuracy class, or another shape.", "Correct the arithmetic.")
    silent("DT_OUTPUT_DTYPE", "eager", "An output has another dtype than the reference's.", "Cast the output.")
    silent(
        "ND_NONDET", "eager", "Equal calls differ bitwise from run to run.", "Fix the order of sums, or drop the noise."
    )
    silent("ST_HISTORY", "eager", "The result depends on earlier calls.", "Keep no state between calls.")
    silent(
        "MU_UNDECLARED",
        "mutation",
        "An argument is written that the task or the operator's schema does not declare.",
        "Write to a new tensor, or declare the mutation, (a!).",
    )
    silent("AL_INPUT_OUTPUT", "mutation", "An output shares storage with an input or parameter.", "Clone it.", "opaque")
    silent("AL_OUTPUTS_SHARE", "mutation", "Two outputs share memory.", "Give each its own memory.", "opaque")
    silent(
        "AL_PERSISTENT_OUTPUT",
        "mutation",
        "A result is overwritten by a later call.",
        "Allocate the output in each call.",
    )
    silent(
        "ST_STALE_WEIGHT",
        "weights",
        "A changed parameter is not seen: something derived from it was kept.",
        "Derive it in each call, or re-pack into the same storage when the parameter changes.",
    )
    loud(
        "IM_INFERENCE_MODE",
        "inference_mode",
        "Fails or differs under torch.inference_mode.",
        "Do not read version counters; allocate state outside inference mode.",
    )
    silent(
        "CC_STALE_CACHE",
        "cache",
        "What the candidate built and kept on the disk is loaded again after its source has changed.",
        "Put a hash of the source into the name of what is kept, or leave it to a builder that looks at it.",
    )
    loud("FK_MISSING", "fake", "An operator has no fake implementation.", "register_fake.", "opaque")
    loud("FK_SHAPE", "fake", "The fake returns another shape than the kernel.", "Correct the fake.", "opaque")
    loud("FK_STRIDE", "fake", "The fake returns other strides than the kernel.", "Correct the fake.", "opaque")
    silent(
        "FK_DTYPE",
        "fake",
        "The fake returns another dtype than the kernel; Inductor reads garbage.",
        "Correct the fake.",
        "opaque",
    )
    loud("OP_CHECK", "opcheck", "torch.library.opcheck fails for another reason.", "Read its text.", "opaque")
    loud(
        "GB_DATA_DEP",
        "dynamo",
        "Python reads a tensor's value, or a shape depends on one.",
        "Stay on the device: torch.where, masks, static shapes.",
        "opaque",
    )
    loud(
        "GB_SIDE_EFFECT",
        "dynamo",
        "Printing, logging or writing files inside forward.",
        "Take it out of forward.",
        "opaque",
    )
    loud(
        "GB_UNTRACEABLE_CALL",
        "dynamo",
        "A call that Dynamo cannot trace: pybind, ctypes, a loader.",
        "Wrap the call as an operator with a fake.",
        "opaque",
    )
    warn(
        "IN_NOT_EXECUTED",
        "execution",
        "The candidate's own kernel does not run, or not where it is compiled: the reference runs in its place.",
        "Let the exception out; make the kernel an operator, which stands in the graph.",
        "opaque",
    )
    loud(
        "RC_PY_STATE",
        "recompile",
        "Python state changes with every call and invalidates the graph.",
        "No counters or pointer-keyed caches in forward.",
        "opaque",
    )
    loud(
        "DS_SPECIALIZED",
        "dynamic_shapes",
        "A dynamic size is made a constant; each batch size compiles again.",
        "Do not look sizes up in Python.",
        "opaque",
    )
    warn(
        "DS_SHAPE_GUARD",
        "dynamic_shapes",
        "A Python branch on a size: one graph a side, wrong where guards are dropped.",
        "Branch inside the kernel.",
        "opaque",
    )
    silent(
        "NODE_ELIMINATED",
        "aot",
        "An operator vanishes between Dynamo's graph and the compiled one.",
        "Declare what it writes, or register its effect.",
        "opaque",
    )
    loud("CP_ERROR", "inductor", "Compiling or running compiled raises, for no known reason.", "Bisect.", "opaque")
    silent("CP_PARITY", "inductor", "Compiled differs from eager, for no known reason.", "Bisect.", "opaque")
    silent(
        "UP_REINPLACE_CLONE",
        "inductor",
        "Inductor drops the clone before a mutating operator (open upstream bug).",
        "Return a new tensor instead of writing into a clone of another argument.",
        "opaque",
    )
    warn(
        "PF_HIDDEN_COPY",
        "layout",
        "Copies for layout only, of at least an input's size, which the reference does not make.",
        "Read the strides that come, or allocate in the wanted layout.",
    )
    warn(
        "PF_FUSION_LOSS",
        "fusion",
        "Inductor fuses nothing across the candidate's operator: more kernels and bytes than with the reference.",
        "Measure it compiled; a kernel that covers the neighbours, or torch operators that can be fused.",
    )
    warn(
        "FZ_CONST_FOLDED",
        "freezing",
        "An operator reads parameters alone: work in each call, or a stale result where Inductor freezes.",
        "Pack where the parameters are loaded, or let one operator take the input too.",
        "opaque",
    )
    silent(
        "DT_AUTOCAST",
        "autocast",
        "Under autocast the compiled dtype is not the eager one.",
        "Cast the output, or disable autocast in the body.",
        "opaque",
    )
    loud(
        "AG_NO_BACKWARD",
        "backward",
        "Backward raises.",
        "register_autograd, or do not declare training: then the reference's is used.",
    )
    silent("AG_MISSING", "backward", "Gradients that the reference has are missing.", "As AG_NO_BACKWARD.")
    silent(
        "AG_WRONG_GRAD",
        "backward",
        "Gradients differ from the reference's.",
        "Correct the backward, or do not declare training.",
    )
    warn(
        "EX_EXPORT",
        "export",
        "torch.export fails or its program differs, and compiling works.",
        "Read its text.",
        "opaque",
    )
    warn(
        "EX_AOTI",
        "aoti",
        "An operator is defined from Python: a package made ahead of time does not find it in another process.",
        "Define it in C++, in a library that the process loads before the package.",
    )
    warn(
        "NR_NESTED_REGION",
        "nested_region",
        "Fails or differs in a nested compile region that is called twice, and not alone.",
        "Compile flat, or let no operator write to the region's inputs or state.",
    )
    warn(
        "SUB_DTENSOR",
        "dtensor",
        "Does not take distributed tensors, which the reference takes.",
        "Take local tensors by to_local, or register_sharding for the operator.",
    )
    loud("CG_SYNC", "host_sync", "The host waits for the device: not capturable.", "Stay on the device.", "partition")
    loud(
        "CG_H2D_PAGEABLE",
        "host_sync",
        "A copy from pageable host memory in forward.",
        "Create it on the device, once.",
        "partition",
    )
    silent(
        "CG_WRONG_STREAM", "streams", "Work on a stream that is not the current one.", "Launch on the current stream."
    )
    loud("CG_UNJOINED_STREAM", "capture", "A side stream is not joined before the capture ends.", "Wait for it.")
    loud("CG_CAPTURE_ERROR", "capture", "Capturing fails for another reason.", "Read its text.", "partition")
    loud(
        "CG_CPU_TENSOR",
        "capture",
        "A CPU tensor takes part in forward.",
        "Create it on the inputs' device.",
        "partition",
    )
    silent("CG_REPLAY", "replay", "A replay differs from eager, for another reason.", "Bisect.", "partition")
    silent(
        "CG_HOST_VALUE_BAKED",
        "replay",
        "A value read on the host at capture is frozen in the graph.",
        "Keep it in device memory.",
        "partition",
    )
    silent(
        "CG_ALLOC_IN_POOL", "allocation", "State born in a capture lives in the graph's pool.", "Allocate it before."
    )
    silent(
        "CG_RNG",
        "rng",
        "A generator of its own, or host randomness, under graphs.",
        "Use the default generator.",
        "partition",
    )
    loud("CG_JIT_IN_CAPTURE", "autotune", "Compiles or tunes on a cold shape while capturing.", "Warm each bucket.")
    silent(
        "CG_STALE_PTR",
        "workspace",
        "Scratch memory is replaced after a graph recorded its address.",
        "Allocate for the largest bucket, once.",
        "partition",
    )
    loud(
        "NC_MISMATCH",
        "nccl",
        "The ranks do not call the same collectives in the same order: they wait for each other.",
        "Let nothing that differs between ranks decide about a collective.",
    )
    loud("NC_ERROR", "nccl", "A collective raises, or never ends, with two ranks.", "Read its text.")
    silent("NC_PARITY", "nccl", "With two ranks the result is wrong.", "Correct the reduction.")
    loud(
        "CG_NCCL_CAPTURE",
        "nccl",
        "A collective cannot be captured and replayed: its communicator is new, or not warm.",
        "Make groups beforehand, and call each collective once outside of a capture.",
    )
    silent(
        "CG_PINNED_REUSE",
        "workspace",
        "A replay reads page-locked host memory again, which holds something else by then.",
        "Keep the host buffer as long as the graph, unchanged, or keep the value on the device.",
        "partition",
    )
    warn(
        "CG_DYN_STORM",
        "graph_partition",
        "More than twice the CUDA graphs that the reference needs over several batch sizes.",
        "One operator for the whole call; no addresses or numbers that change from call to call.",
        "partition",
    )
    loud(
        "CG_PARTITION",
        "graph_partition",
        "Inductor skips CUDA graphs because of this candidate.",
        "Read its text.",
        "partition",
    )
    silent(
        "VL_SPLIT_OP",
        "vllm",
        "Reads vLLM's forward context inside a captured piece: it keeps what a capture's empty one says.",
        "Add its operator to splitting_ops.",
        "opaque",
    )
    silent(
        "VL_ERROR",
        "vllm",
        "Fails or differs where vLLM compiles it, piecewise and without guards.",
        "Branch inside the kernel; return one layout for all sizes; keep rows apart.",
        "opaque",
    )
    silent(
        "SG_ERROR",
        "sglang",
        "Fails or differs in SGLang's graph runner.",
        "Keep rows apart: those that pad a batch are not empty.",
    )
    loud("CRASH", "any", "The process died: signal or abort.", "Run the stage alone under a debugger.")
    loud("HANG", "any", "The stage did not end within the time limit.", "Look at the line where it stood.")
    loud("UNKNOWN", "any", "The stage itself raised something it does not know.", "Read its text.")
    return found


def _code(
    name: str, stage: str, meaning: str, way_out: str, automatic: Automatic | None, *, severity: Severity, silent: bool
) -> Code:
    return Code(
        name=name, stage=stage, severity=severity, silent=silent, meaning=meaning, way_out=way_out, automatic=automatic
    )


CODES: Mapping[str, Code] = MappingProxyType({c.name: c for c in _codes()})
