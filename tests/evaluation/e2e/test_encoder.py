"""Sentence embeddings and scores of pairs: what is drawn, pooled and measured."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.families.draws import Request, position_limit
from fastkernels.evaluation.e2e.families.encoder import ITEMS, Embedding, Recommendation
from fastkernels.evaluation.e2e.families.registry import family_of
from fastkernels.evaluation.e2e.prompts import packaged_texts
from tests.evaluation.e2e.tiny import TINY, minilm, tiny


def request(**changes) -> Request:
    return Request(**({"rows": 4, "tokens": 24, "size": (), "seed": 1, "texts": ()} | changes))


@pytest.fixture(scope="module")
def encoder():
    return minilm()


def test_both_families_are_found_by_their_workloads():
    for family, name in ((Embedding, "Embedding.single"), (Recommendation, "Recommendation.rank")):
        assert isinstance(family_of(name), family)
        assert name in family().default_workloads()


def test_sentences_are_text_with_the_tokenizers_marks_at_both_ends(encoder):
    inputs = Embedding().draw(encoder, request(rows=6, texts=packaged_texts()))
    tokenizer = AutoTokenizer.from_pretrained(encoder.name_or_path)
    lengths = inputs["attention_mask"].sum(1)
    last = inputs["input_ids"].gather(1, lengths.unsqueeze(1) - 1)
    assert (inputs["input_ids"][:, 0] == tokenizer.cls_token_id).all() and (last == tokenizer.sep_token_id).all()
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    assert lengths.max() == 24 and lengths.min() < 18
    words = set(" ".join(packaged_texts()).lower().split())
    assert sum(word in words for word in tokenizer.decode(inputs["input_ids"][0][1:8]).split()) >= 3


def test_an_embedding_is_the_mean_of_the_sentences_own_tokens(encoder):
    case = tiny(Embedding(), lambda: encoder)
    answer = case.session(encoder, texts=packaged_texts()).answer()
    torch.testing.assert_close(answer["embedding"].norm(dim=1), torch.ones(4))
    inputs = Embedding().draw(encoder, request(rows=4, tokens=16, texts=packaged_texts()))
    short = int(inputs["attention_mask"][1].sum())
    assert short < 16
    with torch.inference_mode():
        whole = Embedding().read(encoder, inputs, encoder(**inputs))["pooled"][1]
        alone = encoder(inputs["input_ids"][1:2, :short]).last_hidden_state.mean(1)[0]
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


def test_a_candidate_that_ignores_the_mask_is_far_off():
    case = TINY["bert"]
    model = case.model()
    right = case.session(model).answer()
    own = model.forward
    model.forward = lambda input_ids, attention_mask: own(input_ids)
    wrong = case.session(model).answer()
    assert case.family.distances(wrong, right)["relative l2"].value > 0.02


def test_pairs_share_a_query_and_rank_items():
    case = TINY["cross-encoder"]
    inputs = case.family.draw(case.model(), request(rows=ITEMS + 4))
    ids = inputs["input_ids"]
    assert (ids[:ITEMS, :6] == ids[0, :6]).all() and (ids[ITEMS:, :6] != ids[0, :6]).any()
    assert len(ids[:ITEMS, 6:12].unique(dim=0)) == ITEMS
    assert (inputs["token_type_ids"][0] == (torch.arange(24) >= 6)).all()
    assert case.session(case.model(), check_size=ITEMS + 4).answer()["score"].shape == (ITEMS + 4,)


def test_distances_follow_scores_and_ranks():
    scores = torch.linspace(-1, 1, 2 * ITEMS)
    same = Recommendation().distances({"score": scores}, {"score": scores})
    twice = Recommendation().distances({"score": 2 * scores}, {"score": scores})
    back = Recommendation().distances({"score": -scores}, {"score": scores})
    assert [d.value for d in same.values()] == [0, 0, 0]
    assert twice["score relative l2"].value == pytest.approx(1) and twice["rank correlation"].value == 0
    assert back["rank correlation"].shown == -1 and back["top-5 overlap"].shown == 0


def test_a_sentence_is_not_its_own_neighbour():
    angles = torch.tensor([0.0, 0.1, 1.0, 1.2])
    moved = torch.tensor([0.0, 0.6, 1.0, 1.2])
    one, two = ({"embedding": torch.stack([a.cos(), a.sin()], 1), "pooled": a[:, None]} for a in (angles, moved))
    assert Embedding().distances(one, one)["nearest neighbour"].value == 0
    assert Embedding().distances(two, one)["nearest neighbour"].value == 0.25
    with pytest.raises(EvaluationError, match="check_size of 2"):
        Embedding().distances({k: v[:1] for k, v in one.items()}, {k: v[:1] for k, v in one.items()})


def test_more_tokens_than_positions_are_refused(encoder):
    with pytest.raises(EvaluationError, match="600 input tokens, BertModel has 512 positions"):
        Embedding().draw(encoder, request(tokens=600))
    assert position_limit(encoder) == 512


def test_a_model_without_hidden_states_is_refused_by_name():
    case = TINY["cross-encoder"]
    with pytest.raises(EvaluationError, match="returned logits, none of last_hidden_state"):
        tiny(Embedding(), case.build).session(case.model()).answer()
