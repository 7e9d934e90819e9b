"""Where versions of SGLang keep what a worker's part needs: its ranks, when its model is there, how it runs, the RPC.

Known: 0.5.13, 0.5.17, 0.5.20 and 0.5.23. What lies elsewhere is refused, with the version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fastkernels.errors import ServingError
from fastkernels.patches.sglang.running import runtime_context, setting

WAY_OUT = (
    "Use a version that fastkernels was run with (0.5.13, 0.5.17, 0.5.20, 0.5.23), or unset FASTKERNELS_CANDIDATES and "
    "FASTKERNELS_WATCH."
)
PIECEWISE = "tc_piecewise"  # pieces between attention layers, which Dynamo traces


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One worker among those of its replica of the model, and which replica that is."""

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int

    @property
    def rank(self) -> int:
        """Among all workers of the replica."""
        return self.pp_rank * self.tp_size + self.tp_rank

    @property
    def world_size(self) -> int:
        """Workers of the replica."""
        return self.pp_size * self.tp_size


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How SGLang will run the model: in ``words``, whether Dynamo traces it, whether CUDA graphs replay it."""

    words: str
    compiles: bool
    captures: bool


@dataclass(frozen=True, kw_only=True)
class Seam:
    """The method of ``ModelRunner`` before or after which a model is loaded and wrapped, and nothing allocated yet."""

    method: str
    side: Literal["before", "after"]


def ranks_of(owner: Any) -> Ranks:
    """Ranks of the process of a ``ModelRunner`` that runs a target, or of a ``Scheduler``.

    They are in the owner's ``ps`` (of schedulers always until 0.5.20, of runners in 0.5.17 and 0.5.20), the runner's
    own (0.5.13), or the process's (0.5.23).

    Raises:
        ServingError: they are nowhere there.
    """
    ranks = _read(getattr(owner, "ps", None)) or _read(owner)
    context = runtime_context()
    if ranks is None and context is not None:
        ranks = _read(context.get_parallel())
    if ranks is None:
        raise ServingError(f"SGLang {version()} keeps the ranks of a worker where fastkernels does not look. {WAY_OUT}")
    return ranks


def _read(place: Any) -> Ranks | None:
    try:
        named = {name: getattr(place, name) for name in ("tp_rank", "tp_size", "pp_rank", "pp_size")}
        return Ranks(**named, dp_rank=place.dp_rank or 0)  # None: there are no replicas
    except (AttributeError, RuntimeError, ValueError, AssertionError):  # of the process, where nothing is published
        return None


def workers_of(server_args: Any) -> int:
    """Workers that SGLang's RPC reaches.

    Raises:
        ServingError: replicas, of the model or of its attention, of which it reaches one; or, in 0.5.13, stages, of
            which each would wait for the next before it passes the request on.
    """
    for name in ("dp_size", "attn_dp_size"):  # the latter since 0.5.23
        if (getattr(server_args, name, None) or 1) > 1:
            raise ServingError(
                f"{name}={getattr(server_args, name)}: SGLang's RPC reaches one of its schedulers only. Read the "
                "reports in FASTKERNELS_REPORT_DIR, which each worker writes when it starts."
            )
    stages = server_args.pp_size or 1
    if stages > 1 and runtime_context() is None:
        raise ServingError(
            f"pp_size={stages}: the RPC of SGLang {version()} stops an engine of several stages. Read the reports in "
            "FASTKERNELS_REPORT_DIR, which each worker writes when it starts."
        )
    return (server_args.tp_size or 1) * stages


def seam_of(runner: type) -> Seam:
    """Where a model can be patched: its weights are loaded, and LoRA's and torch's wrappers around its modules.

    In 0.5.13 one method does that, and then allocates and captures.

    Args:
        runner: the class ``ModelRunner``.

    Raises:
        ServingError: this version has neither place.
    """
    if hasattr(runner, "initialize") and hasattr(runner, "alloc_memory_pool"):
        return Seam(method="initialize", side="after")
    if hasattr(runner, "init_memory_pool"):
        return Seam(method="init_memory_pool", side="before")
    raise ServingError(
        f"SGLang {version()} has no {runner.__name__}.alloc_memory_pool and no .init_memory_pool, before which "
        f"candidates would be put in. {WAY_OUT}"
    )


def mode_of(runner: Any) -> Mode:
    """How this process's published configuration runs the model of a ``ModelRunner``.

    Raises:
        ServingError: this version says it elsewhere.
    """
    try:
        compiled, graphs = (_mode_of_arguments if runtime_context() is None else _mode_of_context)()
    except (ImportError, AttributeError) as error:
        raise ServingError(
            f"SGLang {version()} tells where fastkernels does not look whether it captures graphs ({error}). {WAY_OUT}"
        ) from error
    if runner.device == "cpu":
        graphs = {}
    words = [f"{phase} {backend} CUDA graphs" for phase, backend in graphs.items()]
    return Mode(
        words=", ".join([*words, *(["torch.compile"] if compiled else [])]) or "eager",
        compiles=compiled or PIECEWISE in graphs.values(),
        captures=bool(graphs),
    )


def _mode_of_context() -> tuple[bool, dict[str, str]]:
    from sglang.srt.runtime_context import get_exec, get_flags

    config = get_exec().graph.cuda_graph_config
    graphs = {phase: getattr(config, phase).backend for phase in ("prefill", "decode")}
    graphs = {phase: backend for phase, backend in graphs.items() if backend != "disabled"}
    return bool(get_flags().capture.enable_torch_compile), graphs


def _mode_of_arguments() -> tuple[bool, dict[str, str]]:
    pieces = "breakable" if setting("enable_breakable_cuda_graph") else PIECEWISE
    graphs = {} if setting("disable_piecewise_cuda_graph") else {"prefill": pieces}
    graphs |= {} if setting("disable_cuda_graph") else {"decode": "full"}
    return bool(setting("enable_torch_compile")), graphs


def send(socket: Any, request: Any) -> None:
    """Sends a request of SGLang's RPC as its schedulers read it: since 0.5.17 packed, before that pickled."""
    from sglang.srt.managers import io_struct

    if hasattr(io_struct, "sock_send"):
        io_struct.sock_send(socket, request)
    else:
        socket.send_pyobj(request)


def version() -> str:
    """That of the SGLang in this process."""
    import sglang

    return str(sglang.__version__)
