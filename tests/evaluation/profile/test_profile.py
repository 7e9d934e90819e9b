"""Profiles for real: torch's on the CPU, ncu's and nsys's where they are, and clear words where they are not."""

from __future__ import annotations

import json
import shutil
import stat
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from fastkernels.authoring.create_stubs import create_stubs
from fastkernels.cli.profile import profile as command
from fastkernels.errors import EvaluationError
from fastkernels.evaluation.profile import profile as verb
from fastkernels.evaluation.profile.profile import profile
from fastkernels.evaluation.profile.work import MOST_INPUTS, Job, Work, main
from fastkernels.tasks import get_task
from tests.evaluation.profile.test_parsers import NCU, NSYS

app = Typer()
app.command("profile")(command)


def test_operators_of_a_candidate_are_found_with_times_and_counts() -> None:
    result = profile("gated_mlp", device="cpu", case="silu")
    products = next(k for k in result.kernels if k.name in ("aten::mm", "aten::addmm"))
    assert products.launches == 2.0  # gate and up as one, down
    assert 0 < products.seconds < result.seconds < 1.0
    assert result.kernels == sorted(result.kernels, key=lambda k: -k.seconds)
    assert (result.task, result.case, result.dtype, result.command) == ("gated_mlp", "silu", "float32", [])


def test_the_share_of_the_roofline_is_the_tasks_cost_over_the_time_shown() -> None:
    result = profile("linear", "reference", device="cpu", case="rows")
    task = get_task("linear")
    case = next(c for c in task.cases() if c.name == "rows")
    cost = task.cost(task.build(case), *case.draw(torch.Generator(), torch.device("cpu"), torch.float32))
    assert (result.bytes, result.flops) == (cost.bytes, cost.flops)
    assert 0 < result.roofline_share < 1.5


def test_the_first_case_and_dtype_that_the_candidate_takes_are_chosen(tmp_path: Path) -> None:
    folder = only_bfloat16(tmp_path)
    result = profile("silu", folder, device="cpu")
    assert result.dtype == "bfloat16"
    with pytest.raises(EvaluationError, match="takes none of these cases: rows float32: it supports bfloat16"):
        profile("silu", folder, device="cpu", case="rows", dtype="float32")


def only_bfloat16(folder: Path) -> Path:
    (folder / "L1").mkdir()
    (folder / "L1" / "silu.py").write_text(
        textwrap.dedent(
            """
            import torch
            from fastkernels.runtime.candidate import candidate
            from fastkernels.tasks.L1.silu import SiLU as Reference

            @candidate("silu", dtypes=(torch.bfloat16,))
            class SiLU(Reference):
                pass
            """
        )
    )
    return folder


def test_inputs_differ_and_reach_three_times_the_cache_or_the_most() -> None:
    job = Job(task="rms_norm", case="rows", dtype="float32", device="cpu", calls=1, cache_bytes=3 * 64 * 4)
    few = Work.of(job)
    assert len(few.inputs) == 4
    assert not torch.equal(few.inputs[0][0], few.inputs[1][0])
    assert len(Work.of(job.model_copy(update={"cache_bytes": 2**30})).inputs) == MOST_INPUTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "embedding"}, "shipped has no candidate for embedding"),
        ({"target": "rms_norm", "case": "nope"}, "no case 'nope'. Cases: rows,"),
        ({"target": "rms_norm", "dtype": "int8"}, "'int8' is not one of float32"),
        ({"target": "rms_norm", "tool": "ncu"}, "runs on cpu. Take --tool torch"),
        ({"target": "rms_norm", "device": "tpu"}, "device 'tpu' is not one of cpu, cuda"),
        ({"target": "rms_norm", "device": "cuda:x"}, "a number must follow the colon"),
    ],
)
def test_what_cannot_be_profiled_is_told_with_the_way_out(arguments: dict, words: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        profile(**{"device": "cpu"} | arguments)
    assert words in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_told() -> None:
    with pytest.raises(EvaluationError, match=r"device cuda: there is none here\. Take --device cpu"):
        profile("rms_norm", device="cuda")


def test_a_candidate_that_raises_is_named_with_its_case_and_its_error(tmp_path: Path) -> None:
    (file,) = create_stubs(tmp_path, tasks=["silu"]).written
    file.write_text(file.read_text().replace("return super().forward(x)", 'raise ValueError("no luck")'))
    with pytest.raises(EvaluationError, match=r"L1/silu\.py silu: rows float32 on cpu: it raises ValueError: no luck"):
        profile("silu", tmp_path, device="cpu")


def test_a_tool_that_is_not_installed_is_named_with_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EvaluationError, match=r"nsys is not on PATH\. Install Nsight Systems"):
        profile("rms_norm", tool="nsys", device="cuda")


