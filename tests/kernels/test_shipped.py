"""The shipped candidates are right on CPU: in plain torch here, and their Triton kernels through the interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from fastkernels.runtime.candidate import as_candidate
from fastkernels.runtime.load import load_candidates
from fastkernels.runtime.trace import untraceable
from fastkernels.tasks import Case, Task, get_task
from fastkernels.tasks.accuracy import measure
from tests.kernels.shipped import FOLDER, errors_on, shipped, small_cases

DTYPES = (torch.float32, torch.bfloat16)
SMALL = small_cases()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TWO_ROUNDINGS = 2**-6 if INTERPRETED else 2**-7  # of bfloat16; the interpreter truncates where a GPU rounds


@pytest.mark.parametrize(("task", "case"), SMALL, ids=[f"{t.name}-{c.name}" for t, c in SMALL])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_in_its_accuracy_class(task: Task, case: Case, dtype: torch.dtype) -> None:
    candidate, baseline = errors_on(task, case, dtype, "cpu", wide=torch.float64)
    assert task.accuracy.accepts(candidate, baseline, dtype), (candidate, task.accuracy.limit(baseline, dtype))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter cannot run inside a trace")
@pytest.mark.parametrize("name", list(shipped()))
def test_what_is_declared_inline_is_traced_in_one_graph(name: str) -> None:
    task = get_task(name)
    candidate = load_candidates("shipped").by_task[name]
    assert candidate.lowering == "inline"
    case = next(c for c in task.cases() if not c.production)
    module = task.build(case, implementation=candidate.cls)
    example = case.draw(torch.Generator().manual_seed(1), torch.device("cpu"), torch.float32)
    assert untraceable(module.forward, example, implementation=module) is None
    torch._dynamo.reset()


def test_each_file_holds_one_candidate_of_its_stem() -> None:
    stems = {path.stem for path in FOLDER.glob("L*/*.py")}
    assert stems == set(shipped())
    for name, cls in shipped().items():
        assert as_candidate(cls).task.name == name
        assert cls.__name__ == get_task(name).interface.__name__


def slices(width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Inputs as hosts make them: a slice of a wider product, heads of it, a transpose, a broadcast, every other row."""
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 5, 4 * width, generator=g).to(dtype)
    return [
        wide[..., width : 2 * width],
        wide[..., width:].unflatten(-1, (3, width)),
        wide[..., :width].transpose(0, 1),
        wide[:1, :, :width].expand(4, 5, width),
        wide[0, ::2, :width],
        wide.flatten()[: 6 * width].view(width, 6).t(),
    ]


