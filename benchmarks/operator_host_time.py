"""Python and launch time of the shipped operators: microseconds of the host for one call, on tensors so small that the
GPU is never what is waited for.

    python -m benchmarks.operator_host_time --out benchmarks/results/NAME.json

Each operator: its reference and its candidate called eagerly; its operator called eagerly; then in a compiled graph
(inference mode, symbolic tokens, guards dropped, no CUDA graphs: what vLLM runs for a long prefill) the reference as
Inductor makes it, the operator, and the operator that shows its kernels to Inductor. ``Launcher`` and ``kernel[grid]``
are the kernel's launch alone. The graphs hold a small matrix product between calls, which keeps Inductor from fusing
them; the time of the products alone is taken off. ``qwen3 layer`` is what a layer of Qwen3-30B-A3B has besides linears,
experts and attention: norm, query and key norms, RoPE, norm. The last lines are where an operator's own time goes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.guards import _reinterpret_tensor as reinterpret_tensor
from torch._C._dynamo.guards import assert_size_stride

from fastkernels.runtime.fake import reference_for
from fastkernels.runtime.launch import Launcher
from fastkernels.runtime.load import load_file, shipped_folder
from fastkernels.runtime.opaque import Opaque, make_opaque
from fastkernels.runtime.own_code import with_own_code
from fastkernels.tasks import get_task

CALLS = 8  # in a compiled graph
ROUNDS = 15
BLOCK = 40  # runs of a graph, or ten times as many single calls, in one timing
TOKENS, WIDTH, HEAD, HEADS, KV_HEADS = 8, 128, 64, 2, 1
DTYPE = torch.bfloat16

Call = Callable[[], Any]
Step = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A candidate beside its reference, and its operators; equal weights in each."""

    reference: nn.Module
    candidate: nn.Module
    opaque: Opaque
    transparent: Opaque

    def form(self, name: str) -> Step:
        forward: Step = getattr(self, name).forward
        return forward


def subject(task_name: str, device: torch.device, example: Callable[[], tuple[Any, ...]], **facts: Any) -> Subject:
    task = get_task(task_name)
    found = load_file(shipped_folder() / "L1" / f"{task_name}.py", task)
    reference = task.interface(**facts).to(device, DTYPE).eval()
    candidate = found.cls(**facts).to(device, DTYPE).eval()
    candidate.load_state_dict(reference.state_dict())
    opaque, transparent = (
        make_opaque(
            candidate,
            task=task,
            facts=facts,
            digest=found.digest,
            reference=reference_for(task, facts, device=device),
            example=example(),
            transparent=shown,
        )
        for shown in (False, True)
    )
    return Subject(reference=reference, candidate=candidate, opaque=opaque, transparent=transparent)