def test_a_program_that_fails_under_a_tool_is_quoted_and_a_slow_one_ended(tmp_path: Path) -> None:
    failing = script(tmp_path / "ncu", 'echo "Traceback (most recent call last):\nRuntimeError: no luck" >&2; exit 1')
    with pytest.raises(EvaluationError, match="the program under ncu failed: RuntimeError: no luck"):
        verb._output([str(failing)], 10.0)
    slow = script(tmp_path / "nsys", "exec sleep 20")
    with pytest.raises(EvaluationError, match="took more than 0 s"):
        verb._output([str(slow)], 0.2)
    with pytest.raises(EvaluationError, match="cannot be run"):
        verb._output([str(tmp_path / "missing")], 1.0)


@pytest.mark.parametrize("tool", ["ncu", "nsys"])
def test_what_a_tool_prints_becomes_kernels_of_one_call(tool, tmp_path: Path, monkeypatch) -> None:
    """A script stands for the tool and prints the hand-written sample; the way to it and back is the real one."""
    (tmp_path / "sample").write_text({"ncu": NCU, "nsys": NSYS}[tool])
    log, print_sample = tmp_path / "log", f"cat {tmp_path / 'sample'}"
    body = print_sample if tool == "ncu" else f'if [ "$1" = stats ]; then {print_sample}; fi'
    stand_in = script(tmp_path / tool, f'echo "$@" >> {log}; {body}')
    monkeypatch.setattr(verb, "_executable", lambda *_: str(stand_in))
    result = profile("silu", "reference", tool=tool, device="cpu", case="rows", calls=2)
    norm = next(k for k in result.kernels if k.name == "_norm_kernel")
    assert (norm.launches, norm.seconds) == (
        (1.0, pytest.approx(13e-6)) if tool == "ncu" else (10.0, pytest.approx(1e-4))
    )
    assert '"case":"rows"' in result.command[-1]
    assert "fastkernels.evaluation.profile.work" in log.read_text()


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_process_that_a_tool_looks_at_runs_its_calls_inside_the_window() -> None:
    """The window needs CUDA; here one that counts takes its place, and the calls are real."""
    seen: list[str] = []

    @contextmanager
    def window():
        seen.append("open")
        with torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append("call")):
            yield
        seen.append("closed")

    job = Job(task="silu", candidates="reference", case="rows", dtype="float32", device="cpu", calls=5)
    main([job.model_dump_json()], window=window)
    assert seen == ["open", *["call"] * 5, "closed"]


def test_the_command_prints_a_table_or_json_and_ends_with_2_on_a_mistake() -> None:
    runner = CliRunner()
    table = runner.invoke(app, ["--target", "rms_norm", "--device", "cpu", "--case", "rows"])
    assert table.exit_code == 0 and "aten::" in table.output and "of the roofline" in table.output
    shown = runner.invoke(app, ["reference", "--target", "silu", "--device", "cpu", "--json"])
    assert json.loads(shown.stdout[shown.stdout.index("{") :])["task"] == "silu"
    wrong = runner.invoke(app, ["--target", "nope", "--device", "cpu"])
    assert wrong.exit_code == 2 and "no task is called 'nope'" in wrong.output


# On a GPU


@pytest.mark.gpu
def test_torch_shows_the_candidates_triton_kernel_only() -> None:
    result = profile("rms_norm", case="llama_2048")
    assert [k.name for k in result.kernels] == ["_rms_norm_kernel"]
    assert 0.2 < result.roofline_share < 1.3


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["ncu", "nsys"])
def test_the_tools_show_the_candidates_triton_kernel_only_or_say_why_not(tool) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    try:
        result = profile("rms_norm", tool=tool, case="llama_2048")
    except EvaluationError as error:
        pytest.skip(str(error))  # counters may be shut
    assert [k.name for k in result.kernels] == ["_rms_norm_kernel"]
    by_torch = profile("rms_norm", tool="torch", case="llama_2048")
    assert result.seconds == pytest.approx(by_torch.seconds, rel=0.3)
