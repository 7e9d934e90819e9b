"""What a worker needs, found where each version of SGLang keeps it; what is nowhere is refused, with the version."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest

from fastkernels.errors import ServingError
from fastkernels.serving import sglang_versions
from fastkernels.serving.sglang_versions import Seam, mode_of, ranks_of, seam_of, workers_of

with_sglang = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("sglang") is None, reason="sglang is not in this environment"),
]
RANKS = {"tp_rank": 1, "tp_size": 4, "pp_rank": 2, "pp_size": 3, "dp_rank": None}


@pytest.fixture
def without_context(monkeypatch):
    """As in 0.5.13."""
    monkeypatch.setattr(sglang_versions, "runtime_context", lambda: None)


def process(**ranks):
    """As in 0.5.23: ranks of the process, which are no attributes where nothing is published."""

    class Parallel:
        def __getattr__(self, name):
            if name not in ranks:
                raise RuntimeError(f"{name} has not been written in this process")
            return ranks[name]

    return SimpleNamespace(get_parallel=Parallel)


@pytest.mark.parametrize("owner", [SimpleNamespace(**RANKS), SimpleNamespace(ps=SimpleNamespace(**RANKS), tp_size=99)])
def test_ranks_are_the_owners(owner, without_context):
    ranks = ranks_of(owner)
    assert (ranks.rank, ranks.world_size, ranks.dp_rank) == (9, 12, 0)


def test_ranks_are_the_processes_where_the_owner_has_none(monkeypatch):
    monkeypatch.setattr(sglang_versions, "runtime_context", lambda: process(**(RANKS | {"dp_rank": 5})))
    ranks = ranks_of(SimpleNamespace(tp_size=99))
    assert (ranks.rank, ranks.world_size, ranks.dp_rank) == (9, 12, 5)


class TestOfAnUnknownVersion:
    pytestmark = with_sglang

    @pytest.fixture(autouse=True)
    def installed(self):
        import sglang

        self.version = sglang.__version__

    def test_a_worker_whose_ranks_are_nowhere_is_refused_with_the_version(self, monkeypatch):
        monkeypatch.setattr(sglang_versions, "runtime_context", process)
        with pytest.raises(ServingError, match=rf"SGLang {self.version} keeps the ranks .* was run with \(0\.5\.13, "):
            ranks_of(SimpleNamespace(tp_size=2))

    def test_a_runner_that_is_never_seen_before_its_cache_is_refused(self):
        with pytest.raises(ServingError, match=rf"SGLang {self.version} has no Runner\.alloc_memory_pool"):
            seam_of(type("Runner", (), {"initialize": None}))

    def test_graphs_that_are_configured_elsewhere_are_refused(self, monkeypatch):
        runtime_context = pytest.importorskip("sglang.srt.runtime_context", reason="0.5.13 has no such module")
        monkeypatch.setattr(runtime_context, "get_exec", lambda: SimpleNamespace(graph=SimpleNamespace()))
        with pytest.raises(ServingError, match=rf"SGLang {self.version} .* captures graphs .*cuda_graph_config"):
            mode_of(SimpleNamespace(device="cuda"))


@pytest.mark.parametrize(
    ("methods", "seam"),
    [
        (("initialize", "alloc_memory_pool"), Seam(method="initialize", side="after")),
        (("initialize", "init_memory_pool"), Seam(method="init_memory_pool", side="before")),
    ],
)
def test_a_model_is_patched_when_it_is_loaded_and_nothing_is_allocated(methods, seam):
    base = type("Mixin", (), dict.fromkeys(methods))
    assert seam_of(type("Runner", (base,), {})) == seam


@pytest.mark.parametrize(
    ("arguments", "device", "words", "compiles"),
    [
        ({}, "cuda", "prefill tc_piecewise CUDA graphs, decode full CUDA graphs", True),
        (
            {"enable_breakable_cuda_graph": True, "disable_cuda_graph": True},
            "cuda",
            "prefill breakable CUDA graphs",
            False,
        ),
        ({"disable_piecewise_cuda_graph": True}, "cuda", "decode full CUDA graphs", False),
        ({"enable_torch_compile": True}, "cpu", "torch.compile", True),
        ({}, "cpu", "eager", False),
    ],
)
def test_where_server_arguments_say_it_all_the_mode_is_theirs(
    arguments, device, words, compiles, monkeypatch, without_context
):
    monkeypatch.setattr(sglang_versions, "setting", arguments.get)
    mode = mode_of(SimpleNamespace(device=device))
    assert (mode.words, mode.compiles, mode.captures) == (words, compiles, "CUDA graphs" in words)


def test_all_ranks_of_one_replica_are_reached(monkeypatch):
    monkeypatch.setattr(sglang_versions, "runtime_context", process)
    assert workers_of(SimpleNamespace(tp_size=2, pp_size=3, dp_size=1)) == 6


def test_stages_are_not_asked_where_that_would_stop_the_engine(monkeypatch, without_context):
    monkeypatch.setattr(sglang_versions, "version", lambda: "0.5.13")
    with pytest.raises(ServingError, match=r"pp_size=2: the RPC of SGLang 0\.5\.13 stops an engine"):
        workers_of(SimpleNamespace(tp_size=1, pp_size=2, dp_size=1))
    assert workers_of(SimpleNamespace(tp_size=2, pp_size=1, dp_size=1)) == 2


@pytest.mark.parametrize("name", ["dp_size", "attn_dp_size"])
def test_replicas_of_the_model_or_of_its_attention_are_not_all_reached(name):
    arguments = SimpleNamespace(**({"tp_size": 2, "pp_size": 1, "dp_size": 1} | {name: 2}))
    with pytest.raises(ServingError, match=f"{name}=2: SGLang's RPC reaches one"):
        workers_of(arguments)
