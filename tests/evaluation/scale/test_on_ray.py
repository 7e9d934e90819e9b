"""Jobs on a real Ray cluster: a head and two nodes on this machine, with two CPUs and two stand-in devices each."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.scale.job import Event
from fastkernels.evaluation.scale.run_jobs import run_jobs
from tests.evaluation.scale.conftest import MakeJob, descendants, is_alive, wait_until
from tests.evaluation.scale.test_local import DETACHED, DRIVER, SPAN, overlap, spans

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")

STUCK = "time.sleep(600 if i == 2 and not done else 0)"  # the first try writes three records and hangs
NODE = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 200 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    before = descendants()
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20},
    )
    try:
        for _ in range(2):
            made.add_node(**NODE)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
    wait_until(lambda: not {pid for pid in descendants() - before if is_alive(pid)}, seconds=30)


@pytest.fixture(autouse=True)
def no_process_stays() -> None:
    """Ray keeps idle workers until its end, which the cluster's fixture checks."""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_two_jobs_run_on_two_nodes_and_their_folders_come_back(cluster: Any, make_job: MakeJob) -> None:
    script = (
        textwrap.dedent(SPAN).replace("0.3", "2")
        + "open(f'{FOLDER}/result/answer', 'w').write(open(f'{FOLDER}/L1/silu.py').read() + FOLDER)"
    )
    jobs = [make_job(f"job{i}", "os.makedirs(f'{FOLDER}/result')\n" + script) for i in range(2)]
    for job in jobs:
        (job.folder / "L1").mkdir()
        (job.folder / "L1" / "silu.py").write_text(job.name)
    outcomes = run_jobs(jobs, ray_address=cluster.address)
    assert [(o.name, o.returncode, o.reason) for o in outcomes] == [("job0", 0, ""), ("job1", 0, "")]
    nodes = [o.where.split()[2] for o in outcomes]
    assert nodes[0] != nodes[1] and {n[:8] for n in nodes} <= {n.node_id[:8] for n in cluster.worker_nodes}
    assert overlap(*spans(jobs)), "one waited for the other"
    for job in jobs:
        answer = (job.folder / "result" / "answer").read_text()
        assert answer.startswith(job.name) and str(job.folder) not in answer
        assert not Path(answer.removeprefix(job.name)).exists(), "the node kept the folder"
    assert not ray.is_initialized()
    assert [o.where for o in run_jobs(jobs, ray_address=cluster.address)] == [o.where for o in outcomes]


def test_cpu_jobs_do_not_share_a_node_and_gpu_jobs_do_not_share_a_device(cluster: Any, make_job: MakeJob) -> None:
    script = textwrap.dedent(SPAN).replace("0.3", "1.5")
    jobs = [make_job(f"job{i}", script, gpus=gpus) for i, gpus in enumerate((0, 0, 0, 1, 1, 2))]
    outcomes = run_jobs(jobs, ray_address=cluster.address)
    assert [o.reason for o in outcomes] == [""] * 6
    seen = [s | {"node": o.where.split()[2]} for s, o in zip(spans(jobs), outcomes, strict=True)]
    assert [s["devices"] for s in seen[:3]] == [[""]] * 3
    assert [len(s["devices"]) for s in seen[3:]] == [1, 1, 2]
    for i, a in enumerate(seen):
        for b in seen[:i]:
            if a["node"] == b["node"] and overlap(a, b):
                assert a["devices"] != [""] != b["devices"], "a CPU job was not alone"
                assert not set(a["devices"]) & set(b["devices"])


def test_a_crash_and_a_hang_are_outcomes_and_are_not_tried_again(cluster: Any, make_job: MakeJob) -> None:
    crash = make_job("crash", "open(f'{FOLDER}/tries', 'a').write('x'); os.kill(os.getpid(), signal.SIGSEGV)")
    hang = make_job("hang", "print('waiting', flush=True); time.sleep(600)", timeout=1.0)
    large = make_job("large", "", gpus=3)
    outcomes = run_jobs([crash, hang, large], ray_address=cluster.address)
    assert [o.reason for o in outcomes] == [
        "process ended with signal 11 (SIGSEGV)",
        "no end within its limit of 1 s, killed",
        "it needs 3 devices of one node and the largest has 2",
    ]
    assert (crash.folder / "tries").read_text() == "x"
    assert outcomes[1].log_tail == (hang.folder / "job.log").read_text() == "waiting\n"


@pytest.mark.parametrize("what", ["worker", "node"])
def test_a_job_whose_worker_or_node_is_lost_goes_on_elsewhere_from_its_records(
    cluster: Any, counting_job: MakeJob, tmp_path: Path, what: str
) -> None:
    pids = tmp_path / "pids"  # both nodes are this machine
    job = counting_job("job", f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}'); {STUCK}")
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.kind != "progressed" or event.records < 3 or killed:
            return
        pid, guard = map(int, pids.read_text().split())
        worker = parent(parent(guard))
        killed.append(pid)
        if what == "worker":
            os.kill(worker, signal.SIGKILL)
        else:
            raylet = parent(worker)
            (lost,) = [n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid == raylet]
            cluster.remove_node(lost, allow_graceful=False)
            cluster.add_node(**NODE)

    (outcome,) = run_jobs([job], ray_address=cluster.address, on_event=kill)
    assert outcome.ok, outcome
    lines = [json.loads(line) for line in (job.folder / "records.jsonl").read_text().splitlines()]
    assert [line["i"] for line in lines] == list(range(5))
    assert [line["try"] for line in lines] == [0, 0, 0, 3, 3]
    wait_until(lambda: not is_alive(killed[0]))


