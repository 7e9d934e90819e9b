"""What an engine is asked in a pass, and what is made of its times: on an engine that needs a second a token."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.engine import Engine, Response, scores_of
from fastkernels.evaluation.e2e.engines.family import EngineLLM
from fastkernels.evaluation.e2e.engines.session import EngineSession
from fastkernels.evaluation.e2e.families.prompt_stream import PromptStream
from fastkernels.evaluation.e2e.workload import Workload

VOCABULARY = 50


class Counting(Engine):
    """The next token is one more than the last."""

    can_force = True

    def __init__(self, *, short=0):
        self.short, self.asked = short, []

    def serve(self, requests):
        self.asked.append(list(requests))
        counts = [r.count - (self.short if i == len(requests) - 1 else 0) for i, r in enumerate(requests)]
        return [
            Response(
                tokens=[(r.prompt[-1] + 1 + i) % VOCABULARY for i in range(count)],
                times=[r.at + 1.0 + i for i in range(count)],
            )
            for r, count in zip(requests, counts, strict=True)
        ]

    def _place(self, last, wanted, k):
        best = [((last + 1 + i) % VOCABULARY, -0.1 - i) for i in range(k)]
        rank = (wanted - last - 1) % VOCABULARY
        return best, (-0.1 - rank, rank + 1)

    def score(self, texts, k):
        found = []
        for text in texts:
            places = [self._place(a, b, k) for a, b in itertools.pairwise(text)]
            found.append(scores_of([p for p, _ in places], [t for _, t in places], k))
        return found

    def score_steps(self, texts, k):
        places = [self._place(text[-1], text[-1], k) for text in texts]
        return [scores_of([place], [target], k) for place, target in places]

    def call(self, verb):
        return []

    def close(self):
        pass


def session(engine):
    prompts = PromptStream(texts=(), folder="", vocabulary=VOCABULARY, seed=3)
    return EngineSession(engine, prompts=prompts, vocabulary=VOCABULARY, seed=3, check_size=2)


FIXED = Workload(name="LLM.mixed", batch=2, requests=5, input_tokens=(8, 12), output_tokens=4)
ARRIVALS = Workload(name="LLM.arrivals", batch=4, requests=200, input_tokens=(8,), output_tokens=4, rate=10.0)


def test_a_batch_comes_at_once_and_the_next_when_it_is_done():
    engine = Counting()
    served = session(engine).serve(FIXED)
    assert [len(batch) for batch in engine.asked] == [2, 2, 1]
    assert [len(r.prompt) for batch in engine.asked for r in batch] == [8, 8, 12, 12, 8]
    assert all(r.at == 0 for batch in engine.asked for r in batch)
    assert (served.latency_ms, served.elapsed_ms) == ((4000.0, 4000.0, 4000.0), None)
    assert served.ttft_ms == 5 * (1000.0,) and served.tpot_ms == 5 * (1000.0,)
    assert served.outputs["tokens"].shape == (5, 4) and served.tokens == 20


def test_arrivals_are_a_poisson_process_the_same_in_every_arm_and_others_in_every_pass():
    one, two = Counting(), Counting()
    arms = session(one), session(two)
    for arm in arms:
        arm.serve(ARRIVALS)
        arm.serve(ARRIVALS)
    ats = [[r.at for r in batch] for batch in one.asked]
    assert ats == [[r.at for r in batch] for batch in two.asked]
    assert ats[0] != ats[1] and ats[0] == sorted(ats[0])
    assert 0.7 < ats[0][-1] / (200 / 10) < 1.3


def test_latency_counts_from_the_arrival_and_the_pass_from_its_start():
    engine = Counting()
    served = session(engine).serve(ARRIVALS)
    last = engine.asked[0][-1].at
    assert served.latency_ms == pytest.approx(200 * [4000.0])
    assert served.ttft_ms == pytest.approx(200 * [1000.0])
    assert served.elapsed_ms == pytest.approx(4000.0 + 1000 * last)


def test_fewer_tokens_than_asked_for_are_an_error():
    with pytest.raises(EvaluationError, match=r"LLM\.mixed: the engine emitted 3 of 4 tokens for request 2 of 5"):
        session(Counting(short=1)).serve(FIXED)


def test_second_choices_are_implausible_where_the_engine_is_sure_of_the_first():
    served = session(Counting()).serve(FIXED).outputs
    assert EngineLLM().plausible(session(Counting()), FIXED, served)[0] == 1.0
    second = {**served, "tokens": (served["tokens"] + 1) % VOCABULARY}
    share, told = EngineLLM().plausible(session(Counting()), FIXED, second)
    assert share < 0.8, told  # only the first of them is a second choice: the others follow it
    late = served["tokens"].clone()
    late[:, 2:] += 5
    assert EngineLLM().plausible(session(Counting()), FIXED, {**served, "tokens": late % VOCABULARY})[0] < 0.8


def test_near_ties_are_plausible_by_the_engines_own_noise():
    """Second choices are 1 below the first: within four times 0.25, and not within four times 0.2."""
    work = FIXED.model_copy(update={"output_tokens": 1})
    served = session(Counting()).serve(work).outputs
    second = {**served, "tokens": (served["tokens"] + 1) % VOCABULARY}
    judge = session(Counting())
    for noise, share in ((0.2501, 1.0), (0.2, 0.0)):
        judge.noise = noise
        assert EngineLLM().plausible(judge, work, second)[0] == share


def test_the_noise_is_the_distance_to_the_oracle_of_all_but_few_places():
    answer = session(Counting()).answer()
    other = dict(answer)
    other["step_top_logprobs"] = answer["step_top_logprobs"] + 0.25
    assert EngineLLM().noise(answer, answer) == 0.0
    assert EngineLLM().noise(other, answer) == pytest.approx(0.25)  # 16 of 144 places
    other["step_top_logprobs"] = answer["step_top_logprobs"].clone()
    other["step_top_logprobs"][0, 0] += 9.0
    assert EngineLLM().noise(other, answer) == 0.0


def test_an_answer_has_the_places_that_the_oracle_answers_for():
    answer = session(Counting()).answer()
    assert answer["prompt_top_ids"].shape == (2, 64, 20) and answer["step_top_ids"].shape == (2, 8, 20)
    text = session(Counting())._prompts.tokens(97, 2)
    assert torch.equal(answer["prompt_targets"], text[:, 33:97])
    assert torch.equal(answer["prompt_top_ids"][..., 0], (text[:, 32:96] + 1) % VOCABULARY)
    assert torch.equal(answer["step_top_ids"][..., 0], (text[:, 64:96:4] + 1) % VOCABULARY)
