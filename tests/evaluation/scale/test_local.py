"""Jobs on this machine: devices, crashes, hangs, Ctrl-C, and second runs. Every job is a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.scale.job import Event, Job, Outcome
from fastkernels.evaluation.scale.run_jobs import run_jobs
from tests.evaluation.scale.conftest import MakeJob, is_alive, wait_until

SPAN = """
    began = time.time()
    time.sleep(0.3)
    import json
    span = {"devices": os.environ["CUDA_VISIBLE_DEVICES"].split(","), "from": began, "to": time.time()}
    open(f"{FOLDER}/span.json", "w").write(json.dumps(span))
"""


def spans(jobs: list[Job]) -> list[dict]:
    return [json.loads((job.folder / "span.json").read_text()) for job in jobs]


def overlap(a: dict, b: dict) -> bool:
    return a["from"] < b["to"] and b["from"] < a["to"]


def test_no_two_jobs_hold_a_device_at_one_time_and_all_devices_are_used(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    jobs = [make_job(f"job{i}", SPAN, gpus=gpus) for i, gpus in enumerate((1, 2, 1, 3, 1, 1))]
    outcomes = run_jobs(jobs, gpus=3)
    assert [o.name for o in outcomes] == [f"job{i}" for i in range(6)]
    assert [o.reason for o in outcomes] == [""] * 6
    seen = spans(jobs)
    assert [len(s["devices"]) for s in seen] == [1, 2, 1, 3, 1, 1]
    assert {d for s in seen for d in s["devices"]} == {"4", "5", "6"}
    assert [o.where for o in outcomes] == ["local cuda " + ",".join(s["devices"]) for s in seen]
    pairs = [(a, b) for i, a in enumerate(seen) for b in seen[:i] if overlap(a, b)]
    assert pairs, "nothing ran side by side"
    assert not [(a, b) for a, b in pairs if set(a["devices"]) & set(b["devices"])]


def test_cpu_jobs_run_alone_and_see_no_device(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    jobs = [make_job(f"cpu{i}", SPAN) for i in range(2)] + [make_job("gpu", SPAN, gpus=1)]
    assert all(o.ok for o in run_jobs(jobs))
    seen = spans(jobs)
    assert [s["devices"] for s in seen] == [[""], [""], ["4"]]
    assert not [1 for i, a in enumerate(seen) for b in seen[:i] if overlap(a, b)]


def test_more_devices_than_there_are_is_an_outcome_and_the_rest_runs(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    large, small = run_jobs([make_job("large", "", gpus=2), make_job("small", "", gpus=1)])
    assert large.returncode is None and "needs 2 devices and there are 1" in large.reason
    assert small.ok
    with pytest.raises(EvaluationError, match=r"CUDA_VISIBLE_DEVICES=4\. Give 0 to 1"):
        run_jobs([make_job("other", "", gpus=1)], gpus=2)


def test_crashes_say_their_signal_and_hangs_their_limit_with_the_log_so_far(make_job: MakeJob) -> None:
    crash = make_job("crash", "print('on the way', flush=True); os.kill(os.getpid(), signal.SIGSEGV)")
    hang = make_job("hang", "print('waiting', flush=True); time.sleep(600)", timeout=1.0)
    status = make_job("status", "sys.exit(3)")
    missing = Job(name="missing", folder=hang.folder.parent / "missing", command=("no-such-program",))
    outcomes = run_jobs([crash, hang, status, missing], gpus=0)
    assert [(o.returncode, o.reason) for o in outcomes] == [
        (-11, "process ended with signal 11 (SIGSEGV)"),
        (None, "no end within its limit of 1 s, killed"),
        (3, "process ended with exit status 3"),
        (127, "process ended with exit status 127"),
    ]
    assert [o.log_tail for o in outcomes[:2]] == ["on the way\n", "waiting\n"]
    assert "no-such-program" in outcomes[3].log_tail
    assert 1.0 <= outcomes[1].seconds < 10.0


DETACHED = """
    import subprocess
    arm = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open(f"{FOLDER}/arm.pid", "w").write(str(arm.pid))
