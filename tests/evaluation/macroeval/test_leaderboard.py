"""Leaderboards: best first, over the same models, with ties and overlaps said."""

from fastkernels.evaluation.macroeval.leaderboard import MISSING, leaderboard
from tests.evaluation.runs import make_run

BOTH = {"llama-8b": "llm", "bge-m3": "embedding"}
ONE = {"llama-8b": "llm"}


def run(name, **how):
    return make_run(**({"models": BOTH} | how), candidates=name, digests={"rms_norm": name * 8})


def test_sets_are_ranked_by_score():
    board = leaderboard([run("slow", speedup=1.1), run("fast", speedup=1.4), run("middle", speedup=1.2)])
    assert [(s.rank, s.score.candidates) for s in board.standings] == [(1, "fast"), (2, "middle"), (3, "slow")]
    assert not any(s.tied or s.overlaps or s.missing for s in board.standings)


def test_overlapping_intervals_are_marked_on_both_sides():
    board = leaderboard([run("a", noise=0.05), run("b", noise=0.05, seed=1), run("c", speedup=2.0)])
    assert board.standings[0].score.candidates == "c"
    assert [s.overlaps for s in board.standings] == [[], [3], [2]]
    assert board.text().count("not told apart from") == 2


def test_equal_scores_share_a_rank_and_are_marked():
    board = leaderboard([run("a", failed=("bge-m3",)), run("b", failed=("llama-8b",), seed=1), run("c")])
    assert [(s.rank, s.tied) for s in board.standings] == [(1, False), (2, True), (2, True)]


def test_a_model_missing_in_one_set_counts_as_zero_there():
    board = leaderboard([run("partial", models=ONE, speedup=9.0), run("whole")])
    assert [s.score.candidates for s in board.standings] == ["whole", "partial"]
    partial = board.standings[1]
    assert (partial.missing, partial.score.score.value, partial.score.Cov) == (1, 0, 0.5)
    assert partial.score.models[1].reason == MISSING
    assert "not evaluated, counted as 0: 1" in board.text()


def test_runs_of_one_set_are_merged_first():
    parts = [run("a", models=ONE), run("a", models={"bge-m3": "embedding"}, seed=1)]
    [standing] = leaderboard(parts).standings
    assert (standing.missing, standing.score.Cov) == (0, 1)


def test_a_forced_mix_is_said_in_the_score():
    board = leaderboard([run("a"), run("b", device="NVIDIA H100", seed=1)], force=True)
    assert all("device (NVIDIA H200 and NVIDIA H100)" in note for s in board.standings for note in s.score.notes)
