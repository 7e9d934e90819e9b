"""``fastkernels.patch`` on a live ``vllm.LLM``: possible where its model is in this process, and runs as Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from fastkernels.errors import PatchError

BEFORE = "set FASTKERNELS_CANDIDATES in the environment before the engine starts"


@contextmanager
def live_model(engine: Any) -> Iterator[tuple[nn.Module, Callable[[], None]]]:
    """The model of an in-process ``vllm.LLM``, in the context that its modules need around a call outside a step; and
    what is to be called when a patch that was made in it has been undone.

    That forgets keys and values in the engine's caches, as is done here before: later answers would be made from the
    other's. Requests that are under way are computed again.

    Raises:
        PatchError: it is no such engine, its model is in another process, or is compiled or captured.
    """
    name = f"{type(engine).__module__}.{type(engine).__qualname__}"
    if type(engine).__module__.partition(".")[0] != "vllm" or not hasattr(engine, "llm_engine"):
        raise PatchError(
            f"{name}: a live nn.Module is wanted, or a vllm.LLM whose model is in this process. For any other engine, "
            f"{BEFORE}."
        )
    executor = getattr(engine.llm_engine, "model_executor", None)  # there where the engine runs in this process
    worker = getattr(getattr(executor, "driver_worker", None), "worker", None)
    if worker is None or executor.parallel_config.world_size > 1:
        raise PatchError(
            f"{name}: its model is in other processes, which a patch from here does not reach. Start it with "
            f"VLLM_ENABLE_V1_MULTIPROCESSING=0 and one rank, or {BEFORE}."
        )
    config = worker.vllm_config
    mode, graphs = config.compilation_config.mode, config.compilation_config.cudagraph_mode
    if mode or (graphs is not None and graphs.name != "NONE"):
        raise PatchError(
            f"{name}: its model is compiled or captured already (compilation {getattr(mode, 'name', mode)}, CUDA "
            f"graphs {getattr(graphs, 'name', graphs)}): a patch now would change nothing that runs. Start it with "
            f"enforce_eager=True, or {BEFORE}."
        )
    from fastkernels.patches.vllm.context import call_context

    def forget() -> None:
        engine.reset_prefix_cache(reset_running_requests=True)
        engine.llm_engine.reset_encoder_cache()

    forget()
    with call_context(config):
        yield worker.get_model(), forget
