"""Proof of interposition: what ran shows in the window, and nothing else does."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fastkernels
from fastkernels import PatchError
from fastkernels.patches.interposition import Interposition
from fastkernels.patches.kernel_names import kernel_names, launches
from fastkernels.runtime.fake import reference_for
from fastkernels.runtime.graph_notes import note_graph
from fastkernels.runtime.load import load_candidates
from fastkernels.runtime.opaque import make_opaque
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm
from tests.conftest import tiny_llama

LLAMA_TASKS = {"rms_norm", "rotary_emb", "silu_and_mul", "attention_block", "fused_add_rms_norm", "gated_mlp"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


class Marked(RMSNorm):
    """A right candidate of plain torch: it has no kernel of its own."""

    def forward(self, x, residual=None):
        return super().forward(x, residual)


class Norms(nn.Module):
    """Two norms in a row, to be patched at both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(64, eps=1e-6), nn.RMSNorm(64, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@torch.no_grad()
def test_counters_prove_every_applied_candidate_in_eager_calls(llama, ids):
    with fastkernels.patch(llama, "shipped") as p:
        llama(ids)
        before = {c.task: c.calls for c in p.report.candidates}
        with p.observe() as seen:
            llama(ids)
        after = {c.task: c.calls for c in p.report.candidates}
    tasks = seen.result.tasks
    assert {t for t, e in tasks.items() if e.state == "applied"} == LLAMA_TASKS
    assert seen.result.unproven == []
    for task in LLAMA_TASKS:
        assert (tasks[task].how, tasks[task].calls) == ("counter", after[task] - before[task])
    assert (tasks["layer_norm"].proven, tasks["layer_norm"].calls) == (False, 0)
    assert tasks["layer_norm"].why_not.startswith("unmatched")
    seen.result.require()
    assert Interposition.model_validate_json(seen.result.model_dump_json()) == seen.result


@torch.no_grad()
def test_a_window_without_calls_proves_nothing_and_require_says_of_whom(llama, ids):
    with fastkernels.patch(llama, "shipped") as p:
        llama(ids)
        with p.observe() as seen:
            pass
    assert set(seen.result.unproven) == LLAMA_TASKS
    assert all(e.calls == 0 and not e.kernels and not e.ops for e in seen.result.tasks.values())
    missing = r"mlp and 1 more: candidate L2/gated_mlp.py for gated_mlp: no call was"
    with pytest.raises(PatchError, match=rf"(?s)LlamaForCausalLM.*window.*layers.*{missing}"):
        seen.result.require()


@torch.no_grad()
def test_calls_of_an_unpatched_twin_show_nothing(llama, ids):
    twin = tiny_llama()
    with fastkernels.patch(llama, "shipped") as p, p.observe() as seen:
        twin(ids)
    assert set(seen.result.unproven) == LLAMA_TASKS


def test_calls_that_went_to_the_original_are_unproven_for_their_reason(llama, ids):
    with fastkernels.patch(llama, "shipped", select=lambda site: site.task.level <= 2) as p, p.observe() as seen:
        llama(ids)
    assert "gated_mlp" in seen.result.unproven
    assert "2 calls ran the original: gradients are wanted" in seen.result.tasks["gated_mlp"].why_not


@torch.no_grad()
def test_a_candidate_that_an_outer_one_passes_over_is_unproven_and_the_outer_one_is_named(llama, ids):
    class Absorbing(get_task("gated_mlp").interface):  # type: ignore[misc] # a class by a call
        def forward(self, x):
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
            return self.down_proj(nn.functional.silu(gate) * up)

    silu = load_candidates("shipped").by_task["silu_and_mul"]
    with fastkernels.patch(llama, {"gated_mlp": Absorbing, "silu_and_mul": silu}) as p, p.observe() as seen:
        llama(ids)
    assert seen.result.unproven == ["silu_and_mul"]
    assert (
        "the candidate for gated_mlp, in which it stands, ran without it" in seen.result.tasks["silu_and_mul"].why_not
    )


@torch.no_grad()
def test_a_candidate_without_a_name_in_a_graph_is_proven_by_what_stands_inside_it_alone(llama, ids):
    @fastkernels.candidate("gated_mlp", lowering="inline")
    class Outer(get_task("gated_mlp").interface):  # type: ignore[misc] # a class by a call
        def forward(self, x):
            return super().forward(x)

    @fastkernels.candidate("silu_and_mul", lowering="opaque")
    class Inner(get_task("silu_and_mul").interface):  # type: ignore[misc] # a class by a call
        def forward(self, x):
            return super().forward(x)

    with fastkernels.patch(llama, [Outer, Inner]) as p:
        compiled = torch.compile(llama.model.layers[0].mlp, backend="eager")
        x = torch.randn(2, 64)
        compiled(x)
        with p.observe() as seen:
            compiled(x)
    outer, inner = seen.result.tasks["gated_mlp"], seen.result.tasks["silu_and_mul"]
    assert (inner.how, sum(inner.ops.values())) in [("op", 1), ("counter", 1)]
    assert (outer.proven, outer.how, outer.through, outer.calls) == (True, inner.how, "silu_and_mul", 0)


@torch.no_grad()
def test_an_operator_is_seen_by_name_and_proves_a_compiled_call():
    model, x = Norms(), torch.randn(3, 64)
    want = model(x)
    with fastkernels.patch(model, {"rms_norm": Marked}, lowering="opaque") as p:
        compiled = torch.compile(model, backend="eager")
        compiled(x)
        with p.observe() as seen:
            got = compiled(x)
        (name,) = seen.result.tasks["rms_norm"].ops
    torch.testing.assert_close(got, want)
    assert name.startswith("fastkernels::rms_norm_")
    assert seen.result.tasks["rms_norm"].ops[name] == 2
    assert seen.result.tasks["rms_norm"].proven


@torch.no_grad()
def test_an_operator_made_alone_counts_where_it_is_the_patchs_own_and_only_there():
    task, x, facts = get_task("rms_norm"), torch.randn(3, 64), {"hidden_size": 64, "eps": 1e-6}
    with fastkernels.patch(Norms(), {"rms_norm": Marked}, lowering="opaque") as p:
        own = next(iter(p.dispatchers.values())).binding.lowered[""].op
        stranger = make_opaque(
            RMSNorm(**facts), task=task, facts=facts, digest="x", reference=reference_for(task, facts)
        )
        try:
            with p.observe() as strange:
                stranger(x)
            with p.observe() as seen:
                own(x)
                with torch.enable_grad():  # records a backward, and is one call still
                    own(x.clone().requires_grad_())
        finally:
            stranger.close()
    assert strange.result.tasks["rms_norm"].ops == {}
    assert stranger.name not in seen.result.tasks["rms_norm"].ops
    assert seen.result.tasks["rms_norm"].ops == {own.op.name(): 2}


@torch.no_grad()
def test_nodes_of_a_graph_prove_it_only_when_that_graph_runs():
    def backend(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        names = [n.target.name() for n in graph.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
        note_graph({name: names.count(name) for name in set(names)}, owner=graph)
        # Running the reference's aten in the operator's place, so that the window has no operator to show.
        return lambda *args: (nn.functional.rms_norm(args[0], (64,)),)

    model, x = Norms(), torch.randn(3, 64)
    with fastkernels.patch(model, {"rms_norm": Marked}, lowering="opaque") as p:
        compiled, other = torch.compile(model, backend=backend), torch.compile(nn.Linear(64, 64), backend="eager")
        other(x)
        compiled(x)
        with p.observe() as elsewhere:
            other(x)
        with p.observe() as seen:
            compiled(x)
        before = elsewhere.result.tasks["rms_norm"]
        found = seen.result.tasks["rms_norm"]
    assert (sum(before.in_graph.values()), before.proven) == (2, False)
    assert before.why_not == "the compiled graphs that hold it did not run"
    assert (sum(found.in_graph.values()), found.ops, found.how) == (2, {}, "graph")


def test_a_result_is_there_after_the_window_only_and_windows_do_not_nest():
    with fastkernels.patch(Norms(), {"rms_norm": Marked}) as p:
        with p.observe() as seen:
            with pytest.raises(PatchError, match="no result yet"):
                _ = seen.result
            with pytest.raises(PatchError, match="a profiler is running already"), p.observe():
                pass
        assert seen.result.unproven == ["rms_norm"]
        with pytest.raises(ZeroDivisionError), p.observe() as failed:
            _ = 1 / 0
        with pytest.raises(PatchError, match="no result yet"):
            _ = failed.result
        with p.observe():  # the failed window has let go of the profiler
            pass


def test_shipped_kernels_have_names_of_their_own():
    pytest.importorskip("triton")
    kernels = {t: kernel_names(c.cls).triton for t, c in load_candidates("shipped").by_task.items()}
    assert kernels["rms_norm"] == {"_rms_norm_kernel"}
    for task, names in kernels.items():
        assert not any(names & others for other, others in kernels.items() if other != task), (task, names)


def test_kernels_under_an_autotuner_are_a_candidates_own(tmp_path):
    pytest.importorskip("triton")
    folder = write_silu_and_mul(tmp_path, decorators="@triton.autotune([triton.Config({})], key=[])\n")
    assert kernel_names(load_candidates(folder).by_task["silu_and_mul"].cls).triton == {"double"}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_kernels_of_a_library_are_known_by_their_demangled_names(tmp_path):
    source, library = tmp_path / "lib.cpp", tmp_path / "lib.so"
    source.write_text(  # as a CUDA library holds the names that it registers
        'extern "C" const char* const names[] = {"", "_Z5scaleIfEvPT_i", "plain_kernel"};\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    assert launches(library, "void scale<float>(float*, int)")
    assert launches(library, "plain_kernel")
    assert not launches(library, "void scale<double>(double*, int)")
    assert not launches(library, "plain")


def write_silu_and_mul(folder: Path, *, decorators: str = "") -> Path:
    (folder / "L1").mkdir()
    (folder / "L1/silu_and_mul.py").write_text(
        "import torch, triton\nimport triton.language as tl\nfrom fastkernels.tasks.L1 import silu_and_mul\n"
        f"{decorators}@triton.jit\ndef double(x, N: tl.constexpr):\n"
        "    i = tl.arange(0, N)\n    tl.store(x + i, 2 * tl.load(x + i))\n"
        "class SiluAndMul(silu_and_mul.SiluAndMul):\n"
        "    def forward(self, x):\n        return super().forward(x)\n"
    )
    return folder
