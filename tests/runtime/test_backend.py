"""torch.compile(backend="fastkernels"): whole graphs, right results, no recompilation, and never a stale artefact."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastkernels.errors import BackendError
from fastkernels.runtime.backend import capture_unsafe, recording
from fastkernels.runtime.fake import reference_for
from fastkernels.runtime.injected import calls_in
from fastkernels.runtime.opaque import Opaque, make_opaque
from fastkernels.runtime.options import parse
from fastkernels.tasks import Task, get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm
from tests.runtime.test_opaque import CacheWrite, cache_task

WIDTH = 16


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class MyRMSNorm(RMSNorm):
    pass


class Model(nn.Module):
    """A candidate's operator between traced operations."""

    def __init__(self, op: Opaque) -> None:
        super().__init__()
        self.run = op.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x * 2) + 1


def opaque(cls: type[nn.Module] = MyRMSNorm, *, digest: str = "d", task: Task | None = None) -> Opaque:
    module, task = cls(WIDTH), task or get_task("rms_norm")
    facts = {"hidden_size": WIDTH}
    return make_opaque(module, task=task, facts=facts, digest=digest, reference=reference_for(task, facts))


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="fastkernels", fullgraph=True, options=options or None)


class Doubles(RMSNorm):
    """Not what the task says, so that one can tell which of the two ran."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return 2 * super().forward(x, residual)


@pytest.mark.parametrize("pattern", ["rms_norm", "rms_norm_*", "*.Doubles"])
def test_an_excluded_candidate_gives_way_to_the_tasks_reference(pattern: str) -> None:
    op, x = opaque(Doubles), torch.randn(3, WIDTH)
    model, reference = Model(op), RMSNorm(WIDTH)(2 * x) + 1
    with torch.no_grad(), recording() as graphs:
        torch.testing.assert_close(compiled(model)(x), 2 * (reference - 1) + 1)
        torch._dynamo.reset()
        torch.testing.assert_close(compiled(model, exclude=[pattern])(x), reference)
    assert graphs[0].present == {op.name: 1}
    assert not graphs[1].present
    assert graphs[1].decomposed == {op.name: 1}
    assert pattern in graphs[1].why_decomposed[op.name]
    op.close()


def test_an_excluded_candidate_that_writes_to_its_arguments_still_writes() -> None:
    task = cache_task()
    op = make_opaque(task.interface(), task=task, facts={}, digest="d", reference=task.interface())

    def step(x: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        return op(x * 2, cache, slot) + cache.sum(0)

    x, slot = torch.randn(2, 4), torch.tensor([1, 3])
    want_cache, caches = torch.zeros(5, 4), [torch.zeros(5, 4), torch.zeros(5, 4)]
    want = step(x, want_cache, slot)
    for cache, options in zip(caches, ({}, {"exclude": ["test_cache"]}), strict=True):
        torch._dynamo.reset()
        with torch.no_grad(), recording() as graphs:
            torch.testing.assert_close(compiled(step, **options)(x, cache, slot), want)
        torch.testing.assert_close(cache, want_cache)
        assert graphs[0].given == {op.name: 1}
        assert graphs[0].present.total() == (0 if options else 1)
    op.close()


def test_gradients_flow_through_a_candidate_and_through_its_reference_alike() -> None:
    op = opaque()
    grads = []
    for options in ({}, {"exclude": ["rms_norm"]}):
        torch._dynamo.reset()
        x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
        compiled(Model(op), **options)(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1])
    op.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batchsizes": [2]}, r"batchsizes is not an option.*Close to it: .*batch_sizes.*Its own are mode, "),
        ({"max_autotun": True}, r"max_autotun is not an option.*Close to it: .*max_autotune"),
        ({"batch_sizes": 4}, r"batch_sizes takes sizes, such as \[2, 4, 8\], not 4"),
        ({"exclude": "rms_norm"}, r"exclude takes globs.*not 'rms_norm'"),
        ({"exclude": ["rms_nrom"]}, r"'rms_nrom' matches no candidate.*rms_norm \(.*MyRMSNorm\).*lowering='opaque'"),
        ({"mode": "fast"}, r"'default', 'reduce-overhead'.*not 'fast'"),
    ],
)
def test_a_wrong_option_is_refused_as_itself_with_the_known_ones(options: dict[str, Any], message: str) -> None:
    op = opaque()
    with pytest.raises(BackendError, match=rf"(?s)\A(options|mode): .*{message}"):  # our text comes first
        compiled(Model(op), **options)(torch.randn(2, WIDTH))
    op.close()


def test_a_wrong_option_is_refused_as_itself_where_breaks_are_allowed_too() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu() if (x + 1).sum() > 0 else x

    with pytest.raises(BackendError, match="bogus is not an option"):
        torch.compile(step, backend="fastkernels", options={"bogus": 1})(torch.ones(2))


def test_options_of_inductor_reach_inductor() -> None:
    seen: list[bool] = []

    class Looks(torch._inductor.custom_graph_pass.CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            seen.append(torch._inductor.config.epilogue_fusion)

        def uuid(self) -> None:
            return None

    op = opaque()
    with recording() as graphs, torch.no_grad():
        compiled(Model(op), epilogue_fusion=False, post_grad_custom_post_pass=Looks())(torch.randn(2, WIDTH))
    assert seen == [False]
    assert graphs[0].present == {op.name: 1}
    op.close()


def test_marks_for_declared_sizes_are_gone_from_the_callers_tensors() -> None:
    op, x = opaque(), torch.randn(3, WIDTH)
    attributes = set(x.__dict__)
    with torch.no_grad():
        run = compiled(Model(op), batch_sizes=[3, 5])
        run(x)
        assert set(x.__dict__) == attributes
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert run(torch.randn(5, WIDTH)).shape == (5, WIDTH)
    op.close()


def test_torchs_operators_without_a_default_overload_are_no_obstacle() -> None:
    def packets(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.slice(x, 0, 1, 3) + 1

    x = torch.randn(4, 3)
    torch.testing.assert_close(compiled(packets)(x), x[1:3] + 1)


def test_sequence_lengths_share_a_graph_too() -> None:
    op = opaque()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        run = compiled(Model(op), batch_sizes=[2, 3], sequence_lengths=[8, 16, 32])
        for shape in ((2, 8), (3, 16), (2, 32), (3, 8)):
            assert run(torch.randn(*shape, WIDTH)).shape == (*shape, WIDTH)
    op.close()


def test_a_size_that_the_code_needs_as_a_number_is_no_error() -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 3 else x * 3

    run = compiled(branches, batch_sizes=[3, 4])
    x = torch.ones(3, 2)
    torch.testing.assert_close(run(x), x * 2)
    torch.testing.assert_close(run(torch.ones(4, 2)), torch.ones(4, 2) * 3)


def test_a_copy_of_an_operators_argument_is_counted() -> None:
    """The operators need their arguments as eager has them; a transposed view made by Inductor's own layout is not."""
    task = cache_task()
    op = make_opaque(task.interface(), task=task, facts={}, digest="d", reference=task.interface())

    def step(x: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        kept = cache.clone()
        op(x, cache, slot)
        return kept

    cache = torch.zeros(5, 4)
    with torch.no_grad(), recording() as graphs:
        kept = compiled(step)(torch.ones(1, 4), cache, torch.tensor([2]))
    assert kept.sum() == 0 and cache.sum() == 4
    assert not graphs[0].copied

    def fresh(x: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        mine = cache.clone()
        return op(x, mine, slot) + mine.sum(0) + cache.sum(0)

    torch._dynamo.reset()
    with torch.no_grad(), recording() as graphs:
        compiled(fresh)(torch.ones(1, 4), cache, torch.tensor([2]))
    assert graphs[0].copied == {op.name: 1}
    op.close()


def test_operators_that_a_capture_may_not_hold_are_found() -> None:
    op = opaque()
    graphs: list[torch.fx.GraphModule] = []

    def keeping(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.compile(Model(op), backend=keeping)(torch.randn(2, WIDTH))
    assert [name for _, name in calls_in(graphs[0])] == [op.op]
    assert capture_unsafe(graphs[0], parse(None, {}), {}) == []
    asked = parse(None, {"capture_unsafe": ["rms_norm"]})
    assert capture_unsafe(graphs[0], asked, {}) == [op.name]
    assert capture_unsafe(graphs[0], asked, {op.name: "excluded"}) == []
    op.close()


class Looks(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return super().forward(x, residual) if x.abs().max().item() < 1e9 else x


@pytest.mark.gpu
def test_a_candidate_that_synchronises_stays_out_of_cuda_graphs() -> None:
    op = opaque(Looks)
    op.implementation.cuda()
    with torch.no_grad(), recording() as graphs:
        run = compiled(Model(op), mode="reduce-overhead", capture_unsafe=["rms_norm"])
        for _ in range(4):
            x = torch.randn(3, WIDTH, device="cuda")
            torch.testing.assert_close(run(x).clone(), RMSNorm(WIDTH).cuda()(2 * x) + 1)
    assert graphs[0].partitioned == [op.name]
    op.close()


def test_a_fresh_process_finds_the_backend_without_importing_us() -> None:
    code = """
import sys, torch
assert "fastkernels" in torch._dynamo.list_backends() and "fastkernels" not in sys.modules
run = torch.compile(lambda x: x.sin() + 1, backend="fastkernels")
torch.testing.assert_close(run(torch.ones(3)), torch.ones(3).sin() + 1)
assert "fastkernels.runtime.backend" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=Path(__file__).parents[2])


# --- caches ----------------------------------------------------------------------------------------------------------

# An inline candidate whose own operator changes its fake from version to version, and an opaque one that changes its
# result: Inductor's own key, which has names of operators only, holds neither change.
CANDIDATE = """
import torch
from fastkernels.tasks.L1.rms_norm import RMSNorm

library = torch.library.Library("stale_test", "FRAGMENT")
library.define("scaled(Tensor x) -> Tensor")
library.impl("scaled", lambda x: x.new_full((x.shape[0], {columns}), {scale}), "CPU")
torch.library.register_fake("stale_test::scaled", lambda x: x.new_empty(x.shape[0], {columns}), lib=library)

class Opaque(RMSNorm):
    def forward(self, x, residual=None):
        return {scale} * super().forward(x)

def inline(x):
    return torch.ops.stale_test.scaled(x * 2).sum(-1) + 1
"""
PROCESS = """
import json, sys, torch
from fastkernels.errors import BackendError
from fastkernels.runtime.backend import recording
from fastkernels.runtime.candidate import digest_of
from fastkernels.runtime.fake import reference_for
from fastkernels.runtime.opaque import make_opaque
from fastkernels.tasks import get_task
import candidate_under_test as c

task, facts = get_task("rms_norm"), {"hidden_size": 16}
op = make_opaque(c.Opaque(16), task=task, facts=facts, digest=digest_of(c.Opaque), reference=reference_for(task, facts))
out = {}
for name, run, want in (("opaque", op.forward, c.Opaque(16)), ("inline", c.inline, c.inline)):
    x = torch.randn(3, 16)
    with torch.no_grad(), recording() as graphs:
        got = torch.compile(lambda x: run(x), backend=sys.argv[1], fullgraph=True)(x)
        right = got.shape == want(x).shape and torch.allclose(got, want(x), atol=1e-5)
    out[name] = {"right": right, "hits": sum(g.cache["fxgraph_cache_hit"] for g in graphs)}
print(json.dumps(out))
"""


def in_process(folder: Path, *, scale: float, columns: int) -> dict[str, Any]:
    (folder / "candidate_under_test.py").write_text(CANDIDATE.format(scale=scale, columns=columns))
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, "fastkernels"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_candidate_changed_on_disk_is_compiled_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    assert in_process(tmp_path, scale=2.0, columns=4) == {
        "opaque": {"right": True, "hits": 0},
        "inline": {"right": True, "hits": 0},
    }
    assert in_process(tmp_path, scale=2.0, columns=4) == {
        "opaque": {"right": True, "hits": 1},
        "inline": {"right": True, "hits": 1},
    }
    assert in_process(tmp_path, scale=3.0, columns=8) == {
        "opaque": {"right": True, "hits": 0},
        "inline": {"right": True, "hits": 0},
    }


# --- select="measured" -----------------------------------------------------------------------------------------------


class Slow(RMSNorm):
    calls = 0

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        time.sleep(0.002)
        Slow.calls += 1
        return super().forward(x, residual)


def test_measured_takes_out_what_makes_the_graph_slower_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    op, x = opaque(Slow), torch.randn(3, WIDTH)
    want = RMSNorm(WIDTH)(2 * x) + 1
    with torch.no_grad(), recording() as graphs:
        torch.testing.assert_close(compiled(Model(op), select="measured", batch_sizes=[3, 5])(x), want)
    assert not graphs[0].present
    assert re.match(r"measured: \d.* us with it, \d.* us with the reference", graphs[0].why_decomposed[op.name])
    calls = Slow.calls
    assert calls > 0
    torch._dynamo.reset()
    with torch.no_grad(), recording() as graphs:
        torch.testing.assert_close(compiled(Model(op), select="measured", batch_sizes=[3, 5])(x), want)
    assert op.name in graphs[0].why_decomposed
    assert Slow.calls == calls
    op.close()


def test_measured_keeps_what_makes_the_graph_faster_and_leaves_arguments_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    task = cache_task(interface=SlowCache, witness=SlowCache)
    module = CacheWrite()
    op = make_opaque(module, task=task, facts={}, digest="d", reference=SlowCache())
    cache = torch.zeros(5, 4)
    with torch.no_grad(), recording() as graphs:
        compiled(op.forward, select="measured")(torch.ones(1, 4), cache, torch.tensor([2]))
    assert graphs[0].present == {op.name: 1}
    assert cache.sum() == 4 and cache[2].sum() == 4
    op.close()


class SlowCache(CacheWrite):
    """A reference with more to compute than the candidate."""

    def forward(self, x: torch.Tensor, cache: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        square = x.sum() + torch.ones(256, 256)
        for _ in range(8):
            square = (square @ square).sigmoid()
        cache.index_copy_(0, slot, x)
        return cache.sum(0) + 1e-9 * square.mean()
