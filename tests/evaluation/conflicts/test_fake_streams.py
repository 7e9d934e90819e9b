"""Stand-ins for CUDA's streams and events tell, without a device, what a capture would not allow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastkernels.evaluation.conflicts.fake_cuda import faked, refusal
from fastkernels.evaluation.conflicts.fake_streams import Streams
from fastkernels.evaluation.conflicts.subject import Subject
from fastkernels.evaluation.conflicts.target import targets_of

CANDIDATES = Path(__file__).parent / "candidates"


def called(name):
    (target,) = targets_of(CANDIDATES / f"{name}.py")
    subject = Subject(candidate=target.load(), device=torch.device("cpu"))
    return subject, next(iter(subject.calls(rows=[8], cases=1)))


def misuses(name):
    return faked(*called(name))[1]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("bad/CG_SYNC__device_synchronize", "wait", "torch.cuda.synchronize()"),
        ("bad_cuda/CG_SYNC__event_query", "wait", "done.query()"),
        ("bad/CG_WRONG_STREAM__own_stream", "wrong", "functional.silu(x)"),
        ("bad_cuda/CG_WRONG_STREAM__no_fork", "wrong", "functional.silu(x)"),
        ("bad_cuda/CG_WRONG_STREAM", "wrong", "functional.silu(x)"),
        ("bad/CG_UNJOINED_STREAM__result_used", "unjoined", "functional.silu(x)"),
        ("bad_cuda/CG_UNJOINED_STREAM", "unjoined", "amax()"),
    ],
)
def test_a_misuse_inside_an_operator_is_predicted_with_its_line(name, kind, words):
    found = misuses(name)
    assert [m.kind for m in found] == [kind]
    assert words in (CANDIDATES / f"{name}.py").read_text().splitlines()[found[0].where.line - 1]


@pytest.mark.parametrize("name", ["clean_cuda/joined_stream_silu", "clean/custom_op_silu", "clean/view_softmax"])
def test_joined_streams_and_none_are_no_misuse(name):
    assert misuses(name) == []


def test_an_error_that_a_capture_alone_brings_is_predicted_and_no_other():
    refused = refusal(*called("bad_cuda/CG_CAPTURE_ERROR"))
    assert "outside of a graph" in refused.text
    for name in ("bad_cuda/CG_SYNC", "bad_cuda/CG_HOST_VALUE_BAKED", "clean/custom_op_silu", "bad/EAGER_ERROR"):
        assert refusal(*called(name)) is None


def test_waiting_is_passed_on_by_events_and_streams():
    with Streams() as streams:
        streams.begin()
        first, second, event = torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.Event()
        first.wait_stream(torch.cuda.current_stream())
        event.record(first)
        second.wait_event(event)
        assert second.captured
        torch.cuda.current_stream().wait_stream(second)
        streams.end()
    assert streams.misuses == []


def test_a_stream_that_works_on_after_it_was_waited_for_is_open_again():
    with Streams() as streams:
        streams.begin()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        torch.cuda.current_stream().wait_stream(side)
        side.launch("silu")
        streams.end()
    assert [m.kind for m in streams.misuses] == ["unjoined"]


def test_another_stream_left_as_the_current_one_is_a_wrong_stream():
    with Streams() as streams:
        streams.begin()
        torch.cuda.set_stream(torch.cuda.Stream())
        streams.end()
    assert [m.kind for m in streams.misuses] == ["wrong"]


def test_what_stood_in_for_torch_is_gone_afterwards():
    before = {name: getattr(torch.cuda, name) for name in ("Stream", "Event", "synchronize", "current_stream")}
    with Streams():
        assert torch.cuda.Stream is not before["Stream"]
    assert {name: getattr(torch.cuda, name) for name in before} == before
