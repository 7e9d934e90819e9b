"""The shipped candidates are right on a GPU, at production shapes too, whatever the strides and however large."""

from __future__ import annotations

import pytest
import torch

from fastkernels.tasks import Case, Task, get_task
from fastkernels.tasks.accuracy import measure
from tests.kernels.shipped import errors_on, production_cases, shipped, small_cases
from tests.kernels.test_shipped import Cache, slices

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
SMALL, PRODUCTION = small_cases(), production_cases()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("task", "case"), SMALL, ids=[f"{t.name}-{c.name}" for t, c in SMALL])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_in_its_accuracy_class(task: Task, case: Case, dtype: torch.dtype) -> None:
    candidate, baseline = errors_on(task, case, dtype, "cuda", wide=torch.float64)
    assert task.accuracy.accepts(candidate, baseline, dtype), (candidate, task.accuracy.limit(baseline, dtype))


@pytest.mark.parametrize(("task", "case"), PRODUCTION, ids=[f"{t.name}-{c.name}" for t, c in PRODUCTION])
def test_is_in_its_accuracy_class_at_production_shapes(task: Task, case: Case) -> None:
    candidate, baseline = errors_on(task, case, torch.bfloat16, "cuda", wide=torch.float32)
    limit = task.accuracy.limit(baseline, torch.bfloat16)
    assert task.accuracy.accepts(candidate, baseline, torch.bfloat16), (candidate, limit)


@pytest.mark.parametrize("name", ["rms_norm", "gemma_rms_norm", "layer_norm", "silu_and_mul", "gelu_and_mul"])
@pytest.mark.parametrize("width", [48, 1000])
@torch.no_grad()
def test_takes_any_strides(name: str, width: int) -> None:
    arguments = (width,) if "norm" in name else ()
    reference = get_task(name).interface(*arguments).to("cuda", torch.bfloat16)
    candidate = shipped()[name](*arguments).to("cuda", torch.bfloat16)
    for x in slices(width, torch.bfloat16):
        on_gpu = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") if 0 not in x.stride() else None
        on_gpu = x.cuda() if on_gpu is None else on_gpu.copy_(x)
        error = measure(candidate(on_gpu), reference(on_gpu))
        assert error.peak <= 2**-7, (x.shape, x.stride(), error)


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "silu_and_mul"])
@pytest.mark.parametrize("shape", [(70_000, 64), (3, 40_000), (270_000, 8192)], ids=str)
@torch.no_grad()
def test_takes_many_rows_wide_rows_and_more_than_int32_elements(name: str, shape: tuple[int, int]) -> None:
    arguments = (shape[1],) if "norm" in name else ()
    reference = get_task(name).interface(*arguments).to("cuda", torch.bfloat16)
    candidate = shipped()[name](*arguments).to("cuda", torch.bfloat16)
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    out = candidate(x)
    for part in (slice(0, 3), slice(shape[0] - 3, shape[0])):
        assert measure(out[part], reference(x[part])).peak <= 2**-7


@torch.no_grad()
def test_runs_where_addresses_are_odd() -> None:
    """A kernel compiled for 16-byte aligned pointers must not be handed others."""
    module = shipped()["rms_norm"](64).to("cuda", torch.bfloat16)
    reference = get_task("rms_norm").interface(64).to("cuda", torch.bfloat16)
    storage = torch.randn(1 + 8 * 64, device="cuda", dtype=torch.bfloat16)
    for start in (0, 1, 0, 1):
        x = storage[start : start + 8 * 64].view(8, 64)
        assert measure(module(x), reference(x)).peak <= 2**-7


@pytest.mark.parametrize("kv_heads", [1, 8, 32])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_attention_block_decodes_against_a_cache(kv_heads: int, masked: bool) -> None:
    task = get_task("attention_block")
    init = {"hidden_size": 256, "num_heads": 32, "num_kv_heads": kv_heads, "head_dim": 128}
    case = Case(name="", init=init, draw=lambda *_: ())
    build = {"device": "cuda", "dtype": torch.bfloat16}
    modules = [task.build(case, **build), task.build(case, implementation=shipped()["attention_block"], **build)]
    oracle = task.build(case, **build).float()
    caches = [Cache(), Cache(), Cache()]
    total = 0
    for length in (130, 1, 3, 1):
        total += length
        x = torch.randn(3, length, 256, device="cuda", dtype=torch.bfloat16)
        angles = torch.rand(1, length, 64, device="cuda") * 6
        mask = None
        if masked:
            mask = torch.ones(length, total, dtype=torch.bool, device="cuda").tril(total - length)
            mask = mask.expand(3, 1, -1, -1).clone()
            mask[0, ..., :2] = False
            mask[0, 0, :, total - length :] |= torch.eye(length, dtype=torch.bool, device="cuda")
        tables = [t.to(torch.bfloat16) for t in (angles.cos(), angles.sin())]
        want, got = (m(x, *tables, mask, c.update) for m, c in zip(modules, caches[:2], strict=True))
        exact = oracle(x.float(), *[t.float() for t in tables], mask, caches[2].update)
        candidate, baseline = measure(got, exact), measure(want, exact)
        assert task.accuracy.accepts(candidate, baseline, torch.bfloat16), (length, candidate, baseline)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_attention_block_decodes_over_few_and_many_keys(batch: int, masked: bool) -> None:
    """From one share of the keys to sixteen, the last ones empty or not full."""
    task = get_task("attention_block")
    init = {"hidden_size": 256, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128}
    case = Case(name="", init=init, draw=lambda *_: ())
    build = {"device": "cuda", "dtype": torch.bfloat16}
    modules = [task.build(case, **build), task.build(case, implementation=shipped()["attention_block"], **build)]
    oracle = task.build(case, **build).float()
    x = torch.randn(batch, 1, 256, device="cuda", dtype=torch.bfloat16)
    angles = torch.rand(1, 1, 64, device="cuda") * 6
    tables = [t.to(torch.bfloat16) for t in (angles.cos(), angles.sin())]
    for total in (1, 33, 64, 65, 130, 257, 600, 1025, 4097):
        key, value = torch.randn(2, batch, 8, total, 128, device="cuda", dtype=torch.bfloat16)
        mask = torch.rand(batch, 1, 1, total, device="cuda") < 0.7 if masked else None
        if mask is not None:
            mask[..., -1] = True
        want, got = (m(x, *tables, mask, lambda *_: (key, value)) for m in modules)  # noqa: B023 - called in this turn
        wide = [t.float() for t in tables]
        exact = oracle(x.float(), *wide, mask, lambda *_: (key.float(), value.float()))  # noqa: B023 - as above
        candidate, baseline = measure(got, exact), measure(want, exact)
        assert task.accuracy.accepts(candidate, baseline, torch.bfloat16), (total, candidate, baseline)


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="needs Hopper")
@pytest.mark.parametrize("rows", [1024, 1500, 2049])
@torch.no_grad()
def test_the_product_that_activates_its_tiles_gives_what_the_parts_give(rows: int) -> None:
    """Rows and columns that fill no tile; the activation's own pass is not there to be run."""
    mlp = shipped()["gated_mlp"](512, 14344).to("cuda", torch.bfloat16)
    for parameter in mlp.parameters():
        parameter.normal_(std=0.02)
    x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)
    by_parts = mlp.down_proj(shipped()["silu_and_mul"]()(mlp.gate_up_proj(x)))
    mlp.act_fn.register_forward_pre_hook(lambda *_: pytest.fail("the activation ran by itself"))
    assert measure(mlp(x), by_parts).peak <= 2**-7
