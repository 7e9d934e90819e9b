"""Markdown, JSON and the document behind all forms: the same content, nothing unescaped, no speed where none may be."""

import json
import re
import subprocess
import sys

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import RunResult
from fastkernels.evaluation.report.document import Details, Table
from fastkernels.evaluation.report.numbers import number, tail
from fastkernels.evaluation.report.render import render, write_report
from fastkernels.evaluation.report.view import view
from fastkernels.patches.report import SiteReport
from tests.evaluation.runs import MODELS, make_run

EVIL = "<script>alert(1)</script>|`**x**`[a](http://b)"


@pytest.fixture(scope="module")
def mixed():
    return make_run(failed=["vit-base"], crashed=["bge-m3"])


def tables(section):
    inside = [b for block in section.blocks for b in (block.blocks if isinstance(block, Details) else [block])]
    return [b for b in inside if isinstance(b, Table)] + [t for s in section.sections for t in tables(s)]


def all_tables(*runs):
    return [t for s in view(runs).sections for t in tables(s)]


def test_every_row_has_a_cell_for_every_column(mixed):
    for table in all_tables(mixed, make_run(seed=1, candidates="mine")):
        assert all(len(row) == len(table.columns) for row in table.rows), table.caption


def test_every_table_of_measurements_says_on_what(mixed):
    for table in all_tables(mixed):
        about_candidates = re.search(r"LlamaForCausalLM|by content|scenario", table.caption)
        assert "NVIDIA H200" in table.caption or about_candidates, table.caption


def test_markdown_holds_the_cells_of_every_table(mixed):
    text = render([mixed], ".md")
    for table in all_tables(mixed):
        heads = "| " + " | ".join(c.heading for c in table.columns) + " |"
        assert heads.replace("_", r"\_") in text, table.caption
    assert text.count("\n| ") == sum(2 + len(t.rows) for t in all_tables(mixed))


def test_markdown_tables_are_whole_whatever_the_names(mixed):
    run = make_run(models={EVIL: "llm"}, candidates=EVIL, crashed=[EVIL])
    text = render([run], ".md")
    assert "<script>" not in re.sub(r"```text\n.*?\n```", "", text, flags=re.S)
    for line in text.splitlines():
        if line.startswith("| ") and "script" in line:
            assert r"\|\`\*\*x" in line
            assert not re.search(r"(?<!\\)[`*]", line)


def test_markdown_fences_hold_logs_with_fences():
    run = make_run(models={"m": "llm"}, crashed=["m"])
    run.models[0].arms["candidate"].log_tail = "a\n````\n<b>\n"
    assert "`````text\na\n````\n<b>\n`````" in render([run], ".md")


@pytest.mark.parametrize("suffix", [".html", ".md"])
@pytest.mark.parametrize("how", ["failed", "crashed"])
def test_a_candidate_that_did_not_pass_shows_no_time_at_all(how, suffix):
    """Not its ratio, and neither its throughput nor its latency, from which one could be made."""
    pytest.importorskip("plotly")
    run = make_run(models={"llama-8b": "llm"}, speedup=7.77, **{how: ["llama-8b"]})
    text = render([run], suffix)
    text = text[: text.find("plotly.js v")] if suffix == ".html" else text
    for w in run.models[0].workloads:
        speed = w.arms["candidate"]
        assert number(speed.units_per_s, "tokens/s") not in text
        assert all(tail(latency) not in text for latency in (speed.latency_ms, speed.ttft_ms, speed.tpot_ms))
        assert f"{speed.latencies_ms[0]}" not in text
        assert number(w.arms["baseline"].units_per_s, "tokens/s") in text
    assert "withheld" in text
    assert "scores 0" in text


def test_json_is_the_runs_with_verdict_and_score(mixed):
    other = make_run(seed=1, candidates="mine", digests={"rms_norm": "1" * 64})
    parsed = json.loads(render([mixed, other], ".json"))
    assert [p["verdict"]["state"] for p in parsed] == ["partly", "passed"]
    assert RunResult.model_validate(parsed[0]["run"]) == mixed
    assert parsed[1]["score"]["score"]["value"] > 1
    assert parsed[0]["score"]["score"]["value"] == 0


