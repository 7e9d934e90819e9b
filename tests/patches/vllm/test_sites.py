"""Real vLLM engines: which sites each architecture has, and that patched ones answer as before, through candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from fastkernels.errors import PatchError
from fastkernels.patches.dispatch import dispatchers
from fastkernels.patches.site import Site
from tests.engines.offline_vllm import Offline
from tests.patches.vllm.engines import TASKS, WRONG, Answer, drift, found, ours, patched, tiny_engine, tokens

pytestmark = pytest.mark.engine
pytest.importorskip("vllm")

ATTENTION = {("attention", "gated"): 2, ("rotary_emb", "open"): 1, ("embedding", "open"): 1}
DENSE = {("silu_and_mul", "open"): 2, ("gated_mlp", "open"): 2, ("linear", "open"): 2 * 4 + 1}  # and the logits
SPARSE = {("fused_experts", "open"): 2, ("shared_expert_moe", "open"): 2, ("linear", "open"): 2 * 3 + 1}
# Of the two layers of each: every site, by task.
SITES = {
    "llama": ATTENTION | DENSE | {("rms_norm", "open"): 2 * 2 + 1},
    "qwen3": ATTENTION | DENSE | {("rms_norm", "open"): 2 * 4 + 1},
    "gemma2": ATTENTION
    | {("gelu_and_mul", "open"): 2, ("gated_mlp", "open"): 2, ("linear", "open"): 2 * 4 + 1}
    | {("gemma_rms_norm", "open"): 2 * 4 + 1},
    "mixtral": ATTENTION | SPARSE | {("rms_norm", "open"): 2 * 2 + 1},
    "qwen3_moe": ATTENTION | SPARSE | {("rms_norm", "open"): 2 * 4 + 1},
}


@pytest.fixture(scope="module", params=SITES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Offline]]:
    with tiny_engine(request.param, tmp_path_factory.mktemp(request.param)) as engine:
        yield request.param, engine


@pytest.fixture(scope="module")
def before(engine: tuple[str, Offline]) -> Answer:
    return engine[1].generate()


def test_the_sites_of_an_architecture_are_found_each_and_no_other(engine: tuple[str, Offline]) -> None:
    name, offline = engine
    with patched(offline) as handle:
        assert found(handle) == Counter(SITES[name])
        unrecognised = [u for u in handle.report.unrecognised if u.task in TASKS]
        assert not unrecognised


def test_outermost_candidates_answer_as_the_engine_does_and_every_one_is_called(
    engine: tuple[str, Offline], before: Answer
) -> None:
    offline = engine[1]
    with patched(offline) as handle:
        after = offline.generate()
        applied = [s for s in handle.report.applied if s.inside is None]
        assert tokens(after) == tokens(before) and drift(after, before) < 1e-3
        assert {s.path for s in applied} == set(handle.dispatchers)
        assert [s.path for s in applied if s.calls == 0 or s.bypassed] == []


def test_each_task_alone_answers_as_the_engine_does_and_is_called(engine: tuple[str, Offline], before: Answer) -> None:
    name, offline = engine
    for task in sorted({task for task, state in SITES[name] if state == "open"}):

        def alone(site: Site, task: str = task) -> bool:
            return site.task.name == task

        with patched(offline, select=alone) as handle:
            after = offline.generate()
            applied = handle.report.applied
            assert len(applied) == SITES[name][task, "open"], task
            assert tokens(after) == tokens(before) and drift(after, before) < 1e-3, task
            assert [s.path for s in applied if s.calls == 0 or s.bypassed] == [], task


def test_unpatching_leaves_the_engine_as_it_was(engine: tuple[str, Offline], before: Answer) -> None:
    offline = engine[1]
    slots = {path: dict(vars(part)) for path, part in offline.model.named_modules()}
    with patched(offline):
        assert list(dispatchers(offline.model))
    assert not list(dispatchers(offline.model))
    for path, part in offline.model.named_modules():
        assert vars(part).keys() == slots[path].keys()
        assert all(vars(part)[name] is value for name, value in slots[path].items())
    assert offline.generate() == before


def test_a_wrong_norm_is_refused_and_without_verification_changes_the_tokens(
    engine: tuple[str, Offline], before: Answer
) -> None:
    offline = engine[1]
    task = "gemma_rms_norm" if engine[0] == "gemma2" else "rms_norm"
    wrong = {task: WRONG[task]}
    with pytest.raises(PatchError, match=r"norm .*is off by"), patched(offline, wrong):
        pass
    assert not list(dispatchers(offline.model))
    with patched(offline, wrong, verify=False):
        assert tokens(offline.generate()) != tokens(before)
    assert offline.generate() == before


def test_shipped_candidates_answer_as_the_engine_does(engine: tuple[str, Offline], before: Answer) -> None:
    offline = engine[1]
    with patched(offline, "shipped") as handle:
        after = offline.generate()
        applied = handle.report.applied
        assert tokens(after) == tokens(before) and drift(after, before) < 1e-3
        assert applied and all(s.calls for s in applied)


def test_identity_candidates_run_the_engine_itself(engine: tuple[str, Offline], before: Answer) -> None:
    offline = engine[1]
    with patched(offline, "identity", select=ours) as handle:
        assert offline.generate() == before
        assert all(d.calls for d in handle.dispatchers.values())
