"""What a candidate must leave as it is: functions that time and synchronise, torch's flags, modules, threads."""

from __future__ import annotations

import builtins
import gc
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

WATCHED_MODULES = (
    "builtins", "time", "gc", "itertools", "pickle", "json", "socket", "struct", "mmap", "ctypes", "torch", "torch._C",
    "torch.cuda", "torch.cuda.streams", "torch.nn.functional", "torch.nn.modules.module", "torch.autograd",
    "torch.utils._pytree",
    "torch._tensor", "torch.functional", "torch.profiler", "torch._dynamo", "triton", "triton.testing",
    "triton.language", "triton.runtime.jit", "numpy",
)  # fmt: skip
WATCHED_PREFIXES = ("fastkernels.evaluation.bench", "fastkernels.tasks", "fastkernels.runtime")
WATCHED_CLASSES = (
    torch.Tensor, torch.nn.Module, torch.nn.Parameter, torch.Generator, torch.cuda.Event, torch.cuda.Stream,
    threading.Thread,
)  # fmt: skip
LIBRARY = str(Path(torch.__file__).parent)
ROOTS = ("torch", "triton", "fastkernels", "numpy", "builtins", "time", "sys", "gc", "json", "pickle", "socket")

SIGNALS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


FLAGS: Mapping[str, Callable[[], Any]] = {
    "float32 matmul precision": lambda: torch.get_float32_matmul_precision(),
    "cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
    "cuda.matmul.allow_fp16_reduced_precision": lambda: (
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    ),
    "cuda.matmul.allow_bf16_reduced_precision": lambda: (
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    ),
    "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    "cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
    "cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
    "deterministic algorithms": lambda: torch.are_deterministic_algorithms_enabled(),
    "default dtype": lambda: torch.get_default_dtype(),
    "default device": lambda: torch.get_default_device(),
    "number of threads": lambda: torch.get_num_threads(),
    "gradients": lambda: torch.is_grad_enabled(),
    "denormals": lambda: float(torch.tensor([1e-40]).mul_(1.0)),
    "trace function": lambda: sys.gettrace(),
    "profile function": lambda: sys.getprofile(),
    "garbage collection": lambda: gc.isenabled(),
    "gc callbacks": lambda: len(gc.callbacks),
    "dispatch modes": lambda: torch._C._len_torch_dispatch_stack(),
    "function modes": lambda: torch._C._len_torch_function_stack(),
    "import hooks": lambda: tuple(map(id, sys.meta_path)),
    "global forward hooks": lambda: (
        len(torch.nn.modules.module._global_forward_hooks) + len(torch.nn.modules.module._global_forward_pre_hooks)
    ),
    "signal handlers": lambda: tuple(signal.getsignal(number) for number in SIGNALS),
    "interval timers": lambda: tuple(signal.getitimer(which)[1] for which in TIMERS),
    "clock": lambda: time.get_clock_info("perf_counter").resolution,
}


def _flags() -> dict[str, Any]:
    """Each flag's value, or what asking for it raises."""
    found: dict[str, Any] = {}
    for name, read in FLAGS.items():
        try:
            found[name] = read()
        except RuntimeError as error:
            found[name] = f"raises {error}"[:200]
    return found


def _torchs(value: Any) -> bool:
    """Whether a function is torch's own: its compiler replaces some of torch's functions when it starts."""
    code = getattr(value, "__code__", None)
    return code is not None and code.co_filename.startswith(LIBRARY)


def _callables(owner: Any) -> dict[str, Any]:
    """Functions, classes and modules by name: what a name that changes hands can be used to cheat with."""
    kinds = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type, staticmethod, classmethod, property,
             types.MethodDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)  # fmt: skip
    return {name: value for name, value in list(vars(owner).items()) if isinstance(value, kinds)}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The process before the candidate's import. Values are kept, not their ids: nothing can take their place."""

    names: dict[str, tuple[Any, dict[str, Any]]]
    code: dict[str, tuple[types.FunctionType, types.CodeType]]
    modules: dict[str, types.ModuleType]
    flags: dict[str, Any]
    builtins: dict[str, Any]
    threads: int

    @classmethod
    def take(cls) -> Self:
        """Notes down everything that ``differences`` compares."""
        loaded = {n: m for n, m in list(sys.modules.items()) if isinstance(m, types.ModuleType)}
        watched = [n for n in loaded if n in WATCHED_MODULES or n.startswith(WATCHED_PREFIXES)]
        owners: dict[str, Any] = {n: loaded[n] for n in watched}
        owners |= {f"{c.__module__}.{c.__name__}": c for c in WATCHED_CLASSES}
        for name in watched:
            if name.startswith("fastkernels"):
                own = [v for v in vars(loaded[name]).values() if isinstance(v, type) and v.__module__ == name]
                owners |= {f"{name}.{c.__name__}": c for c in own}
        names = {n: (o, _callables(o)) for n, o in owners.items()}
        functions = {
            f"{n}.{f}": v for n, (_, found) in names.items() for f, v in found.items()
            if isinstance(v, types.FunctionType)
        }  # fmt: skip
        return cls(
            names=names,
            code={n: (f, f.__code__) for n, f in functions.items()},
            modules={n: m for n, m in loaded.items() if n.partition(".")[0] in ROOTS},
            flags=_flags(),
            builtins=dict(vars(builtins)),
            threads=threading.active_count(),
        )

    def differences(self) -> list[str]:
        """What has changed since, one line each."""
        found = [
            f"{owner}.{name} was replaced"
            for owner, (holder, then) in self.names.items()
            for name, value in then.items()
            if vars(holder).get(name) is not value and not _torchs(vars(holder).get(name))
        ]
        found += [f"the code of {name} was replaced" for name, (f, code) in self.code.items() if f.__code__ is not code]
        found += [f"sys.modules[{n!r}] was replaced" for n, m in self.modules.items() if sys.modules.get(n) is not m]
        now = _flags()
        found += [f"{name}: {then}, now {now[name]}" for name, then in self.flags.items() if now[name] != then]
        found += [
            f"builtins.{name} was replaced" for name, value in self.builtins.items()
            if vars(builtins).get(name) is not value and name != "_"
        ]  # fmt: skip
        if threading.active_count() > self.threads:
            names = [t.name for t in threading.enumerate()[self.threads :]]
            found.append(f"threads that outlive the call: {', '.join(names)}")
        return found
