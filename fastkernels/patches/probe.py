"""The numerical probe: a module is a site of a task only if it and the task's reference agree on random inputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fastkernels.patches.build import bound_reference
from fastkernels.patches.dispatch import dispatchers
from fastkernels.patches.site import Draws, ProbeRefusal, Proposal, Scenario
from fastkernels.patches.source import device_of
from fastkernels.runtime.launch import start_compiler
from fastkernels.tasks.accuracy import Error, measure, worst

# Two float32 evaluation orders of one layer differ by about 1e-6; another variant of the task by 1e-2 and more.
FLOAT32_TOLERANCE = 5e-5
BLOCK = 1_000_003  # prime, so that repeating a block of random numbers never lines up with a row

# What a wrong reading of a module may raise when its reference runs on the module's own inputs.
WRONG_READING = (
    ProbeRefusal,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    NameError,
    NotImplementedError,
    AssertionError,
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Index of the proposal that the numbers support, or None; ``error`` says by how much, or why not."""

    index: int | None
    error: str


def random_clone(module: nn.Module, *, device: torch.device, seed: int = 0) -> nn.Module:
    """A float32 copy of ``module`` with random weights of a size that keeps every part of it audible.

    Matrices are scaled by fan-in, vectors (norm weights, biases) are spread around 1 and 0, buffers that hold
    nothing but zeros are filled: a zero bias would hide that it is there.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    block = torch.randn(BLOCK, generator=generator, device=device)
    memo: dict[int, object] = {}

    def values(shape: torch.Size) -> torch.Tensor:
        count = math.prod(shape)
        start = int(torch.randint(BLOCK, (1,), generator=generator, device=device))
        return block.roll(start).repeat(count // BLOCK + 1)[:count].view(shape)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or id(parameter) in memo:
                continue
            if not parameter.is_floating_point():
                fresh = nn.Parameter(parameter.detach().to(device), requires_grad=False)
            elif parameter.dim() >= 2:
                fresh = nn.Parameter(values(parameter.shape) / max(parameter.shape[-1], 1) ** 0.5, requires_grad=False)
            else:
                centre = 1.0 if name.startswith("weight") else 0.0
                fresh = nn.Parameter(values(parameter.shape) * 0.3 + centre, requires_grad=False)
            memo[id(parameter)] = fresh
        for buffer in part._buffers.values():
            if buffer is None or id(buffer) in memo:
                continue
            moved = (
                torch.zeros(buffer.shape, device=device, dtype=buffer.dtype) if buffer.is_meta else buffer.to(device)
            )
            if buffer.is_floating_point():
                moved = moved.float()
                if not bool(moved.any()):
                    moved = values(buffer.shape) * 0.1
            memo[id(buffer)] = moved
        config = part.__dict__.get("config")
        if config is not None:
            memo[id(config)] = config
    memo |= {id(part.__dict__["forward"]): None for part in module.modules() if "forward" in part.__dict__}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    memo |= {id(h): type(h)() for part in module.modules() for n in hooks if (h := part.__dict__.get(n)) is not None}
    clone = copy.deepcopy(module, memo)
    for part in clone.modules():
        part.__dict__.pop("forward", None)
    return clone.eval()


def decide(module: nn.Module, proposals: list[Proposal], repropose: Callable[[nn.Module], list[Proposal]]) -> Verdict:
    """Which of the proposals the module's own numbers support; the closest one where several do.

    ``repropose`` reads the clone as the module was read (a proposal's closures belong to one module).
    """
    live = all(p.on_live_weights for p in proposals) and not any(p.is_meta for p in module.parameters())
    told = proposals[0].runs_on
    device = device_of(module) if told is None else told[0]
    device = torch.device("cpu") if device.type == "meta" else device
    start_compiler(device)  # what stands here is verified soon, and this takes as long as all probes
    if live:
        subject, readings = module, proposals
    else:
        # One stand-in serves all readings: they are of the same module.
        small = module if proposals[0].stand_in is None else proposals[0].stand_in(module)
        subject = random_clone(small, device=device)
        readings = repropose(subject)
    if len(readings) != len(proposals):
        return Verdict(index=None, error="a clone of it reads differently")
    dtype = next((p.dtype for p in subject.parameters() if p.is_floating_point()), torch.float32)
    dtype = told[1] if told is not None and live else dtype
    with quiet(subject):
        results = [_distance(subject, p, device, dtype) for p in readings]
        limit = FLOAT32_TOLERANCE if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
        close = [i for i, (d, _) in enumerate(results) if d <= limit]
        if len(close) > 1 and not live:
            # Variants that differ only in where they round: bfloat16 tells them apart.
            half = subject.to(torch.bfloat16)
            rounded = {i: _distance(half, p, device, torch.bfloat16)[0] for i, p in enumerate(repropose(half))}
            close.sort(key=lambda i: (rounded[i], results[i][0]))
    if not close:
        distance, why = min(results, key=lambda r: r[0])
        return Verdict(index=None, error=why or f"off by {distance:.1e} (tolerance {limit:.0e})")
    return Verdict(index=close[0], error=f"{results[close[0]][0]:.1e}")


def _distance(subject: nn.Module, proposal: Proposal, device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    try:
        reference = bound_reference(subject, proposal, dtype=dtype)
        draws = Draws(seed=7, device=device, dtype=dtype, site_dtype=dtype)
        errors: list[Error] = []
        for scenario in proposal.scenarios(draws):
            want = scenario(proposal.original(subject))
            errors += compare(scenario, proposal.as_forward(reference.forward), want)
            if errors and errors[-1].l2 == float("inf"):
                return float("inf"), "other shapes or values that are not finite"
    except WRONG_READING as error:
        return float("inf"), f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if not errors:
        return float("inf"), "the adapter gave no probe input"
    return worst(errors).l2, ""


def compare(scenario: Scenario, forward: Callable[..., object], want: list[torch.Tensor]) -> list[Error]:
    """Errors of what ``scenario`` yields through ``forward`` against the tensors ``want``."""
    got = scenario(forward)
    if len(got) != len(want):
        return [Error(l2=float("inf"), peak=float("inf"))]
    return [measure(g, w) for g, w in zip(got, want, strict=True)]


@contextmanager
def quiet(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; random state and the counters of earlier patches as they were afterwards.

    Without cuDNN's attention, which plans each new shape for 0.1 s and more: no shape of a probe comes again. For a
    module on a GPU the CPU only draws inputs, which one thread does in less time than many take to meet.
    """
    modes = [(part, part.training) for part in module.modules()]
    counters = [(d, d.calls, d.bypassed.copy()) for _, d in dispatchers(module)]
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    threads = torch.get_num_threads()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast("cpu", enabled=False), full_float32():
        try:
            torch.backends.cuda.enable_cudnn_sdp(False)
            if device_of(module).type == "cuda":
                torch.set_num_threads(1)
            for part, _ in modes:
                part.training = False
            yield
        finally:
            torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
            if torch.get_num_threads() != threads:  # vLLM warns of every call
                torch.set_num_threads(threads)
            for part, mode in modes:
                part.training = mode
            for dispatcher, calls, bypassed in counters:
                dispatcher.calls, dispatcher.bypassed = calls, bypassed


@contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 in float32: with TF32, which a model may have asked for, no reading would be near enough."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch's newer setting is in use, and the older one may not be asked
        matmul = torch.backends.cuda.matmul
        newer, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = newer
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