"""


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(600)"])
def test_what_a_job_started_ends_with_it(make_job: MakeJob, end: str) -> None:
    job = make_job("job", textwrap.dedent(DETACHED) + end, timeout=2.0)
    run_jobs([job], gpus=0)
    assert not is_alive(int((job.folder / "arm.pid").read_text()))


def test_what_ended_well_is_skipped_and_what_did_not_runs_again(make_job: MakeJob) -> None:
    script = "open(f'{FOLDER}/runs', 'a').write('x'); sys.exit(os.path.exists(f'{FOLDER}/fail'))"
    jobs = [make_job("good", script), make_job("bad", script)]
    (jobs[1].folder / "fail").touch()
    assert [o.ok for o in run_jobs(jobs, gpus=0)] == [True, False]
    (jobs[1].folder / "fail").unlink()
    events: list[Event] = []
    outcomes = run_jobs(jobs, gpus=0, on_event=events.append)
    assert [o.ok for o in outcomes] == [True, True]
    assert [(job.folder / "runs").read_text() for job in jobs] == ["x", "xx"]
    assert [(e.job, e.kind) for e in events] == [("good", "finished"), ("bad", "started"), ("bad", "finished")]
    assert Outcome.model_validate_json((jobs[0].folder / "outcome.json").read_text()) == outcomes[0]


@pytest.mark.parametrize("change", ["entry", "environment"])
def test_what_ended_well_runs_again_when_it_is_asked_something_else(make_job: MakeJob, change: str) -> None:
    script = "open(f'{FOLDER}/runs', 'a').write('x')"
    run_jobs([make_job("job", script)], gpus=0)
    job = make_job("job", script, environment={"A": "1"} if change == "environment" else {})
    if change == "entry":
        (job.folder / "entry.json").write_text('{"model": "another"}')
    run_jobs([job], gpus=0)
    run_jobs([job], gpus=0)
    assert (job.folder / "runs").read_text() == "xx"


def test_records_are_told_as_they_come(counting_job: MakeJob) -> None:
    events: list[Event] = []
    run_jobs([counting_job("job", "time.sleep(0.25)")], gpus=0, on_event=events.append)
    assert events[0].kind == "started" and events[-1].kind == "finished"
    told = [e.records for e in events if e.kind == "progressed"]
    assert len(told) >= 3 and told == sorted(told) and told[-1] == 5 == events[-1].records


def test_an_error_in_the_caller_ends_every_job_and_keeps_what_is_finished(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    write = "open(f'{FOLDER}/pid', 'w').write(str(os.getpid()));"
    jobs = [make_job(f"long{i}", write + "time.sleep(600)", gpus=1) for i in range(2)]
    jobs.append(make_job("short", f"time.sleep(1); {write}", gpus=1))

    def fail(event: Event) -> None:
        if event.kind == "finished":
            raise LookupError("in the caller")

    with pytest.raises(LookupError):
        run_jobs(jobs, on_event=fail)
    assert not [job for job in jobs if is_alive(int((job.folder / "pid").read_text()))]
    assert [(job.folder / "outcome.json").exists() for job in jobs] == [False, False, True]


DRIVER = """
    import signal
    import sys
    from pathlib import Path
    from fastkernels.evaluation.scale.job import Job
    from fastkernels.evaluation.scale.run_jobs import run_jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    job = Job(name="job", folder=Path(sys.argv[1]), command=tuple(sys.argv[2:]))
    print(run_jobs([job], gpus=0)[0].ok)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_driver_leaves_no_job_and_the_next_run_goes_on_from_the_records(
    counting_job: MakeJob, how: signal.Signals
) -> None:
    after = "open(f'{FOLDER}/pid', 'w').write(str(os.getpid())); time.sleep(0.3)"
    job = counting_job("job", after)
    driver = [sys.executable, "-c", textwrap.dedent(DRIVER), str(job.folder), *job.command]
    records, root = job.folder / "records.jsonl", Path(__file__).parents[3]
    first = subprocess.Popen(driver, cwd=root, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: records.exists() and records.read_bytes().count(b"\n") >= 2)
    os.kill(first.pid, how)
    assert first.wait(20) != 0
    assert not (job.folder / "outcome.json").exists()
    second = subprocess.run(driver, cwd=root, capture_output=True, text=True, timeout=60)
    assert second.stdout == "True\n", second.stderr
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["i"] for line in lines] == list(range(5))
    assert {line["try"] for line in lines} == {0, lines[-1]["try"]} and lines[-1]["try"] >= 2


def test_two_runs_do_not_work_in_one_folder(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkernels.evaluation.scale.local.LOCK_SECONDS", 0.2)
    job = make_job("job", "open(f'{FOLDER}/pid', 'w').write(str(os.getpid())); time.sleep(600)")
    driver = [sys.executable, "-c", textwrap.dedent(DRIVER), str(job.folder), *job.command]
    first = subprocess.Popen(driver, cwd=Path(__file__).parents[3])
    try:
        wait_until(lambda: (job.folder / "pid").exists() and (job.folder / "pid").read_text() != "")
        (outcome,) = run_jobs([job], gpus=0)
        assert outcome.returncode is None and "another run is at work" in outcome.reason
    finally:
        first.kill()
        first.wait()
    wait_until(lambda: not is_alive(int((job.folder / "pid").read_text())))


def test_jobs_that_share_a_name_or_a_folder_are_refused(make_job: MakeJob) -> None:
    job = make_job("job", "")
    for jobs in ([job, make_job("job", "")], [job, Job(name="other", folder=job.folder, command=("true",))]):
        with pytest.raises(EvaluationError, match="twice"):
            run_jobs(jobs, gpus=0)
    with pytest.raises(EvaluationError, match="a name and a command"):
        Job(name="job", folder=job.folder, command=())
    with pytest.raises(EvaluationError, match="timeout=0"):
        Job(name="job", folder=job.folder, command=("true",), timeout=0)
