"""Whether two ranks of SGLang's tensor parallelism stand alike: they tell each other over gloo, in two processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engines.two_ranks import in_two_processes
from tests.serving.candidates import norm

SECONDS = 120  # of both processes together; importing torch takes long where the machine is busy


def rank_of_two(rank: int, folder: Path, names: tuple[str, str]) -> None:
    """Stands with the candidates ``right`` or as its rank is told, and writes what the ranks say to each other."""
    import torch

    from fastkernels.errors import ServingError
    from fastkernels.serving import sglang_worker
    from fastkernels.serving.settings import Settings
    from fastkernels.serving.worker import stand
    from tests.conftest import tiny_llama

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign] # a handler of one
    logging.getLogger("fastkernels").addHandler(handler)
    told: dict[str, str | list[str]] = {}
    for name in names:
        settings = Settings(candidates=str(folder / (name if rank and name != "silent" else "right")))
        if rank == 0 or name != "silent":
            sglang_worker.STANDINGS["target"] = stand(
                tiny_llama(),
                settings,
                engine="sglang",
                version="0.5.20",
                rank=rank,
                world_size=2,
                compilation="eager",
                lowering="auto",
            )
        for on_error in ("stop", "serve"):
            asked = Settings(candidates=settings.candidates, on_error=on_error)
            logged.clear()
            try:
                sglang_worker.require_ranks(SimpleNamespace(tp_cpu_group=None), asked)
            except ServingError as error:
                told[f"{name}, {on_error}"] = str(error)
            else:
                told[f"{name}, {on_error}"] = list(logged)
        sglang_worker.STANDINGS.clear()
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """By rank, what ``require_ranks`` raised (text) or logged (a list)."""
    folder = tmp_path_factory.mktemp("ranks")
    norm(folder / "right")
    norm(folder / "other", before="# another file\n")
    in_two_processes(rank_of_two, [(folder, ("right", "other", "silent"))] * 2, seconds=SECONDS)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_that_stand_alike_start(told):
    assert [rank["right, stop"] for rank in told] == [[], []]


def test_a_rank_with_other_candidates_stops_the_engine_with_both_and_the_way_out(told):
    assert told[0]["other, stop"] == []  # the other one's error ends the engine
    assert told[1]["other, stop"].startswith("SGLang: rank 1 holds ('patched', [('rms_norm', '")
    assert "Let no file change" in told[1]["other, stop"]


def test_a_rank_whose_model_nobody_passed_stops_every_rank(told):
    for rank in told:
        assert "rank 1 made a scheduler, and its model was not passed to fastkernels" in rank["silent, stop"]
        assert "Use a version that fastkernels was run with" in rank["silent, stop"]


def test_told_to_serve_the_same_is_an_error_in_the_log(told):
    for name, rank in [("other", 1), ("silent", 0), ("silent", 1)]:
        reason, metric = told[rank][f"{name}, serve"]
        assert reason.startswith("SGLang: rank 1 ")
        assert metric == f"fastkernels_patched{{engine=sglang,rank={rank}}} 0"
