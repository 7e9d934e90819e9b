"""Jobs on a Ray cluster: folders travel there and back, records come while a job runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.scale.folder import Piece, RecordCount, RecordReader, lay_over, pack, pack_within
from fastkernels.evaluation.scale.job import LOG, Event, Job, Outcome
from fastkernels.evaluation.scale.local import POLL_SECONDS, VISIBLE, Child

SEND_SECONDS = 2.0  # between pieces of records
WAIT_SECONDS = 0.5
CONNECT_SECONDS = 5.0
TRIES = 2  # of a job whose node or worker is lost; one that crashes by itself is a result and not tried again


@dataclass(frozen=True)
class Started:
    """First word of a worker: where it is, and the versions there."""

    where: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Ended:
    """Last word of a worker: the outcome, and the folder as a tar."""

    outcome: Outcome
    folder: bytes


class _Running:
    """A submitted try of a job, seen from the driver."""

    def __init__(self, job: Job, stream: Any, attempt: int) -> None:
        self.job, self.stream, self.attempt = job, stream, attempt
        self.submitted = time.monotonic()
        self.where = "ray"
        self.notes = ""
        self.count = RecordCount(job.folder)


def run_on_ray(
    jobs: Sequence[Job],
    *,
    address: str,
    gpus: int | None,
    on_event: Callable[[Event], None],
    on_outcome: Callable[[Job, Outcome], None],
) -> None:
    """Runs all jobs as Ray tasks, the ones with the most devices first.

    Each is one task with ``num_gpus``; a CPU job takes the CPUs of a whole node. A task runs where fastkernels is
    importable: install it on every node. The driver's own interpreter, as first word of a command, is the node's there.
    Records are in the local folder seconds after they are written. A job whose node is lost goes on once more,
    elsewhere, from the records that came: by a new task, since a retry by Ray would start from the first folder.

    Raises:
        EvaluationError: Ray is missing or not reached.
    """
    ray = _import_ray()
    started = _connect(ray, address, gpus)
    running: list[_Running] = []
    try:
        cpus, most_gpus = _resources(ray)
        for job in sorted(jobs, key=lambda job: -job.gpus):
            _submit(ray, job, 1, cpus, most_gpus, running, on_outcome)
        while running:
            # a generator is ready when its next value is
            ready, _ = ray.wait([r.stream for r in running], num_returns=1, timeout=WAIT_SECONDS)
            for one in [r for r in running if any(r.stream is stream for stream in ready)]:
                lost = _receive(ray, one, on_event, on_outcome)
                if lost is None:
                    continue
                running.remove(one)
                if not lost:
                    continue
                if one.attempt < TRIES:
                    _submit(ray, one.job, one.attempt + 1, cpus, most_gpus, running, on_outcome)
                else:
                    reason = f"its node or worker was lost {TRIES} times: {lost}"
                    on_outcome(one.job, _failed(one.job, reason, one))
    finally:
        for one in running:
            ray.cancel(one.stream, force=True)
        if started:
            ray.shutdown()


def work(job: Job, data: bytes, driver_python: str) -> Iterator[Started | Piece | Ended]:
    """Runs on a node: the job in a temporary folder there, its records as they come, and at last the folder."""
    import ray

    home = Path(tempfile.mkdtemp(prefix="fastkernels-job-"))
    folder = home / "job"
    child: Child | None = None
    try:
        lay_over(data, folder)
        records = RecordReader(folder)
        devices = os.environ.get(VISIBLE, "").split(",") if job.gpus else []
        where = f"ray node {ray.get_runtime_context().get_node_id()[:8]} {socket.gethostname()}"
        # Ray limits threads to the CPUs that a task asked for; a job is alone and runs as it would without Ray
        base = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = tuple(sys.executable if word == driver_python else word for word in job.command)
        job = replace(job, command=command)
        child = Child(job, folder=folder, devices=devices, where=where, base=base, if_orphaned_remove=home)
        yield Started(child.where, _versions())
        outcome, sent = None, time.monotonic()
        while outcome is None:
            time.sleep(POLL_SECONDS)
            outcome = child.poll()
            if outcome is not None or time.monotonic() - sent > SEND_SECONDS:
                for piece in records.pieces():  # noqa: UP028 - Ray sends values in, and a list takes none
                    yield piece
                sent = time.monotonic()
        packed, left_out = pack_within(folder)
        if left_out:
            reason = f"its results are too large to come back; left out: {', '.join(left_out)}. Run it without Ray."
            outcome = outcome.model_copy(update={"reason": outcome.reason or reason})
        shutil.rmtree(home, ignore_errors=True)  # now: after its last value the driver may end this process
        yield Ended(outcome, packed)
    finally:
        if child is not None:
            child.kill(orphan=True)  # Ray may end this process before it has removed the folder itself
        shutil.rmtree(home, ignore_errors=True)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # else it replaces print, in which Dynamo cannot look
    try:
        import ray
    except ImportError as error:
        raise EvaluationError("Ray is not installed. pip install fastkernels[ray], here and on every node.") from error
    return ray


def _connect(ray: Any, address: str, gpus: int | None) -> bool:
    """Whether Ray was started, or connected to, here and now."""
    if ray.is_initialized():
        return False
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:  # Ray itself tries for minutes
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise _unreached(address, error) from error
    own: dict[str, Any] = {"include_dashboard": False, "num_gpus": gpus} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise _unreached(address, error) from error
    return True


def _unreached(address: str, error: Exception) -> EvaluationError:
    return EvaluationError(
        f"ray address {address}: no cluster there ({str(error).strip().partition(chr(10))[0]}). Start one with "
        "`ray start --head` and join it from this machine with `ray start --address HOST:PORT`, or give 'local'."
    )


def _resources(ray: Any) -> tuple[int, int]:
    """CPUs that a CPU job asks for, and the devices of the largest node.

    Of a node that has so many CPUs no two CPU jobs get a share. Nodes with half of the largest one's or fewer get none.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    return min(n for n in cpus if n > max(cpus) / 2) if any(cpus) else 0, max(int(n.get("GPU", 0)) for n in nodes)


