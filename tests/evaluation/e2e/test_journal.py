"""Records survive a kill at any byte, and are never mixed with those of another evaluation."""

from __future__ import annotations

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.journal import Block, Journal


def block(number, *, rejected=""):
    return Block(
        workload="LLM.mixed",
        round=number // 6,
        visit=number % 6,
        arm="baseline",
        passes=1,
        seconds=0.1,
        requests=1,
        tokens=4,
        latency_ms=[100.0],
        rejected=rejected,
    )


def written(file, count):
    journal = Journal(file)
    journal.begin({"entry": "a"})
    for number in range(count):
        journal.append(block(number))
    return journal


def test_a_writer_killed_at_any_byte_of_a_record_loses_that_record_only(tmp_path):
    file = tmp_path / "records.jsonl"
    written(file, 3)
    whole = file.read_bytes()
    second = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(second, len(whole)):
        file.write_bytes(whole[:cut])
        journal = Journal(file)
        assert list(journal.blocks()) == [("LLM.mixed", 0, 0), ("LLM.mixed", 0, 1)]
        journal.append(block(2))
        assert file.read_bytes() == whole


def test_a_record_that_is_spoilt_in_the_middle_is_an_error_that_names_its_line(tmp_path):
    file = tmp_path / "records.jsonl"
    written(file, 3)
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:-9]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(EvaluationError, match=r"records\.jsonl, line 3 .* --out"):
        Journal(file)


def test_records_of_another_evaluation_are_not_continued(tmp_path):
    file = tmp_path / "records.jsonl"
    written(file, 1)
    Journal(file).begin({"entry": "a"})
    with pytest.raises(EvaluationError, match="entry: a then, b now"):
        Journal(file).begin({"entry": "b"})


def test_a_rejected_block_is_kept_and_does_not_count(tmp_path):
    journal = written(tmp_path / "records.jsonl", 1)
    journal.append(block(1, rejected="throttled"))
    journal.append(block(1))
    again = Journal(journal.file)
    assert len(again.blocks()) == 2
    assert [b.visit for b in again.rejected()] == [1]