def test_a_worker_lost_at_every_try_is_an_outcome(cluster: Any, make_job: MakeJob, tmp_path: Path) -> None:
    script = f"""
        open({str(tmp_path / "tries")!r}, "a").write("x")
        worker = os.getpid()
        for _ in range(3):  # above the two of the guard
            worker = int(open(f"/proc/{{worker}}/stat").read().rpartition(")")[2].split()[1])
        os.kill(worker, signal.SIGKILL)
        time.sleep(600)
    """
    (outcome,) = run_jobs([make_job("job", script)], ray_address=cluster.address)
    assert outcome.returncode is None and outcome.reason.startswith("its node or worker was lost 2 times: ")
    assert (tmp_path / "tries").read_text() == "xx"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_driver_keeps_the_records_and_leaves_no_job_or_folder_on_the_nodes(
    cluster: Any, counting_job: MakeJob, tmp_path: Path, how: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    after = f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{FOLDER}}'); {STUCK}"
    job = counting_job("job", after)
    code = textwrap.dedent(DRIVER).replace("gpus=0", f"ray_address={cluster.address!r}")
    driver = [sys.executable, "-c", code, str(job.folder), *job.command]
    records, root = job.folder / "records.jsonl", Path(__file__).parents[3]
    first = subprocess.Popen(driver, cwd=root, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: records.exists() and records.read_bytes().count(b"\n") == 3, seconds=60)
    os.kill(first.pid, how)
    assert first.wait(30) != 0
    pid, folder = pids.read_text().split()
    wait_until(lambda: not is_alive(int(pid)), seconds=30)
    wait_until(lambda: not Path(folder).parent.exists(), seconds=10)
    second = subprocess.run(driver, cwd=root, capture_output=True, text=True, timeout=100)
    assert second.stdout == "True\n", second.stderr
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["i"] for line in lines] == list(range(5))
    assert [line["try"] for line in lines] == [0, 0, 0, 3, 3]


def test_what_a_job_started_ends_with_it_on_a_node_too(cluster: Any, make_job: MakeJob) -> None:
    job = make_job("job", DETACHED)
    (outcome,) = run_jobs([job], ray_address=cluster.address)
    assert outcome.ok and not is_alive(int((job.folder / "arm.pid").read_text()))


def test_folders_over_the_limit_are_refused_or_come_back_without_the_largest_files(
    cluster: Any, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy = make_job("heavy", "")
    with (heavy.folder / "weights.bin").open("wb") as file:
        file.truncate(300 * 2**20)
    grows = make_job("grows", "open(f'{FOLDER}/big.pt', 'wb').truncate(300 * 2**20); print('done')")
    heavy_outcome, grows_outcome = run_jobs([heavy, grows], ray_address=cluster.address)
    assert "256 MB travel" in heavy_outcome.reason and "run without Ray" in heavy_outcome.reason
    assert "too large to come back; left out: big.pt (300 MB)" in grows_outcome.reason
    assert (grows.folder / "job.log").read_text() == "done\n" and not (grows.folder / "big.pt").exists()


def test_a_connection_that_was_there_before_stays(cluster: Any, make_job: MakeJob) -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        assert run_jobs([make_job("job", "")], ray_address="auto")[0].ok
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_cluster_of_this_machine_is_started_and_ended(make_job: MakeJob) -> None:
    before = descendants()
    job = make_job("job", SPAN)
    # a process of its own: Ray loses objects in a process that was connected to another cluster before
    code = textwrap.dedent(DRIVER).replace("gpus=0", "gpus=1, ray_address='local'").replace("name=", "gpus=1, name=")
    done = subprocess.run(
        [sys.executable, "-c", code, str(job.folder), *job.command],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "4,5"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "True\n", done.stderr
    assert spans([job])[0]["devices"] == ["4"]
    wait_until(lambda: not {pid for pid in descendants() - before if is_alive(pid)}, seconds=30)


def test_versions_that_differ_from_the_drivers_are_said(
    cluster: Any, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_ray = importlib.import_module("fastkernels.evaluation.scale.on_ray")
    here = on_ray._versions() | {"torch": "1.0"}
    monkeypatch.setattr(on_ray, "_versions", lambda: here)  # of the driver; the nodes have what they have
    (outcome,) = run_jobs([make_job("job", "")], ray_address=cluster.address)
    assert outcome.ok and outcome.where.endswith(", here 1.0") and "; torch " in outcome.where


def test_no_cluster_and_no_ray_and_devices_of_a_cluster_are_errors(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EvaluationError, match=r"127\.0\.0\.1:1: no cluster there"):
        run_jobs([make_job("job", "")], ray_address="127.0.0.1:1")
    with pytest.raises(EvaluationError, match="counts devices of this machine"):
        run_jobs([make_job("job", "")], ray_address="auto", gpus=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EvaluationError, match=r"pip install fastkernels\[ray\]"):
        run_jobs([make_job("job", "")], ray_address="auto")
