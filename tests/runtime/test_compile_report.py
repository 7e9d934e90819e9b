"""explain: breaks, recompilations and operators are reported with their lines and guards; also from the CLI."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter
from transformers import LlamaConfig
from typer.testing import CliRunner

import fastkernels
from fastkernels import CompileReport
from fastkernels.cli.main import app
from fastkernels.errors import BackendError
from fastkernels.runtime.candidate import candidate
from fastkernels.runtime.cuda_graphs import skip_reasons
from fastkernels.runtime.opaque import make_opaque
from fastkernels.tasks import get_task
from fastkernels.tasks.L1.rms_norm import RMSNorm
from fastkernels.tasks.L1.silu_and_mul import SiluAndMul

HERE = Path(__file__).name


class Clean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2


class Prints(nn.Module):
    """A break before the first tensor operation, which torch's own explain does not count."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("called")  # noqa: T201 # the break
        return x.sin() * 2


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        if y.sum() > 0:
            y = y * 2
        return y


class Counts(nn.Module):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


def line_of(cls: type, text: str) -> int:
    lines, start = inspect.getsourcelines(cls)
    return start + next(i for i, line in enumerate(lines) if text in line)


def test_a_whole_graph_is_reported_as_whole() -> None:
    report = fastkernels.explain(Clean(), [torch.ones(2, 3), torch.ones(4, 3)], options={"batch_sizes": [2, 4]})
    assert report.whole
    assert (report.calls, len(report.graphs)) == (4, 1)
    assert report.seconds["total"] > 0
    assert CompileReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(("cls", "text", "reason"), [(Prints, "print(", "print"), (Branches, "if y", "jump|branch")])
def test_a_break_is_reported_with_its_line_reason_and_mend(cls: type[nn.Module], text: str, reason: str) -> None:
    report = fastkernels.explain(cls(), torch.ones(2, 3))
    (found,) = report.breaks
    assert f"{HERE}:{line_of(cls, text)} in " in found.where
    assert any(word in found.reason for word in reason.split("|")), found.reason
    assert found.mend
    assert not report.whole
    assert found.where in report.text()


def test_a_recompilation_is_reported_with_its_guard_and_goes_with_declared_sizes() -> None:
    inputs = [torch.ones(2, 3), torch.ones(4, 3)]
    (found,) = fastkernels.explain(Clean(), inputs).recompiles
    assert f"{HERE}:{line_of(Clean, 'def forward')} in forward" in found.where
    assert "size mismatch at index 0. expected 2, actual 4" in found.guard
    assert not fastkernels.explain(Clean(), inputs, options={"batch_sizes": [2, 4]}).recompiles


def test_python_state_that_changes_with_each_call_shows_as_recompilations() -> None:
    report = fastkernels.explain(Counts(), [torch.ones(2, 3)] * 2)
    assert len(report.recompiles) == 3
    assert any("calls" in r.guard for r in report.recompiles)


def test_a_function_given_up_at_the_recompile_limit_is_reported() -> None:
    with torch._dynamo.config.patch(recompile_limit=2):
        report = fastkernels.explain(Counts(), [torch.ones(2, 3)] * 3)
    assert any("limit" in b.reason.lower() for b in report.breaks), report.text()


class MyNorm(RMSNorm):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        return super().forward(x, residual)


