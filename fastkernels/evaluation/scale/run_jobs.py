"""Runs jobs on this machine's devices or on a Ray cluster, and keeps what is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.scale.folder import RecordCount
from fastkernels.evaluation.scale.job import Event, Job, Outcome, kept_outcome
from fastkernels.evaluation.scale.local import run_local, visible_devices
from fastkernels.evaluation.scale.on_ray import run_on_ray


def run_jobs(
    jobs: Sequence[Job],
    *,
    gpus: int | None = None,
    ray_address: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> list[Outcome]:
    """Runs every job; a job that fails is an outcome, not an error. A job whose folder says that it ended well is
    skipped, so that a second call with the same folders finishes what the first one left.

    Args:
        jobs: with names and folders of their own.
        gpus: devices of this machine to use, of those in CUDA_VISIBLE_DEVICES where it is set; None for all. Without
            devices one job runs at a time: timings on one CPU would disturb each other.
        ray_address: ``auto`` (the cluster that this machine is part of), ``host:port`` of its head, or ``local`` (a
            cluster of this machine alone, with ``gpus`` devices). fastkernels, and what it needs to run the command,
            must be installed on every node; folders travel, and nodes need share no disk. One process, one cluster: Ray
            loses objects in a process that was connected to another before.
        on_event: called in this process as jobs start, write records and finish.

    Returns:
        Outcomes in the order of ``jobs``.

    Raises:
        EvaluationError: two jobs share a name or a folder, fewer devices are visible than asked for, Ray is missing or
            cannot be reached, or ``gpus`` is given with a cluster.

    >>> import sys, tempfile
    >>> from pathlib import Path
    >>> job = Job(name="entry", folder=Path(tempfile.mkdtemp()), command=(sys.executable, "-c", "print('answer')"))
    >>> [outcome] = run_jobs([job], gpus=0)
    >>> outcome.ok, outcome.where, outcome.log_tail
    (True, 'local cpu', 'answer\\n')
    """
    for what in ([job.name for job in jobs], [job.folder.resolve() for job in jobs]):
        twice = sorted({str(one) for one in what if what.count(one) > 1})
        if twice:
            raise EvaluationError(f"jobs: {', '.join(twice)} is in there twice. Give each job its own name and folder.")
    if gpus is not None and ray_address not in (None, "local"):
        raise EvaluationError(f"gpus={gpus} counts devices of this machine; the cluster {ray_address} knows its own.")
    tell = on_event or (lambda event: None)
    outcomes: dict[str, Outcome] = {}
    keys = {job.name: job.key for job in jobs}

    def end(job: Job, outcome: Outcome) -> None:
        outcome = outcome.model_copy(update={"key": keys[job.name]})
        outcome.save(job.folder)
        tell_finished(job, outcome)

    def tell_finished(job: Job, outcome: Outcome) -> None:
        outcomes[job.name] = outcome
        count = RecordCount(job.folder)
        count.advanced()
        tell(Event(job=job.name, kind="finished", records=count.lines, bytes=count.bytes, outcome=outcome))

    left = []
    for job in jobs:
        kept = kept_outcome(job)
        if kept is None:
            left.append(job)
        else:
            tell_finished(job, kept)
    if left and ray_address is None:
        run_local(left, devices=visible_devices(gpus), on_event=tell, on_outcome=end)
    elif left:
        run_on_ray(left, address=ray_address or "", gpus=gpus, on_event=tell, on_outcome=end)
    return [outcomes[job.name] for job in jobs]