def _submit(
    ray: Any,
    job: Job,
    attempt: int,
    cpus: int,
    most_gpus: int,
    running: list[_Running],
    on_outcome: Callable[[Job, Outcome], None],
) -> None:
    if job.gpus > most_gpus:
        reason = f"it needs {job.gpus} devices of one node and the largest has {most_gpus}"
    elif not job.gpus and not cpus:
        reason = "it needs a CPU and no node of the cluster has any"
    else:
        try:
            packed = pack(job.folder)
        except EvaluationError as error:
            reason = str(error)
        else:
            task = ray.remote(
                num_gpus=job.gpus,
                num_cpus=1 if job.gpus else cpus,
                max_retries=0,
                num_returns="streaming",
                scheduling_strategy="SPREAD",
            )(work)
            running.append(_Running(job, task.remote(job, ray.put(packed), sys.executable), attempt))
            return
    on_outcome(job, _failed(job, reason))


def _receive(
    ray: Any, one: _Running, on_event: Callable[[Event], None], on_outcome: Callable[[Job, Outcome], None]
) -> str | None:
    """Takes the next value of a stream. None while it goes on, "" when the job ended, else how it was lost."""
    name, folder = one.job.name, one.job.folder
    try:
        value = ray.get(next(one.stream))
    except StopIteration:  # a stream ends with Ended; this one was cut
        return "its stream ended early"
    except ray.exceptions.RayTaskError as error:  # raised by our own worker code, or its import
        if isinstance(error.cause, ray.exceptions.RayError):  # the folder did not get there
            return " ".join(str(error.cause).split())[:300]
        reason = f"the worker failed: {str(error).strip().rpartition(chr(10))[2]}"
        if not isinstance(error.cause, EvaluationError):
            reason += ". fastkernels must be importable on every node, in the driver's version."
        on_outcome(one.job, _failed(one.job, reason, one))
        return ""
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(value, Started):
        one.where, here = value.where, _versions()
        one.notes = "".join(f"; {k} {value.versions[k]}, here {v}" for k, v in here.items() if value.versions[k] != v)
        on_event(Event(job=name, kind="started"))
    elif isinstance(value, Piece):
        value.write(folder)
        if one.count.advanced():
            on_event(Event(job=name, kind="progressed", records=one.count.lines, bytes=one.count.bytes))
    else:
        outcome = value.outcome.model_copy(update={"where": one.where + one.notes})
        try:
            lay_over(value.folder, folder)
        except EvaluationError as error:
            outcome = outcome.model_copy(update={"reason": outcome.reason or str(error)})
        on_outcome(one.job, outcome)
        return ""
    return None


def _failed(job: Job, reason: str, one: _Running | None = None) -> Outcome:
    seconds = time.monotonic() - one.submitted if one else 0.0
    where = one.where + one.notes if one else "ray"
    log = job.folder / LOG
    tail = log.read_bytes()[-4000:].decode(errors="replace") if one and log.exists() else ""
    return Outcome(name=job.name, returncode=None, reason=reason, seconds=seconds, where=where, log_tail=tail)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("fastkernels", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # on a path, not installed
            found[package] = "not installed"
    return found
