"""Prompts: the packaged ones, a user's, and what becomes of them as token ids."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.prompts import packaged_texts, texts_from, tokenise
from fastkernels.evaluation.e2e.source import CHECKOUT

LLAMA = CHECKOUT / "models" / "stdlib-llama"


def test_packaged_texts_are_many_short_and_long_and_no_two_alike():
    texts = packaged_texts()
    lengths = sorted(len(t.split()) for t in texts)
    assert len(set(texts)) == len(texts) == 40
    assert lengths[20] < 30 and lengths[-12] > 80


def test_a_txt_is_its_paragraphs_and_a_jsonl_its_fields(tmp_path):
    txt, jsonl = tmp_path / "a.txt", tmp_path / "a.jsonl"
    txt.write_text("first line\nof one\n \nsecond\n\n\n")
    jsonl.write_text('{"prompt": "one", "text": "no"}\n\n{"text": "two\\nlines"}\n')
    assert texts_from(txt) == ("first line of one", "second")
    assert texts_from(jsonl) == ("one", "two\nlines")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "x", "a .csv"),
        ("a.txt", "\n \n", "no prompt"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.jsonl", '{"text": "x"}\nnot json', "line 2"),
        ("a.jsonl", '{"text": 3}', "line 1"),
        ("a.jsonl", json.dumps(["text"]), "line 1"),
        ("gone.txt", None, "cannot be read"),
    ],
)
def test_texts_that_cannot_be_used_are_told(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(EvaluationError, match=said):
        texts_from(tmp_path / name)


@pytest.mark.parametrize("length", [1, 5, 128, 700])
def test_rows_have_the_length_and_are_real_tokens_of_the_texts(length):
    ids = tokenise(packaged_texts(), LLAMA, 4096, length, 3, seed=1)
    assert ids.shape == (3, length) and ids.dtype == torch.int64
    if length >= 128:
        read = AutoTokenizer.from_pretrained(LLAMA).decode(ids[0], skip_special_tokens=True)
        assert any(t[:40] in read for t in packaged_texts())


def test_the_same_arguments_give_the_same_rows_and_rows_differ():
    first, again = (tokenise(packaged_texts(), LLAMA, 4096, 12, 90, seed=5) for _ in range(2))
    assert torch.equal(first, again)
    assert len({tuple(row) for row in first.tolist()}) == 90
    assert not torch.equal(first, tokenise(packaged_texts(), LLAMA, 4096, 12, 90, seed=6))


@pytest.mark.parametrize(("texts", "folder"), [(("hello",), None), ((), LLAMA)])
def test_without_texts_or_a_tokenizer_ids_are_random_within_the_vocabulary(texts, folder):
    ids = tokenise(texts, folder, 50, 400, 3, seed=2)
    assert ids.shape == (3, 400) and ids.min() >= 16 and ids.max() == 49
    assert torch.equal(ids, tokenise(texts, folder, 50, 400, 3, seed=2))
    assert not torch.equal(ids, tokenise(texts, folder, 50, 400, 3, seed=3))


def test_a_tokenizer_of_another_model_is_an_error():
    with pytest.raises(EvaluationError, match="vocabulary has 100"):
        tokenise(packaged_texts(), LLAMA, 100, 16, 2, seed=0)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(EvaluationError, match="tokenizer cannot be read"):
        tokenise(packaged_texts(), tmp_path, 100, 16, 2, seed=0)
