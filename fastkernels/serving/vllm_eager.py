"""A window in which a vLLM worker runs its model as Python, and that says which graphs its steps would have run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fastkernels.errors import ServingError
from fastkernels.serving.graphs import Graphs


@contextmanager
def eager_window(worker: Any) -> Iterator[Graphs]:
    """Compiled parts of the model run their own forward, and no graph is replayed, until the end of the window.

    Raises:
        ServingError: graphs are chosen by nothing of the runner that fastkernels knows.
    """
    from vllm.config import CUDAGraphMode

    compilation, runner = worker.vllm_config.compilation_config, worker.model_runner
    told = Graphs(sizes=sorted(compilation.cudagraph_capture_sizes or []))
    compiled = [part for part in worker.get_model().modules() if vars(part).get("do_not_compile") is False]
    chooser, dispatch = getattr(runner, "cudagraph_dispatcher", None), _of_dispatcher
    if chooser is None:  # vLLM's second model runner
        chooser, dispatch = getattr(runner, "cudagraph_manager", None), _of_manager
    if chooser is None and compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        raise ServingError(
            f"capture: this vLLM's {type(runner).__name__} chooses its graphs where fastkernels does not look, and "
            "replays would not be seen. Start the engine with enforce_eager=True."
        )
    for part in compiled:
        part.do_not_compile = True
    if chooser is not None:
        vars(chooser)["dispatch"] = dispatch(chooser, told)
    try:
        yield told
    finally:
        if chooser is not None:
            vars(chooser).pop("dispatch", None)
        for part in compiled:
            part.do_not_compile = False


def _of_dispatcher(dispatcher: Any, told: Graphs) -> Callable[..., tuple[Any, Any]]:
    """``CudagraphDispatcher.dispatch``, which notes its choice and answers that no graph runs."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import BatchDescriptor

    def dispatch(num_tokens: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        mode, descriptor = type(dispatcher).dispatch(dispatcher, num_tokens, *args, **kwargs)
        _note(told, num_tokens, descriptor.num_tokens if mode != CUDAGraphMode.NONE else None)
        return CUDAGraphMode.NONE, BatchDescriptor(num_tokens)

    return dispatch


def _of_manager(manager: Any, told: Graphs) -> Callable[..., Any]:
    """``CudaGraphManager.dispatch`` of the second model runner, likewise."""
    from vllm.config import CUDAGraphMode

    def dispatch(num_reqs: int, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        chosen = type(manager).dispatch(manager, num_reqs, num_tokens, *args, **kwargs)
        _note(told, num_tokens, chosen.num_tokens if chosen.cg_mode != CUDAGraphMode.NONE else None)
        none = {"cg_mode": CUDAGraphMode.NONE, "uniform_token_count": None}
        return replace(chosen, num_tokens=num_tokens, num_reqs=num_reqs, **none)

    return dispatch


def _note(told: Graphs, tokens: int, graph: int | None) -> None:
    if graph is not None:
        told.padded[tokens] = graph
    elif told.sizes:
        told.outside.add(tokens)
