"""The language model family, on a small model with real weights: what it times, judges and does not let pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.calibration import judge
from fastkernels.evaluation.e2e.families.family import Mode
from fastkernels.evaluation.e2e.families.llm import LLM, PAD, LLMSession
from fastkernels.evaluation.e2e.families.registry import family_of
from fastkernels.evaluation.e2e.perturb import CONTROL, int8_round_trip, perturb
from fastkernels.evaluation.e2e.workload import Workload
from tests.conftest import tiny_llama

FOLDER = Path(__file__).parents[3] / "models" / "stdlib-llama"
TEXTS = tuple((FOLDER / "heldout.txt").read_text().split("\n\n"))
MIXED = Workload(name="LLM.mixed", batch=2, requests=5, input_tokens=(12, 20), output_tokens=16)


def real(dtype: torch.dtype, **how: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype, **how)


def session(
    model: nn.Module, *, mode: Mode = "eager", backend: str = "eager", texts: Any = TEXTS, check_size: int = 8
) -> LLMSession:
    return LLM().session(model, mode=mode, backend=backend, seed=1, texts=texts, check_size=check_size)


@pytest.fixture
def fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# -- what is timed -----------------------------------------------------------------------------------------------------


def test_a_pass_gives_every_request_its_tokens_and_every_time() -> None:
    served = session(tiny_llama(), texts=()).serve(MIXED)
    assert (served.requests, served.tokens, served.steps) == (5, 80, 3 * 16)
    assert served.outputs["tokens"].shape == (5, 16)
    assert [(row != PAD).sum().item() for row in served.outputs["prompts"]] == [12, 12, 20, 20, 12]
    assert (len(served.latency_ms), len(served.ttft_ms), len(served.tpot_ms)) == (3, 3, 3 * 15)
    assert all(0 < first < whole for first, whole in zip(served.ttft_ms, served.latency_ms, strict=True))
    assert sum(served.ttft_ms) + sum(served.tpot_ms) <= sum(served.latency_ms)


def test_tokens_are_those_of_greedy_generation() -> None:
    model = real(torch.float32)
    served = session(model).serve(MIXED)
    for prompt, tokens in zip(served.outputs["prompts"], served.outputs["tokens"], strict=True):
        ids = prompt[prompt != PAD].unsqueeze(0)
        wanted = model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=None)
        assert torch.equal(wanted[0, ids.shape[1] :], tokens)


def test_prompts_differ_from_pass_to_pass_and_not_from_arm_to_arm() -> None:
    one, two = session(tiny_llama(), texts=()), session(tiny_llama(), texts=())
    passes = [one.serve(MIXED).outputs["prompts"] for _ in range(3)]
    assert not torch.equal(passes[0], passes[1])
    assert all(torch.equal(prompts, two.serve(MIXED).outputs["prompts"]) for prompts in passes)


def test_one_token_is_a_prefill_alone() -> None:
    served = session(tiny_llama(), texts=()).serve(MIXED.model_copy(update={"output_tokens": 1}))
    assert served.tpot_ms == ()
    assert served.outputs["tokens"].shape == (5, 1)


def test_too_long_a_request_says_how_long_the_model_goes() -> None:
    workload = MIXED.model_copy(update={"input_tokens": (120,)})
    with pytest.raises(EvaluationError, match=r"LLM\.mixed: 136 tokens a request, LlamaForCausalLM has 128 positions"):
        session(tiny_llama(), texts=()).serve(workload)


def test_every_length_of_a_default_workload_is_served() -> None:
    for workload in LLM().default_workloads().values():
        assert workload.requests >= workload.batch * len(workload.input_tokens)


class Spoiled(nn.Module):
    """In lm_head's place: its output, changed by a function after some calls."""

    def __init__(self, head: nn.Module, spoil: Any, after: int = 0) -> None:
        super().__init__()
        self.head, self.spoil, self.after, self.calls = head, spoil, after, 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        out = self.head(hidden)
        return self.spoil(out) if self.calls > self.after else out