def timed(calls: Mapping[str, Call], *, repeats: int) -> dict[str, float]:
    """Median microseconds of one call of each; blocks take turns, and the device is idle when one begins."""
    for call in calls.values():
        for _ in range(5):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            _wait()
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            samples[name].append((time.perf_counter() - started) / repeats * 1e6)
    return {name: statistics.median(s) for name, s in samples.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compiled(function: Step) -> Step:
    """``function`` as an engine compiles it: without guards, so that shared code would be taken for another form's."""
    options = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    return torch.compile(with_own_code(function), fullgraph=True, options=options)


@contextmanager
def seen_launches() -> Iterator[list[tuple[Launcher, tuple[Any, ...]]]]:
    """The launches made inside."""
    found: list[tuple[Launcher, tuple[Any, ...]]] = []
    original = Launcher.__call__

    def launch(self: Launcher, *args: Any) -> None:
        found.append((self, args))
        original(self, *args)

    Launcher.__call__ = launch  # type: ignore[method-assign] # put back below
    try:
        yield found
    finally:
        Launcher.__call__ = original  # type: ignore[method-assign]


def launches(call: Call) -> dict[str, float]:
    """The launch that ``call`` makes, by our launcher and by Triton's own way."""
    with seen_launches() as found:
        call()
    if not found:  # no GPU
        return {}
    launcher, arguments = found[0]
    grid, tensors, numbers, constants, warps = arguments[:5]
    flat = (*tensors, *numbers, *constants)
    ways = {
        "Launcher": lambda: launcher(*arguments),
        "kernel[grid]": lambda: launcher.kernel[grid](*flat, num_warps=warps),
    }
    return timed(ways, repeats=10 * BLOCK)


def parts(subject: Subject, arguments: tuple[Any, ...]) -> dict[str, float]:
    """What an operator's call is made of, each measured by itself."""
    x, out = arguments[0], torch.empty_like(arguments[0])
    op, state = subject.opaque.op, list(subject.candidate.state_dict().values())
    straight = [a for a in arguments if a is not None]
    library = torch.library.Library("fastkernels_bench", "FRAGMENT")
    names = ", ".join(f"Tensor a{i}" for i in range(len(straight)))
    library.define(f"nothing({names}, Tensor[] state) -> Tensor")
    library.impl("nothing", lambda *given: out, "CompositeExplicitAutograd")
    nothing = torch.ops.fastkernels_bench.nothing.default
    ways: dict[str, Call] = {
        "an operator that does nothing": lambda: nothing(*straight, state),
        "empty_like": lambda: torch.empty_like(x),
        "is_alias_of": lambda: torch._C._is_alias_of(x, out),  # type: ignore[attr-defined] # not in torch's stubs
        "a parameter of a module": lambda: subject.candidate.weight,
        "a view of a graph's buffer": lambda: reinterpret_tensor(x, (4, WIDTH), (WIDTH, 1), 0),
        "a graph's check of a size": lambda: assert_size_stride(x, (TOKENS, WIDTH), (WIDTH, 1)),
    }
    if len(straight) == len(arguments):
        ways["the operator"] = lambda: op(*arguments, state)
    return timed(ways, repeats=10 * BLOCK)


# -- what is measured --------------------------------------------------------------------------------------------------


def chain(step: Step, weight: torch.Tensor) -> Step:
    def run(x: torch.Tensor) -> torch.Tensor:
        for _ in range(CALLS):
            x = step(x) @ weight
        return x

    return run


def in_graphs(steps: Mapping[str, Step], arguments: tuple[Any, ...], *, calls: int) -> dict[str, float]:
    """``steps`` are whole graphs, one of them ``bare``: microseconds of each of its ``calls`` beyond that one's."""
    made: dict[str, Call] = {}
    for name, step in steps.items():
        for a in arguments:
            torch._dynamo.maybe_mark_dynamic(a, 0)
        run = compiled(step)
        run(*arguments)
        made[name] = lambda run=run: run(*arguments)  # type: ignore[misc] # a default binds run early
    times = timed(made, repeats=BLOCK)
    return {name: (us - times["bare"]) / calls for name, us in times.items() if name != "bare"}


EAGER = ("reference", "candidate", "opaque")
FORMS = ("reference", "opaque", "transparent")  # in graphs


def rms_norm(device: torch.device) -> dict[str, Any]:
    x, w = _normal(TOKENS, WIDTH, device=device), _normal(WIDTH, WIDTH, device=device) / WIDTH**0.5
    norm = subject("rms_norm", device, lambda: (x,), hidden_size=WIDTH)
    steps = {f: chain(norm.form(f), w) for f in FORMS} | {"bare": chain(lambda x: x, w)}
    return _told(norm, (x,), steps, (x,)) | {"parts": parts(norm, (x, None))}


def rms_norm_residual(device: torch.device) -> dict[str, Any]:
    x, r, w = (_normal(n, WIDTH, device=device) for n in (TOKENS, TOKENS, WIDTH))
    norm = subject("rms_norm", device, lambda: (x, r), hidden_size=WIDTH, eps=1e-5)

    def over(call: Step | None) -> Step:
        def run(x: torch.Tensor, residual: torch.Tensor) -> Any:
            for _ in range(CALLS):
                x, residual = (x, residual) if call is None else call(x, residual)
                x = x @ w
            return x, residual

        return run

    steps = {f: over(norm.form(f)) for f in FORMS} | {"bare": over(None)}
    return _told(norm, (x, r), steps, (x, r))


def silu_and_mul(device: torch.device) -> dict[str, Any]:
    x, w = _normal(TOKENS, 2 * WIDTH, device=device), _normal(WIDTH, 2 * WIDTH, device=device)
    gate = subject("silu_and_mul", device, lambda: (x,))
    steps = {f: chain(gate.form(f), w) for f in FORMS} | {"bare": chain(lambda x: x[:, :WIDTH], w)}
    return _told(gate, (x,), steps, (x,))


def rotary_emb(device: torch.device) -> dict[str, Any]:
    sizes = (HEADS * HEAD, KV_HEADS * HEAD)
    qkv, w = _normal(TOKENS, sum(sizes), device=device), _normal(sizes[0], sum(sizes), device=device)
    positions = torch.arange(TOKENS, device=device)
    facts = {"head_size": HEAD, "rotary_dim": HEAD, "max_position_embeddings": 64, "base": 1e4, "is_neox_style": True}
    rope = subject("rotary_emb", device, lambda: (positions, *qkv.split(sizes, dim=-1)), **facts, dtype=DTYPE)

    def over(call: Step | None) -> Step:
        def run(positions: torch.Tensor, qkv: torch.Tensor) -> Any:
            keys = []
            for _ in range(CALLS):
                query, key = qkv.split(sizes, dim=-1)
                query, key = (query, key) if call is None else call(positions, query, key)
                keys.append(key)
                qkv = query @ w
            return qkv, keys

        return run

    steps = {f: over(rope.form(f)) for f in FORMS} | {"bare": over(None)}
    return _told(rope, (positions, *qkv.split(sizes, dim=-1)), steps, (positions, qkv))


def qwen3_layer(device: torch.device) -> dict[str, Any]:
    """A layer's small operators between its products, as vLLM's module writes them; two layers a graph."""
    layers, sizes = 2, (HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD)
    x, r = _normal(TOKENS, WIDTH, device=device), _normal(TOKENS, WIDTH, device=device)
    inward, outward, across = (
        _normal(*shape, device=device) for shape in ((WIDTH, sum(sizes)), (sizes[0], WIDTH), (WIDTH, WIDTH))
    )
    positions = torch.arange(TOKENS, device=device)
    facts = {"head_size": HEAD, "rotary_dim": HEAD, "max_position_embeddings": 64, "base": 1e4, "is_neox_style": True}
    norm = subject("rms_norm", device, lambda: (x, r), hidden_size=WIDTH, eps=1e-6)
    heads = subject("rms_norm", device, lambda: (x.view(TOKENS, -1, HEAD),), hidden_size=HEAD, eps=1e-6)
    rope = subject(
        "rotary_emb", device, lambda: (positions, *(x @ inward).split(sizes, dim=-1)[:2]), **facts, dtype=DTYPE
    )

    def over(form: str | None) -> Step:
        def run(positions: torch.Tensor, x: torch.Tensor, residual: torch.Tensor) -> Any:
            kept = []
            for _ in range(layers):
                if form is not None:
                    x, residual = norm.form(form)(x, residual)
                query, key, value = (x @ inward).split(sizes, dim=-1)
                if form is not None:
                    query = heads.form(form)(query.view(-1, HEADS, HEAD)).view(query.shape)
                    key = heads.form(form)(key.view(-1, KV_HEADS, HEAD)).view(key.shape)
                    query, key = rope.form(form)(positions, query, key)
                kept += [key, value]
                x = query @ outward
                if form is not None:
                    x, residual = norm.form(form)(x, residual)
                x = x @ across
            return x, residual, kept

        return run

    steps = {f: over(f) for f in FORMS} | {"bare": over(None)}
    return {"compiled": in_graphs(steps, (positions, x, r), calls=layers)}


def _told(
    subject: Subject, eager: tuple[Any, ...], steps: Mapping[str, Step], arguments: tuple[Any, ...]
) -> dict[str, Any]:
    forms = {f: subject.form(f) for f in EAGER}
    calls: dict[str, Call] = {f: lambda call=call: call(*eager) for f, call in forms.items()}  # type: ignore[misc] # as above
    return {
        "eager": timed(calls, repeats=10 * BLOCK),
        "compiled": in_graphs(steps, arguments, calls=CALLS),
        "launch": launches(lambda: subject.candidate(*eager)),
    }


def _normal(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=torch.float32).to(DTYPE) / 16


CASES: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    "rms_norm": rms_norm,
    "rms_norm with residual": rms_norm_residual,
    "silu_and_mul": silu_and_mul,
    "rotary_emb": rotary_emb,
    "qwen3 layer": qwen3_layer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--device", default="cuda", help="cpu tells what the operator adds to torch's own kernels")
    args = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        told = {name: case(torch.device(args.device)) for name, case in CASES.items()}
    columns = [("eager", f) for f in EAGER] + [("compiled", f) for f in FORMS]
    columns += [("launch", "Launcher"), ("launch", "kernel[grid]")]
    print(f"{'us of the host for one call':26}", *(f"{f'{group} {form}':>21}" for group, form in columns))
    for name, row in told.items():
        cells = (row.get(group, {}).get(form) for group, form in columns)
        print(f"{name:26}", *(f"{'' if us is None else format(us, '.1f'):>21}" for us in cells))
    print(*(f"  {part}: {us:.2f}" for part, us in told["rms_norm"]["parts"].items()), sep="\n")
    if args.out is not None:
        from benchmarks.about import about

        args.out.write_text(json.dumps(about() | {"us": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
