"""Whether all workers of a vLLM engine stand as they were asked to: their own reports, through an executor that has
nothing but vLLM's one question."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from fastkernels.errors import ServingError
from fastkernels.serving.settings import Settings
from fastkernels.serving.vllm_ranks import require_ranks
from fastkernels.serving.vllm_route import ReportRoute
from fastkernels.serving.worker import stand
from tests.conftest import tiny_llama
from tests.serving.candidates import norm


class Executor:
    """Answers as vLLM's does, which tells a worker's NotImplementedError as RuntimeError."""

    def __init__(self, *answers):
        self.answers = answers

    def collective_rpc(self, verb):
        assert verb == "fastkernels_report"
        if None in self.answers:
            raise RuntimeError(f"Worker failed with error '{verb} is not implemented'")
        return [standing.verbs()[verb]() for standing in self.answers]


def standing(rank, settings):
    told = {"engine": "vllm", "version": "0.30", "compilation": "eager", "lowering": "auto"}
    return stand(tiny_llama(), settings, rank=rank, world_size=2, **told)


@pytest.fixture
def asked(tmp_path):
    return Settings(candidates=str(norm(tmp_path / "mine")))


@pytest.fixture
def first(asked):
    return standing(0, asked)


def other_candidates(asked, tmp_path):
    return standing(1, Settings(candidates=str(norm(tmp_path / "other", before="# another file\n"))))


def unpatched(asked, tmp_path):
    return standing(1, Settings(candidates=str(tmp_path / "none"), on_error="serve"))


def silent(asked, tmp_path):
    return None


WRONG = {
    other_candidates: r"rank 1 of 2, .*its candidates are not those of rank 0. Let no file change",
    unpatched: r"rank 1 of 2, .*unpatched: .*is not a folder.* Asked for: patched",
    silent: r"does not answer for its patch .*Install fastkernels where workers run",
}
wrong = pytest.mark.parametrize(("second", "said"), WRONG.items(), ids=[f.__name__ for f in WRONG])


def test_ranks_that_stand_alike_pass(first, asked):
    require_ranks(Executor(first, standing(1, asked)), asked)


def test_watched_ranks_pass_where_nothing_was_to_be_patched():
    asked = Settings(watch=True)
    require_ranks(Executor(standing(0, asked), standing(1, asked)), asked)


@wrong
def test_a_rank_that_does_not_stops_the_engine_by_name_with_the_way_out(second, said, first, asked, tmp_path):
    with pytest.raises(ServingError, match=said) as error:
        require_ranks(Executor(first, second(asked, tmp_path)), asked)
    assert "FASTKERNELS_ON_ERROR=serve" in str(error.value)


@wrong
def test_told_to_serve_the_same_is_an_error_in_the_log(second, said, first, asked, tmp_path, caplog):
    serving = Settings(candidates=asked.candidates, on_error="serve")
    executor = Executor(first, second(asked, tmp_path))
    caplog.clear()
    with caplog.at_level(logging.ERROR, "fastkernels"):
        require_ranks(executor, serving)
    assert caplog.messages[-1] == "fastkernels_patched{engine=vllm} 0"
    assert len(caplog.records) == 2


def test_the_route_tells_that_a_worker_does_not_answer():
    pytest.importorskip("starlette")

    class Client:
        async def collective_rpc(self, verb):
            raise RuntimeError(f"{verb} is not implemented")

    route = ReportRoute()
    assert asyncio.run(route.report(None)).status_code == 503
    asyncio.run(route.init_state(Client(), None, None))
    answer = asyncio.run(route.report(None))
    assert answer.status_code == 503
    assert "fastkernels_reports is not implemented" in json.loads(answer.body)["error"]
