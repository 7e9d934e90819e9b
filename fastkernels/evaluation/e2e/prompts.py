"""Prompts without a network: a packaged set of our own writing, a user's file, and token ids of fixed lengths."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastkernels.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGED_TEXTS = Path(__file__).parent / "packaged" / "texts.txt"
RESERVED_IDS = 16  # the first ids of a vocabulary are often padding and marks of ends, which change what a model does

MOST_TURNS = 256  # of making a row longer; texts of which a tokenizer makes nothing end there


@functools.cache
def packaged_texts() -> tuple[str, ...]:
    """English sentences and paragraphs, written for this project and under its licence.

    >>> len(packaged_texts())
    40
    """
    return texts_from(PACKAGED_TEXTS)


def texts_from(path: Path) -> tuple[str, ...]:
    """A user's prompts, in the file's order: of a .txt each paragraph, of a .jsonl each line's `prompt` or `text`.

    Raises:
        EvaluationError: the file cannot be read, has another suffix or no prompt, or a line has neither field.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise EvaluationError(f"texts {path}: a {path.suffix or 'file without suffix'}. Give a .txt or a .jsonl.")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"texts {path}: cannot be read: {error}") from None
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
        texts = [_prompt_of(path, number, line) for number, line in lines]
    else:
        paragraphs = "\n".join(line.rstrip() for line in content.split("\n")).split("\n\n")
        texts = [" ".join(p.split()) for p in paragraphs if p.strip()]
    if not texts:
        raise EvaluationError(f"texts {path}: no prompt in it.")
    return tuple(texts)


def tokenise(
    texts: tuple[str, ...], tokenizer_folder: str | Path | None, vocab_size: int, length: int, count: int, seed: int
) -> Tensor:
    """Token ids of fixed length, no two rows from the same place in the texts.

    A row begins with another text than the rows before it and goes on with texts drawn at random until it is full, then
    it is cut; marks that the tokenizer adds (a beginning, a separator) are inside the length, so no row needs padding.

    Args:
        texts: none means random ids.
        tokenizer_folder: None means random ids, within the vocabulary and above its first ids.

    Returns:
        (count, length) int64, on the CPU; the same for the same arguments.

    Raises:
        EvaluationError: the tokenizer cannot be read, or has ids that the vocabulary has not.
    """
    if tokenizer_folder is None or not texts:
        low = min(RESERVED_IDS, vocab_size // 2)
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, vocab_size, (count, length), generator=generator)
    tokenizer = _tokenizer(Path(tokenizer_folder))
    rng = random.Random(seed)
    first = rng.sample(range(len(texts)), len(texts))
    rows = [_row(tokenizer, texts, first[i % len(texts)], i // len(texts), length, rng) for i in range(count)]
    ids = torch.tensor(rows, dtype=torch.int64)
    if ids.max() >= vocab_size:
        raise EvaluationError(
            f"{tokenizer_folder}: its tokenizer gives id {int(ids.max())}, the model's vocabulary has {vocab_size}. "
            "Give the tokenizer of this model."
        )
    return ids


def _row(
    tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], first: int, turn: int, length: int, rng: random.Random
) -> list[int]:
    words = texts[first].split()
    text = " ".join(words[turn % len(words) :])  # from the second turn over the texts, their beginnings differ
    for _ in range(MOST_TURNS):
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        if len(ids) >= length:
            return ids[:length]
        text += " " + " ".join(rng.choices(texts, k=1 + length // 64))
    raise EvaluationError(f"texts: {length} tokens cannot be made of them. Give longer ones.")


@functools.cache
def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise EvaluationError(
            f"{folder}: its tokenizer cannot be read: {str(error).strip().partition(chr(10))[0]}"
        ) from None


def _prompt_of(path: Path, number: int, line: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"texts {path}: line {number}: no JSON: {error}") from None
    found = next((fields[k] for k in ("prompt", "text") if isinstance(fields, dict) and fields.get(k)), None)
    if not isinstance(found, str):
        raise EvaluationError(f"texts {path}: line {number}: no field `prompt` or `text` with a string in it.")
    return found
