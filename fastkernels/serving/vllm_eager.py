"""A window in which a vLLM worker runs its model as Python, and that says which graphs its steps would have run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastkernels.errors import ServingError
from fastkernels.serving.graphs import Graphs


@contextmanager
def eager_window(worker: Any) -> Iterator[Graphs]:
    """Compiled parts of the model run their own forward, and no graph is replayed, until the end of the window.

    Raises:
        ServingError: graphs are chosen elsewhere than by the runner's dispatcher.
    """
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import BatchDescriptor

    compilation = worker.vllm_config.compilation_config
    told = Graphs(sizes=sorted(compilation.cudagraph_capture_sizes or []))
    compiled = [part for part in worker.get_model().modules() if vars(part).get("do_not_compile") is False]
    dispatcher = getattr(worker.model_runner, "cudagraph_dispatcher", None)
    if dispatcher is None and compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        raise ServingError(
            "capture: this vLLM chooses its graphs where fastkernels does not look, and replays would not be seen. "
            "Start the engine with enforce_eager=True."
        )

    def dispatch(num_tokens: int, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        mode, descriptor = type(dispatcher).dispatch(dispatcher, num_tokens, *args, **kwargs)
        if mode != CUDAGraphMode.NONE:
            told.padded[num_tokens] = descriptor.num_tokens
        elif told.sizes:
            told.outside.add(num_tokens)
        return CUDAGraphMode.NONE, BatchDescriptor(num_tokens)

    for part in compiled:
        part.do_not_compile = True
    if dispatcher is not None:
        vars(dispatcher)["dispatch"] = dispatch
    try:
        yield told
    finally:
        if dispatcher is not None:
            vars(dispatcher).pop("dispatch", None)
        for part in compiled:
            part.do_not_compile = False
