"""vLLM as far as the vllm stage uses it: its compilation of one module, and the context of a step.

What differs between vLLM's versions and platforms is here and nowhere else (seen: 0.26 on CUDA, 0.30 on CPU)."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastkernels.evaluation.conflicts.served import cache_folder
from fastkernels.evaluation.conflicts.skip import need_engine

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB: without it vLLM plans for most of the machine's memory
    "HF_HUB_OFFLINE": "1",
}
COLLECTIVE = ("enable_sp", "fuse_gemm_comms", "fuse_allreduce_rms")  # passes that need a group of processes
OPERATORS = re.compile(r"torch\.ops\.(_C)\.(\w+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """A step as attention sees it: ``num_actual_tokens`` requests of one token each, without padding."""

    num_actual_tokens: int
    num_reqs: int
    max_query_len: int
    max_seq_len: int
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    slot_mapping: torch.Tensor
    block_table: torch.Tensor

    @classmethod
    def of(cls, rows: int, device: torch.device) -> Metadata:
        count = torch.arange(rows + 1, dtype=torch.int32, device=device)
        return cls(
            num_actual_tokens=rows,
            num_reqs=rows,
            max_query_len=1,
            max_seq_len=1,
            query_start_loc=count,
            seq_lens=torch.ones_like(count[1:]),
            slot_mapping=count[:-1].long(),
            block_table=count[:-1, None],
        )


class ByLayer(dict[str, Metadata]):
    """The same metadata for a layer of any name: a candidate does not know ours."""

    def __init__(self, metadata: Metadata) -> None:
        super().__init__(layer=metadata)

    def __missing__(self, _: str) -> Metadata:
        return self["layer"]


class Engine:
    """vLLM in this process; its cache in ``root``, else in a new folder under Inductor's.

    Raises (on construction):
        Skip: vLLM is not installed, or does not import.
    """

    def __init__(self, device: torch.device, *, root: Path | None = None) -> None:
        need_engine("vllm")
        os.environ.update(ENVIRONMENT | {"VLLM_CACHE_ROOT": str(root or cache_folder("vllm"))})
        self.device = device
        self.config = importlib.import_module("vllm.config")
        self.decorators = importlib.import_module("vllm.compilation.decorators")
        self.forward_context = importlib.import_module("vllm.forward_context")
        importlib.import_module("vllm.platforms").current_platform.import_kernels()
        if device.type == "cpu":
            _declare_cuda_operators()

    def configured(self, *, splitting: Sequence[str], key: str, rows: int) -> Any:
        """A VllmConfig that compiles piecewise, for at most ``rows`` rows.

        ``key`` reaches vLLM's cache key as ``additional_config``: an operator's body is not traced, so vLLM knows
        neither its source nor its changes.
        """
        modes, graphs = self.config.CompilationMode, self.config.CUDAGraphMode
        wanted = {
            "mode": modes.VLLM_COMPILE,
            "backend": "inductor",
            "splitting_ops": list(splitting),
            "cudagraph_mode": graphs.PIECEWISE if self.device.type == "cuda" else graphs.NONE,
        }
        made = self.config.VllmConfig(
            compilation_config=self.config.CompilationConfig(**wanted), additional_config={"fastkernels": key}
        )
        compilation = made.compilation_config
        # Platforms and defaults rewrite these: CPU turns piecewise compilation into a plain one.
        for name, value in (wanted | {"compile_sizes": []}).items():
            setattr(compilation, name, value)
        if rows > made.scheduler_config.max_num_batched_tokens:
            made.scheduler_config.max_num_batched_tokens = rows
            for ends in ("compile_ranges_endpoints", "compile_ranges_split_points"):
                if getattr(compilation, ends, None):
                    setattr(compilation, ends, [rows])
        passes = compilation.pass_config
        for field in dataclasses.fields(passes):
            if field.name in COLLECTIVE or (self.device.type == "cpu" and getattr(passes, field.name) is True):
                setattr(passes, field.name, False)  # no group of processes; vLLM has no passes for CPU
        return made

    def compiled(self, host: type[nn.Module], config: Any, *, dynamic: Sequence[str], **state: Any) -> nn.Module:
        """``host(**state)``, to be compiled by vLLM at its first call; ``dynamic`` names arguments with rows first."""
        own = type(host.__name__, (host,), {"__init__": _plain(host), "forward": host.forward})
        decorated = self.decorators.support_torch_compile(dynamic_arg_dims=dict.fromkeys(dynamic, 0))(own)
        with self.config.set_current_vllm_config(config):
            return decorated(vllm_config=config, **state)

    @contextlib.contextmanager
    def step(self, config: Any, metadata: Metadata | None, *, graph: int | None = None) -> Iterator[None]:
        """The forward context of a step. Without metadata: a profiling run, or a capture. ``graph``: padded rows of
        the CUDA graphs to capture or to replay; None for none."""
        mode = self.config.CUDAGraphMode.NONE if graph is None else self.config.CUDAGraphMode.PIECEWISE
        described = None if graph is None else self.forward_context.BatchDescriptor(num_tokens=graph)
        slots = {} if metadata is None else {"layer": metadata.slot_mapping}
        with self.forward_context.set_forward_context(
            None if metadata is None else ByLayer(metadata),
            config,
            num_tokens=graph,
            cudagraph_runtime_mode=mode,
            batch_descriptor=described,
            slot_mapping=slots,
        ):
            yield

    def metadata(self) -> Metadata | None:
        """The metadata of the step that runs now."""
        if not self.forward_context.is_forward_context_available():
            return None
        by_layer = self.forward_context.get_forward_context().attn_metadata
        return None if by_layer is None else by_layer["layer"]

    def from_cache(self, module: nn.Module) -> bool:
        """Whether a compiled module was loaded from vLLM's cache."""
        return bool(getattr(module, "was_aot_compile_fn_loaded_from_disk", False))


def _plain(host: type[nn.Module]) -> Any:
    """An ``__init__`` of its own for a subclass: vLLM replaces it in the class that it decorates."""

    def __init__(self: nn.Module, **state: Any) -> None:
        host.__init__(self, **state)

    return __init__


def _declare_cuda_operators() -> None:
    """vLLM's last pass names CUDA operators when it meets a mutating one; a CPU build lacks some of them."""
    passes = importlib.import_module("vllm.compilation.passes.utility.fix_functionalization")
    library = torch.library.Library("_C", "FRAGMENT")
    for namespace, name in set(OPERATORS.findall(inspect.getsource(passes))):
        if not hasattr(getattr(torch.ops, namespace), name):
            library.define(f"{name}() -> ()")
    _kept.append(library)


_kept: list[torch.library.Library] = []  # a library takes its operators along when it goes
