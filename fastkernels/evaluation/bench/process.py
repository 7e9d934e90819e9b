"""What the parent sees of a child from outside: its state, its CPU time, its threads and what descends from it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

STOP_SECONDS = 5.0
POLL_SECONDS = 2e-5
SESSION = 3  # its place in /proc/PID/stat, counted from the state
RESIDENT, SHARED = 1, 2  # their places in /proc/PID/statm
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
CPUCLOCK_SCHED = 2  # with a process's number, Linux's name for the CPU clock of that process (clock_getcpuclockid)
BINDING = frozenset({"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"})  # each thread to its CPU
LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})


def stop(pid: int) -> None:
    """Halts the process with all its threads; returns once it stands still."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + STOP_SECONDS
    while state(pid) not in ("T", "t", "Z", "X", "") and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def resume(pid: int) -> None:
    """Lets the process go on."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """Ends the process, if it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def privileges(pid: int, *, threads: bool = False) -> tuple[object, ...]:
    """What decides how much of the machine a process gets: niceness, scheduler, the CPUs it may use, its limits and
    control groups. With ``threads`` those of each of its threads, which are alike until somebody changes them."""
    try:
        limits = tuple(resource.prlimit(pid, which) for which in LIMITS)
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        alike = threads and not BINDING.intersection(os.environ)
        tasks = [int(t) for t in os.listdir(f"/proc/{pid}/task")] if alike else [pid]
        return frozenset(filter(None, map(_scheduling, tasks))), limits, groups
    except (OSError, AttributeError):
        return ()


def _scheduling(task: int) -> tuple[object, ...]:
    """Of a thread, or of a process's first; empty where it is gone."""
    try:
        cpus = tuple(sorted(os.sched_getaffinity(task)))
        return os.getpriority(os.PRIO_PROCESS, task), os.sched_getscheduler(task), cpus
    except ProcessLookupError:
        return ()


def name(pid: int) -> str:
    """The process's command name."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return str(pid)


def state(pid: int) -> str:
    """The process's state letter; empty where there is none."""
    return (_fields(pid) or [""])[0]


def session(pid: int) -> int:
    """The process's session: its first process's id, which those that it starts inherit; 0 where it is gone."""
    fields = _fields(pid)
    return int(fields[SESSION]) if len(fields) > SESSION else 0


def ended(pid: int, seconds: float = STOP_SECONDS) -> bool:
    """Whether the process is gone, after waiting for so long."""
    deadline = time.monotonic() + seconds
    while state(pid) not in ("", "Z", "X"):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def descendants(*pids: int) -> list[int]:
    """Living processes that one of these started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _fields(int(entry))
            if fields and fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def memory_bytes(pid: int) -> int:
    """Memory of its own that the process holds, what it shares with others left out; 0 where it is gone."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(pages[RESIDENT]) - int(pages[SHARED])) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def machine_bytes() -> int:
    """Memory of the whole machine."""
    return os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES


def cpu_seconds(pid: int) -> float:
    """Time on a CPU of all the process's threads, those that have ended too; 0 where it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def waited_seconds(pid: int | None) -> float:
    """Time for which the process's main thread could have run and was given no CPU; of this very thread for None."""
    where = "/proc/thread-self/schedstat" if pid is None else f"/proc/{pid}/schedstat"
    try:
        return int(Path(where).read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