class LookingGate(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().max().item() < 1e9 else x


def test_candidates_are_reported_as_operators_or_as_inlined_code(llama: nn.Module) -> None:
    inputs = [{"input_ids": torch.arange(2 * 12).view(2, 12), "use_cache": False}]
    with fastkernels.patch(llama, {"rms_norm": MyNorm, "silu_and_mul": LookingGate}):
        report = fastkernels.explain(llama, inputs, options={"batch_sizes": [2]})
        out = fastkernels.explain(llama, inputs, options={"batch_sizes": [2], "exclude": ["silu_and_mul"]})
    (graph,) = report.graphs
    assert report.whole
    assert [(name.partition("_")[0], n) for name, n in graph.present.items()] == [("fastkernels::silu", 2)]
    assert {name.rpartition(".MyNorm")[2]: n for name, n in graph.inlined.items() if "MyNorm" in name} == {
        ".forward": 5
    }
    assert not graph.lost and not graph.decomposed
    assert not out.graphs[0].present
    assert list(out.graphs[0].decomposed.values()) == ["excluded by 'silu_and_mul'"]


@candidate("silu_and_mul", lowering="inline")
class SaysItTraces(SiluAndMul):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.abs().max().item() < 1e9 else x


def test_a_break_inside_a_candidate_is_mended_by_making_it_opaque(llama: nn.Module) -> None:
    with fastkernels.patch(llama, [SaysItTraces]):
        report = fastkernels.explain(llama, {"input_ids": torch.arange(12)[None], "use_cache": False})
    assert report.breaks
    assert any(f"{HERE}:{line_of(SaysItTraces, '.item()')} in" in b.where for b in report.breaks)
    assert all("lowering='opaque'" in b.mend for b in report.breaks if HERE in b.where)


def test_the_command_reports_a_folder_without_weights(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=1,
        vocab_size=64,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(tmp_path)
    command = ["explain", str(tmp_path), "--batch", "2", "--batch", "3", "--tokens", "5"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    report = CompileReport.model_validate_json(result.stdout)
    assert (report.model, report.calls) == ("LlamaForCausalLM", 4)
    assert report.whole


def test_a_wrong_mode_is_refused_before_anything_is_compiled() -> None:
    with pytest.raises(BackendError, match="mode: 'default', 'reduce-overhead'"):
        fastkernels.explain(Clean(), torch.ones(2, 3), mode="fast", options={"batch_sizes": [2]})


def test_what_cannot_be_captured_is_reported() -> None:
    report = fastkernels.explain(Clean(), torch.ones(2, 3), mode="reduce-overhead")
    assert any("cpu" in reason for reason in report.cudagraph_skips), report.text()


# --- kernels and fusions ---------------------------------------------------------------------------------------------


class MySilu(SiluAndMul):
    pass


class Between(nn.Module):
    """An operator that Inductor's own code could run into, before it and after it."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x * 2) + 1


class Alone(nn.Module):
    """The same between two products, which are a library's."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run, self.up, self.down = run, nn.Linear(16, 32, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.run(self.up(x)))


@pytest.mark.parametrize(
    ("cls", "width", "kernels", "extern", "without", "extern_without", "lost"),
    [(Between, 32, 2, 1, 1, 0, 2), (Alone, 16, 0, 3, 1, 2, 0)],
)
def test_fusions_that_an_operator_stands_in_the_way_of_are_counted(
    cls: type[nn.Module], width: int, kernels: int, extern: int, without: int, extern_without: int, lost: int
) -> None:
    task = get_task("silu_and_mul")
    op = make_opaque(MySilu(), task=task, facts={}, digest="d", reference=SiluAndMul())
    inputs = [torch.randn(n, width) for n in (2, 3)]
    report = fastkernels.explain(cls(op.forward), inputs, options={"batch_sizes": [2, 3]})
    (graph,) = report.graphs
    assert report.whole and graph.present == {op.name: 1}
    assert (graph.kernels, graph.extern_calls) == (kernels, extern)
    assert (graph.kernels_without, graph.extern_calls_without) == (without, extern_without)
    assert graph.fusions_lost == lost
    assert f"{lost} fusions lost" in report.text()
    op.close()


def test_inlined_candidates_are_compared_with_the_model_as_it_was_and_stay(llama: nn.Module) -> None:
    inputs = {"input_ids": torch.arange(12)[None], "use_cache": False}
    (before,) = fastkernels.explain(llama, inputs).graphs
    assert before.kernels and before.kernels_unpatched is None and before.kernels_without is None
    with fastkernels.patch(llama, {"rms_norm": Unfused}, lowering="inline") as p:
        (graph,) = fastkernels.explain(llama, inputs).graphs
        (quick,) = fastkernels.explain(llama, inputs, compare=False).graphs
        with torch.no_grad():
            llama(**inputs)
        assert p.report.candidates[0].calls == 5
    assert (graph.kernels_unpatched, graph.extern_calls_unpatched) == (before.kernels, before.extern_calls)
    assert graph.extern_calls > before.extern_calls
    assert quick.kernels_unpatched is None
    assert (quick.kernels, quick.extern_calls) == (graph.kernels, graph.extern_calls)


class Unfused(RMSNorm):
    """Traced, with a call of a library in it that no compiler fuses with anything."""

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        out = super().forward(x, residual)
        return out.sort(dim=-1).values.gather(-1, out.argsort(dim=-1).argsort(dim=-1))


def test_reasons_against_capture_are_kept_at_calls_too() -> None:
    with skip_reasons() as reasons:
        log_cudagraph_skip_and_bump_counter("skipping cudagraphs due to mutated inputs (1 instances).\n here")
    log_cudagraph_skip_and_bump_counter("skipping cudagraphs due to something after the end")
    assert reasons == ["skipping cudagraphs due to mutated inputs (1 instances). here"]


def test_nothing_is_said_of_recordings_where_none_can_be() -> None:
    report = fastkernels.explain(Clean(), torch.ones(2, 3), mode="reduce-overhead")
    assert (report.recordings, report.replays) == (None, None)


def test_the_command_refuses_what_it_cannot_explain(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "fastkernels explain: " in result.stderr