def spoiled(model: nn.Module, spoil: Any, after: int = 0) -> nn.Module:
    model.lm_head = Spoiled(model.lm_head, spoil, after)
    return model


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda x: x[:1],
            r"LLM.mixed: LlamaForCausalLM emitted 1 of 2 rows: asked for \(2, 1, 101\), got \(1, 1, 101\)",
        ),
        (lambda x: x[..., :50], r"emitted logits of shape \(2, 1, 50\)"),
        (lambda x: x[:, :0], r"emitted logits of shape \(2, 0, 101\)"),
        (lambda x: x / 0, "LLM.mixed: the model's logits are not finite at 32 of 32 tokens"),
        (lambda x: torch.where(torch.arange(101) == 7, torch.nan, x), "not finite"),
    ],
)
def test_a_model_that_emits_less_or_no_numbers_is_an_error(spoil: Any, reason: str) -> None:
    with pytest.raises(EvaluationError, match=reason):
        session(spoiled(tiny_llama(), spoil), texts=()).serve(MIXED)


def test_a_prefill_of_a_patched_model_computes_no_more_logits_than_an_unpatched_ones() -> None:
    import fastkernels

    rows = []
    for patched in (False, True):
        model = tiny_llama()
        if patched:
            fastkernels.patch(model, "shipped")
        model.lm_head.register_forward_hook(lambda _, args, out: rows.append(out.shape[1]))
        session(model, texts=()).serve(MIXED.model_copy(update={"output_tokens": 1}))
    assert rows == 6 * [1]


# -- compiled ----------------------------------------------------------------------------------------------------------


def test_compiled_steps_give_the_eager_answer_and_tokens_and_compile_once(fresh_compiler: None) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    eager, compiled = session(tiny_llama(), texts=()), session(tiny_llama(), mode="default", texts=())
    assert torch.equal(eager.serve(MIXED).outputs["tokens"], compiled.serve(MIXED).outputs["tokens"])
    assert counters["stats"]["unique_graphs"] == 5  # prefill of 2 x 12, 2 x 20, 1 x 12; step of 2 rows and of 1
    assert torch.equal(eager.serve(MIXED).outputs["tokens"], compiled.serve(MIXED).outputs["tokens"])
    assert counters["stats"]["unique_graphs"] == 5
    assert torch.allclose(eager.answer()["logits"], compiled.answer()["logits"], atol=1e-5)


@pytest.mark.slow
def test_inductor_serves_and_is_judged_right(fresh_compiler: None) -> None:
    model = tiny_llama()
    oracle, baseline = session(tiny_llama().double(), texts=()), session(model, texts=())
    compiled = session(model, mode="default", backend="inductor", texts=())
    with perturb(oracle.decoder.model, CONTROL, seed=3):
        control = oracle.answer()
    outputs = {"oracle": oracle.answer(), "baseline": baseline.answer(), "candidate": compiled.answer()}
    found = judge(outputs | {"control": control}, LLM(), mode="default", oracle="")  # type: ignore[operator]  # literals
    assert found.score > 0.9
    assert LLM().plausible(baseline, MIXED, compiled.serve(MIXED).outputs)[0] == 1.0


# -- the answer --------------------------------------------------------------------------------------------------------


def test_forced_decoding_gives_the_logits_of_the_whole_text() -> None:
    model = real(torch.float64)
    one = session(model, check_size=2)
    text = one._tokens(97, 2)
    with torch.inference_mode():
        whole = model(text).logits[:, 56:96]
    answer = one.answer()
    assert answer["logits"].dtype == torch.float64
    assert torch.allclose(answer["logits"], whole, atol=1e-9)
    assert torch.equal(answer["targets"], text[:, 57:97])


def test_an_error_in_decode_steps_alone_is_in_the_answer() -> None:
    """As of an attention that reads the cache wrong, but is right where there is none."""

    def judged(spoil: Any, after: int) -> Any:
        fine = session(spoiled(tiny_llama().double(), lambda x: x), texts=(), check_size=2).answer()["logits"]
        bad = session(spoiled(tiny_llama().double(), spoil, after), texts=(), check_size=2).answer()["logits"]
        return [torch.equal(fine[:, at], bad[:, at]) for at in range(40)]

    assert judged(lambda x: -x, 1) == 8 * [True] + 32 * [False]


