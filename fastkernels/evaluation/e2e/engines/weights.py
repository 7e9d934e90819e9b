"""The folder that engines load: the entry's own, or what the reference process drew by the entry's seed and left there.

One folder for all arms, in the job's own; it is taken away at the end of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fastkernels.evaluation.e2e.scenario import Entry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DRAWN = "weights"
SHARD = "4GB"


def model_of(entry: Entry, job: Path) -> str:
    """What an engine is given as its model: a folder, or the id of a hub's model."""
    if entry.weights is None:
        return entry.model
    location = entry.weights.location()
    return str(location if location is not None else job / DRAWN)


def save_drawn(entry: Entry, model: PreTrainedModel, folder: str) -> None:
    """Writes a model that was made of a config, in its own dtype; of other weights there is a folder already."""
    if entry.weights is not None and entry.weights.config is not None:
        model.save_pretrained(folder, max_shard_size=SHARD)


def remove_drawn(job: Path) -> None:
    """Takes away what ``save_drawn`` wrote."""
    shutil.rmtree(job / DRAWN, ignore_errors=True)
