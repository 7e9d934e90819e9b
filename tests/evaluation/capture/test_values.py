"""What the store of values keeps."""

from __future__ import annotations

import torch

from fastkernels.evaluation.capture.record import Sample
from fastkernels.evaluation.capture.values import ValueStore


def sample(path):
    return Sample(path=path, task="linear", variant=0, phase="decode", values={})


def test_a_replacement_without_room_leaves_the_former_sample_in_its_place():
    store = ValueStore(per_kind=1, max_bytes=64, seed=0)
    kept, shared = torch.ones(4), torch.full((4,), 2.0)
    store.keep("kind", store.place("kind"), sample("first"), {"x": kept, "y": shared})
    store.keep("other", store.place("other"), sample("second"), {"y": shared})
    held, before = store.samples(), store.bytes
    assert before == 32
    for size in (13, 17):  # too much beside the other kind, and too much for the whole store
        store.keep("kind", 0, sample("third"), {"x": torch.zeros(size)})
    assert (store.samples(), store.bytes) == (held, before)
    assert store.dropped == 2
    store.keep("kind", 0, sample("fourth"), {"x": torch.zeros(12)})
    assert [s.path for s in store.samples()] == ["fourth", "second"]
    assert store.bytes == 48 + 16
