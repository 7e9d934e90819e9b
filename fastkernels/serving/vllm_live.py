"""``fastkernels.patch`` on a live ``vllm.LLM``: possible where its model is in this process, and runs as Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from fastkernels.errors import PatchError
from fastkernels.patches.dispatch import dispatchers

BEFORE = "set FASTKERNELS_CANDIDATES in the environment before the engine starts"


@contextmanager
def live_model(engine: Any) -> Iterator[nn.Module]:
    """The model of an in-process ``vllm.LLM``, in the context that its modules need around a call outside a step.

    Keys and values in the engine's caches are forgotten when a patch is made in it, and again when that is undone:
    later answers would be made from the other's. Requests that are under way are computed again.

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

    model = worker.get_model()
    _forget(engine)
    before = {id(dispatcher) for _, dispatcher in dispatchers(model)}
    with call_context(config):
        yield model
    for _, dispatcher in dispatchers(model):
        if id(dispatcher) not in before:  # of this patch; undoing it retires each of its own
            vars(dispatcher)["retire"] = partial(_retire, dispatcher.retire, engine)
            break


def _retire(retire: Callable[[], None], engine: Any) -> None:
    retire()
    _forget(engine)


def _forget(engine: Any) -> None:
    engine.reset_prefix_cache(reset_running_requests=True)
    engine.llm_engine.reset_encoder_cache()
