"""History: the runs of a candidate in order, and no difference inside the noise called a change."""

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.lineage.history import history
from fastkernels.evaluation.lineage.mlflow_store import log_run
from tests.evaluation.runs import VERSIONS, make_run

BGE = {"bge-m3": "embedding"}


def day(number):
    return f"2026-11-{number:02}T10:00:00+00:00"


@pytest.fixture
def write(tmp_path):
    def write(number, **how):
        run = make_run(**({"models": BGE, "date": day(number), "seed": number} | how))
        (tmp_path / run.id).mkdir()
        (tmp_path / run.id / "result.json").write_text(run.model_dump_json())
        return run

    return write


def told(rows):
    return [row.told() for row in rows]


def test_rows_are_oldest_first_and_a_change_has_its_size(tmp_path, write):
    write(3, speedup=1.3)
    write(1, speedup=1.1)
    rows = history(tmp_path)
    assert [row.date for row in rows] == [day(1), day(3)]
    assert rows[1].before == rows[0].id
    assert rows[1].apart and rows[1].difference == pytest.approx(1.3 / 1.1 - 1, abs=0.02)
    assert told(rows) == ["first", f"{rows[1].difference:+.1%}"]


def test_equal_candidates_never_show_a_change(tmp_path, write):
    for number in range(1, 15):
        write(number)
    assert set(told(history(tmp_path))) == {"first", "none beyond noise"}


def test_a_difference_as_large_as_the_a_a_noise_is_no_change_even_between_tight_intervals(tmp_path, write):
    runs = [make_run(models=BGE, date=day(n), noise=0.0001, speedup=s, seed=n) for n, s in ((1, 1.2), (2, 1.21))]
    for loud in (False, True):
        for run in runs:
            run.models[0].workloads[0].noise.value = 1.02 if loud else 1.0
            (tmp_path / f"{run.date}.{loud}").mkdir()
            (tmp_path / f"{run.date}.{loud}" / "result.json").write_text(run.model_dump_json())
        assert history(tmp_path)[1].apart is not loud


def test_failing_and_coming_back_are_changes(tmp_path, write):
    write(1)
    write(2, failed=("bge-m3",))
    write(3, failed=("bge-m3",))
    write(4)
    assert told(history(tmp_path)) == ["first", "down to 0", "none beyond noise", "up from 0"]


@pytest.mark.parametrize(
    "other",
    [
        {"scenario": "full"},
        {"device": "NVIDIA H100"},
        {"protocol": 2},
        {"candidates": "mine"},
        {"models": BGE | {"vit-base": "vision"}},
        {"settings": {"rounds": "12", "seed": "0", "scenario digest": "ab"}},
        {"settings": {"rounds": "12", "seed": "0", "lowering": "opaque"}},
    ],
    ids=lambda o: " ".join(map(str, next(iter(o.items())))),
)
def test_only_runs_under_equal_conditions_are_compared(tmp_path, write, other):
    write(1)
    write(2, **other)
    write(3, versions=VERSIONS | {"torch": "9"})
    first, second, third = history(tmp_path)
    assert (first.before, second.before, third.before) == (None, None, first.id)
    assert third.versions["torch"] == "9"


def test_a_candidate_is_chosen_by_name_or_by_digest(tmp_path, write):
    write(1, digests={"rms_norm": "a1" * 32, "silu": "0f" * 32})
    write(2, digests={"rms_norm": "b2" * 32}, candidates="mine")
    rows = history(tmp_path)
    assert [r.date for r in history(tmp_path, candidate="mine")] == [day(2)]
    assert [r.date for r in history(tmp_path, candidate="0f0f0f")] == [day(1)]
    assert [r.date for r in history(tmp_path, candidate=rows[1].digest)] == [day(2)]
    assert [r.date for r in history(tmp_path, scenario="default")] == [day(1), day(2)]


@pytest.mark.parametrize("asked", [{"candidate": "nobody"}, {"candidate": ""}, {"scenario": "full"}])
def test_no_match_says_what_there_is(tmp_path, write, asked):
    write(1)
    with pytest.raises(EvaluationError, match=r"no run matches --\w+ .*There are: shipped \(\w{12}\) in default"):
        history(tmp_path, **asked)


def test_a_copy_of_a_run_is_no_second_run(tmp_path, write):
    run = write(1)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/result.json").write_text(run.model_dump_json())
    assert len(history(tmp_path)) == 1


def test_a_folder_s_name_on_two_hosts_is_two_runs(tmp_path, write):
    run = write(1)
    (tmp_path / "other").mkdir()
    run.machine.host = "other"
    (tmp_path / "other/result.json").write_text(run.model_dump_json())
    assert len(history(tmp_path)) == 2


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="no evaluation there"):
        history(tmp_path)
    with pytest.raises(EvaluationError, match="no such folder"):
        history(tmp_path / "none")


def test_a_broken_result_is_named(tmp_path, write):
    write(1)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"result\.json is not a result"):
        history(tmp_path)


def test_a_folder_its_mlflow_store_and_its_file_tell_the_same(tmp_path_factory, tmp_path, write):
    pytest.importorskip("mlflow")
    store = tmp_path_factory.mktemp("store")
    for number, speedup in ((1, 1.2), (2, 1.2), (3, 1.5)):
        log_run(write(number, speedup=speedup), tmp_path, uri=f"sqlite:///{store}/mlflow.db")
    assert history(tmp_path) == history(f"sqlite:///{store}/mlflow.db") == history(store / "mlflow.db")