def test_long_patch_reports_fold_into_patterns():
    run = make_run(models={"m": "llm"})
    run.models[0].arms["candidate"].patch.sites = [
        SiteReport(
            path=f"model.layers.{i}.mlp", cls="LlamaMLP", task="gated_mlp", level=2, state="applied", candidate="c"
        )
        for i in range(600)
    ]
    text = render([run], ".md")
    assert r"model.layers.\*.mlp" in text
    assert "layers.17." not in text
    assert "✓ 600" in text


def test_a_null_arm_of_which_a_graph_shows_nothing_is_no_failure_where_it_is_patched():
    run = make_run(models={"m": "llm"})
    arm = run.models[0].arms["null"]
    for seen in arm.interposition.tasks.values():
        seen.proven = False
    assert "the originals, behind patches" in render([run], ".md")
    arm.dispatchers = 0
    assert re.search(r"null arm \| ✗ nothing patched", render([run], ".md"))


def test_failed_arms_show_their_logs(mixed):
    assert "Segmentation fault" in render([mixed], ".md")


def test_several_runs_stand_side_by_side_under_names_of_their_own():
    runs = [make_run(), make_run(seed=1, failed=["vit-base"]), make_run(seed=2, device="NVIDIA H100")]
    side = view(runs).sections[0]
    table = tables(side)[-1]
    assert [c.heading for c in table.columns] == ["workload", "shipped #1", "shipped #2", "shipped #3"]
    assert {row[2].text for row in table.rows if row[0].note == "vit-base"} == {"✗ 0"}


def test_runs_that_cannot_be_mixed_are_not_ranked_and_it_says_why():
    text = render([make_run(), make_run(candidates="b", digests={"silu": "2" * 64}, device="NVIDIA H100")], ".md")
    assert "Not ranked: runs" in text
    assert "differ in device" in text


def test_a_result_without_workloads_correctness_or_coverage_is_shown():
    run = make_run(models={"m": "llm"})
    empty = {
        "workloads": [],
        "correctness": [],
        "coverage": None,
        "arms": {},
        "trials": [],
        "valid": False,
        "passed": False,
    }
    run = run.model_copy(update={"models": [run.models[0].model_copy(update={**empty, "reason": "no weights"})]})
    text = render([run], ".md")
    assert "scores 0: 1 model failed: m: no weights" in text
    assert "Coverage was not measured." in text


def test_other_suffixes_and_no_runs_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match=r"\.html, \.md, \.json, not in '\.pdf'"):
        write_report([make_run()], tmp_path / "report.pdf")
    for suffix in (".html", ".md", ".json"):
        with pytest.raises(EvaluationError, match="nothing to report on"):
            render([], suffix)


def test_only_the_page_needs_the_extra_and_it_says_which():
    program = """
import sys
from fastkernels.errors import EvaluationError
from fastkernels.evaluation.report.render import render
from tests.evaluation.runs import make_run
run = make_run(models={"m": "llm"}, rounds=3)
for missing in ("plotly", "jinja2"):
    sys.modules[missing] = None
    assert render([run], ".md") and render([run], ".json")
    try:
        render([run], ".html")
    except EvaluationError as error:
        assert "pip install 'fastkernels[report]'" in str(error) and missing in str(error), error
    else:
        raise SystemExit(f"rendered without {missing}")
    del sys.modules[missing]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_models_named_alike_are_told_apart():
    run = make_run(models={"m": "llm"})
    twin = run.models[0].model_copy(update={"dtype": "float16"})
    text = render([run.model_copy(update={"models": [run.models[0], twin]})], ".md")
    assert "## m bfloat16 tp1" in text
    assert "## m float16 tp1" in text


def test_all_models_of_the_factory_are_sections():
    assert {s.title for s in view([make_run()]).sections} >= set(MODELS)
