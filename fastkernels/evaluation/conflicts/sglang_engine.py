"""SGLang as far as the sglang stage uses it: its graph runners around one module.

What differs between SGLang's versions and platforms is here and nowhere else (seen: 0.5.20 on CPU; 0.5.17 read)."""

from __future__ import annotations

import contextlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.conflicts.served import cache_folder
from fastkernels.evaluation.conflicts.skip import Skip, need_engine

RUNTIME = "sglang.srt"
# Autotuning matrix products says nothing about a candidate and takes minutes.
ENVIRONMENT = {"SGLANG_TORCH_COMPILE_MODE": "default", "HF_HUB_OFFLINE": "1"}
Tensors = Sequence[torch.Tensor]


class Runner(ABC):
    """Runs a module in graphs of fixed sizes, captured from the largest down into one pool."""

    @abstractmethod
    def capture(self, size: int, inputs: Tensors) -> None:
        """Captures the module for ``size`` rows at the addresses of ``inputs``."""

    @abstractmethod
    def replay(self, size: int, inputs: Tensors) -> Any:
        """The outputs of the graph of ``size`` rows for the contents of ``inputs``."""


def runners_of(device: torch.device) -> dict[str, Callable[[nn.Module, Sequence[int], Sequence[str]], Runner]]:
    """What SGLang offers on ``device``: by name, a function of a module, the sizes, and its arguments with rows.

    Raises:
        Skip: SGLang is not installed, or does not import.
    """
    need_engine("sglang")
    os.environ.update(ENVIRONMENT | {"SGLANG_CACHE_DIR": str(cache_folder("sglang"))})
    if device.type == "cpu":
        os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
        module = _module("model_executor.cpu_graph_runner")
        return {"CPU graph runner": lambda model, *_: Compiled(model, module)}
    full = _module("model_executor.runner_backend.full_cuda_graph_backend")
    compiling = _module("compilation.torch_compile_decoration")
    return {
        "full graphs": lambda model, *_: Full(model, full),
        "full graphs, compiled": lambda model, *_: Full(model, full, compiling),
        "piecewise graphs": Piecewise,
    }


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"{RUNTIME}.{name}")
    except (ImportError, NotImplementedError, AttributeError, OSError, RuntimeError) as error:
        raise Skip(f"sglang does not import here: {error}") from error


def _alone() -> Any:
    """A group of one process, in as far as the runners ask for one."""
    return SimpleNamespace(ca_comm=None, barrier=lambda: None)


class Compiled(Runner):
    """The CPU graph runner: no graphs, a static compilation for each size, with constants folded."""

    def __init__(self, model: nn.Module, module: Any) -> None:
        self.model, self.module = model, module
        self.graphs: dict[int, Callable[..., Any]] = {}
        module.set_torch_compile_config()

    def capture(self, size: int, inputs: Tensors) -> None:
        with self.module.patch_model(self.model, True, num_tokens=size, tp_group=_alone()) as forward:
            self.model.forward(*inputs)
            for _ in range(2):
                forward(*inputs)
            self.graphs[size] = forward

    def replay(self, size: int, inputs: Tensors) -> Any:
        return self.graphs[size](*inputs)


class Full(Runner):
    """Decoding: the whole forward in one CUDA graph a size; with ``compiling``, compiled for that size before."""

    def __init__(self, model: nn.Module, module: Any, compiling: Any = None) -> None:
        self.model, self.compiling = model, compiling
        runner = SimpleNamespace(device_module=torch.cuda, model_runner=SimpleNamespace(tp_group=_alone()))
        self.backend = module.FullCudaGraphBackend(runner)
        self.backend._pool = torch.cuda.graph_pool_handle()  # its own would be the scheduler's, and there is none
        self.stream = torch.cuda.Stream()
        if compiling is not None:
            compiling.set_torch_compile_config()

    def capture(self, size: int, inputs: Tensors) -> None:
        compiles = self.compiling is not None
        patched = (
            self.compiling.patch_model(self.model, True, num_tokens=size, tp_group=_alone())
            if compiles
            else contextlib.nullcontext(self.model.forward)
        )
        self.stream.wait_stream(torch.cuda.current_stream())
        with patched as forward, torch.cuda.stream(self.stream), self.backend.capture_session(self.stream):
            self.backend.capture_one(size, lambda: forward(*inputs))
        torch.cuda.current_stream().wait_stream(self.stream)

    def replay(self, size: int, inputs: Tensors) -> Any:
        outputs = self.backend.replay(size, None)
        torch.cuda.synchronize()
        return outputs


class Piecewise(Runner):
    """Prefills, where it is asked for: Dynamo's graph split at the attention, each piece in a CUDA graph."""

    def __init__(self, model: nn.Module, sizes: Sequence[int], dynamic: Sequence[str]) -> None:
        compilation = _module("compilation.compilation_config")
        self.phase = _module("compilation.compile_phase")
        self.graph = _module("model_executor.runner_backend_utils.tc_piecewise_cuda_graph")
        if not torch.distributed.is_initialized():
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        config = compilation.CompilationConfig(list(sizes))
        for name in ("attention", "attention.default"):
            config.add_split_op(f"fastkernels_conflicts.{name}")
        self.model, self.stream, self.warm = model, torch.cuda.Stream(), False
        _module("compilation.compile").install_torch_compiled(
            model,
            dynamic_arg_dims=dict.fromkeys(dynamic, 0),
            compile_config=config,
            graph_pool=torch.cuda.graph_pool_handle(),
        )

    def capture(self, size: int, inputs: Tensors) -> None:
        with self.graph.enable_tc_piecewise_cuda_graph():
            with self.phase.enable_torch_compile_warmup():
                self.model(*inputs)
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream), self.phase.set_pcg_capture_stream(self.stream):
                for _ in range(2):  # the first of them warms up
                    self.model(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)

    def replay(self, size: int, inputs: Tensors) -> Any:
        with self.graph.enable_tc_piecewise_cuda_graph(), self.phase.set_pcg_capture_stream(self.stream):
            outputs = self.model(*inputs)
        torch.cuda.synchronize()
        return outputs