# -- calibration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("production", "exact"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)], ids=["fp32", "bf16"]
)
def test_int8_and_one_percent_land_between_the_controls_in_that_order(
    production: torch.dtype, exact: torch.dtype, record_property: Any
) -> None:
    reference, model = real(exact), real(production)
    oracle, baseline = session(reference).answer(), session(model).answer()
    with perturb(reference, CONTROL, seed=3):
        control = session(reference).answer()

    def score(candidate: Any) -> float:
        outputs: Any = {"oracle": oracle, "baseline": baseline, "control": control, "candidate": candidate}
        return judge(outputs, LLM(), mode="eager", oracle="").score

    equal, bad = score(session(model).answer()), score(control)
    with int8_round_trip(model):
        int8 = score(session(model).answer())
    with perturb(model, 0.01, seed=5):
        percent = score(session(model).answer())
    record_property("scores", {"equal": equal, "int8": int8, "1%": percent, "control": bad})
    assert equal == 1.0
    assert 1.0 > int8 > percent > 0.0
    assert bad == 0.0


# -- timed tokens ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpatched() -> LLMSession:
    return session(real(torch.bfloat16))


TIMED = Workload(name="LLM.mixed", batch=4, requests=8, input_tokens=(64, 128), output_tokens=32)


def test_tokens_of_another_rounding_are_plausible(unpatched: LLMSession) -> None:
    for other in (real(torch.bfloat16, attn_implementation="eager"), real(torch.float32)):
        share, told = LLM().plausible(unpatched, TIMED, session(other).serve(TIMED).outputs)
        assert share >= 0.99, told
        assert told["tokens"] == 8 * 32


def test_garbage_is_not_plausible(unpatched: LLMSession) -> None:
    served = session(real(torch.bfloat16))
    before, now = (served.serve(TIMED).outputs for _ in range(2))
    tokens = now["tokens"]
    garbage = {
        "random": torch.randint(4096, tokens.shape, generator=torch.Generator().manual_seed(0)),
        "constant": torch.zeros_like(tokens),
        "of the pass before": before["tokens"],
        "of another request": tokens.roll(1, 0),
    }
    assert LLM().plausible(unpatched, TIMED, now)[0] == 1.0
    for what, wrong in garbage.items():
        share, told = LLM().plausible(unpatched, TIMED, {**now, "tokens": wrong})
        assert share < 0.1, (what, told)


def test_a_model_that_stops_working_after_n_calls_is_found_in_its_timed_tokens(unpatched: LLMSession) -> None:
    served = session(spoiled(real(torch.bfloat16), torch.zeros_like, after=3 * 32))  # in the second pass, a batch in
    shares = [LLM().plausible(unpatched, TIMED, served.serve(TIMED).outputs)[0] for _ in range(3)]
    assert shares[0] == 1.0
    assert shares[1] < 0.6
    assert shares[2] < 0.1


def test_fewer_served_tokens_than_asked_for_are_an_error(unpatched: LLMSession) -> None:
    outputs = dict(session(tiny_llama(), texts=()).serve(MIXED).outputs)
    outputs["tokens"] = outputs["tokens"][:, :9]
    with pytest.raises(EvaluationError, match=r"served tokens of shape \(5, 9\), asked for \(5, 16\)"):
        LLM().plausible(unpatched, MIXED, outputs)


# -- the registry ------------------------------------------------------------------------------------------------------


def test_a_workload_finds_its_family() -> None:
    assert isinstance(family_of("LLM.single_request"), LLM)


def test_an_unknown_family_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(EvaluationError, match=r"workload Weather\.rain: there is no family 'Weather'; .*ASR, .*LLM"):
        family_of("Weather.rain")


def test_no_two_families_claim_a_name() -> None:
    from fastkernels.evaluation.e2e.families.registry import FAMILIES

    names = [name for family in FAMILIES for name in family.names]
    assert len(names) == len(set(names))
    assert all(
        member.partition(".")[0] in family.names for family in FAMILIES for member in family().default_workloads()
    )