@pytest.mark.parametrize("name", ["rms_norm", "gemma_rms_norm", "layer_norm", "silu_and_mul", "gelu_and_mul"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_takes_any_strides(name: str, dtype: torch.dtype) -> None:
    arguments = (48,) if "norm" in name else ()
    reference = get_task(name).interface(*arguments).to(dtype)
    candidate = shipped()[name](*arguments).to(dtype)
    for x in slices(48, dtype):
        error = measure(candidate(x), reference(x))
        assert error.peak <= (1e-5 if dtype == torch.float32 else TWO_ROUNDINGS), (x.shape, x.stride(), error)


@pytest.mark.parametrize("neox", [True, False])
@torch.no_grad()
def test_rotate_takes_slices_and_shared_tables(neox: bool) -> None:
    g = torch.Generator().manual_seed(0)
    query, key, _ = torch.randn(2, 7, 8 * 16, generator=g).split([64, 32, 32], dim=-1)
    query, key = query.unflatten(-1, (4, 16)), key.unflatten(-1, (2, 16))
    tables = torch.rand(1, 7, 24, generator=g)
    for rows in (tables, tables.expand(2, -1, -1), torch.rand(2, 7, 24, generator=g)):
        cos, sin = rows[..., :6], rows[..., 12:18]
        modules = [cls(16, 12, 1, 1e4, neox) for cls in (get_task("rotary_emb").interface, shipped()["rotary_emb"])]
        want, got = (module.rotate(query, key, cos, sin) for module in modules)
        for w, g_ in zip(want, got, strict=True):
            assert torch.allclose(w, g_, atol=1e-6)


@pytest.mark.parametrize("name", ["rms_norm", "silu_and_mul", "attention_block"])
def test_gradients_are_the_references(name: str) -> None:
    task = get_task(name)
    case = next(c for c in task.cases() if not c.production)
    arguments = case.draw(torch.Generator().manual_seed(1), torch.device("cpu"), torch.float32)
    grads = []
    for implementation in (task.interface, shipped()[name]):
        module, x = task.build(case, implementation=implementation), arguments[0].clone().requires_grad_()
        module(x, *arguments[1:]).square().sum().backward()
        grads.append([x.grad, *(p.grad for _, p in sorted(module.named_parameters()))])
    for want, got in zip(*grads, strict=True):
        assert torch.allclose(want, got, rtol=1e-4, atol=1e-5)


class Cache:
    """Appends, as transformers' dynamic cache does."""

    def __init__(self) -> None:
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = (key, value)
        self.kept = new if self.kept is None else tuple(torch.cat(p, dim=2) for p in zip(self.kept, new, strict=True))
        return self.kept


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_attention_block_decodes_against_a_cache(kv_heads: int, masked: bool) -> None:
    task = get_task("attention_block")
    init = {"hidden_size": 40, "num_heads": 4, "num_kv_heads": kv_heads, "head_dim": 16, "qk_norm": "head"}
    case = Case(name="", init=init, draw=lambda *_: ())
    g = torch.Generator().manual_seed(0)
    steps = [torch.randn(2, n, 40, generator=g) for n in (6, 1, 3, 1)]
    modules = [task.build(case), task.build(case, implementation=shipped()["attention_block"])]
    caches = [Cache(), Cache()]
    total = 0
    for x in steps:
        length = x.shape[1]
        total += length
        angles = torch.rand(1, length, 8, generator=g) * 6
        mask = None
        if masked:
            mask = torch.ones(length, total, dtype=torch.bool).tril(total - length).expand(2, 1, -1, -1).clone()
            mask[0, ..., :2] = False
            mask[0, 0, :, total - length :] |= torch.eye(length, dtype=torch.bool)
        want, got = (m(x, angles.cos(), angles.sin(), mask, c.update) for m, c in zip(modules, caches, strict=True))
        assert torch.allclose(want, got, atol=2e-6), (length, (want - got).abs().max())


@pytest.mark.skipif(not INTERPRETED, reason="on CPU the parts run")
@pytest.mark.parametrize(("rows", "hidden", "intermediate"), [(3, 48, 80), (130, 72, 136), (300, 64, 264)])
@torch.no_grad()
def test_one_product_activates_its_tiles(rows: int, hidden: int, intermediate: int) -> None:
    """Rows, columns and depth that fill no tile; the activation's own pass is not there to be run."""
    modules = [cls(hidden, intermediate) for cls in (get_task("gated_mlp").interface, shipped()["gated_mlp"])]
    g = torch.Generator().manual_seed(0)
    for of_reference, of_candidate in zip(*(m.parameters() for m in modules), strict=True):
        of_candidate.copy_(of_reference.copy_(torch.randn(of_reference.shape, generator=g) * 0.1))
    modules[1].act_fn.register_forward_pre_hook(lambda *_: pytest.fail("the activation ran by itself"))
    x = torch.randn(2, rows, hidden, generator=g)
    want, got = (m(x) for m in modules)
    assert torch.allclose(want, got, atol=1e-5)


@pytest.mark.timeout(900)
@pytest.mark.skipif(INTERPRETED, reason="this is the run that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernels_pass_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter")
@pytest.mark.parametrize("name", list(shipped()))
@torch.no_grad()
def test_the_interpreter_really_runs_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = shipped()[name].forward.__globals__
    launchers = [n for n in scope if n.startswith("_launch_")]
    if not launchers:
        pytest.skip("has no kernel of its own")
    calls = []
    monkeypatch.setitem(scope, launchers[0], lambda *arguments: calls.append(arguments))
    task = get_task(name)
    case = next(c for c in task.cases() if not c.production)
    arguments = case.draw(torch.Generator().manual_seed(1), torch.device("cpu"), torch.float32)
    task.build(case, implementation=shipped()[name])(*arguments)
    assert calls
