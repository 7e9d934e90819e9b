"""``python -m fastkernels.evaluation.conflicts.worker``: Jobs on stdin, Results on stdout, one JSON a line.

Torch and its compiler are imported once, and CUDA is left alone; each stage then runs in a forked child of its own,
which initialises CUDA for itself, with its own Inductor cache, its own log and a time limit. What happens in one child
cannot be seen by another, and its death is a result."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fastkernels.evaluation.conflicts.driver import driver_initialised
from fastkernels.evaluation.conflicts.job import WORKER, Job, Result
from fastkernels.evaluation.conflicts.post_mortem import post_mortem

POLL_SECONDS = 0.02
GRACE_SECONDS = 2.0  # before the limit the child writes down where it stands
BUILDING = 5  # times the limit is what a stage may take as long as a compiler runs for it
COMPILERS = frozenset({"cc1plus", "g++", "c++", "clang", "clang++", "nvcc", "cicc", "ptxas", "cudafe++", "hipcc", "ld"})
SLOW = ("inductor", "graph_partition", "aot")  # started first, so that nothing waits for them at the end


def main() -> None:
    """Serves jobs until stdin ends; or, with a folder as argument, runs the single stage that lies in it."""
    if len(sys.argv) > 1:
        _stage(Path(sys.argv[1]))
        return
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the children end with the worker
    for line in sys.stdin:
        job = Job.model_validate_json(line)
        fork = _prepare(job)
        with tempfile.TemporaryDirectory(prefix="fastkernels-conflicts-") as root:
            for result in _served(job, Path(root), fork=fork):
                answers.write(result.model_dump_json() + "\n")


def _prepare(job: Job) -> bool:
    """Imports what the stages need; whether children may be forked: an initialised CUDA driver does not survive it."""
    import torch

    torch.set_num_threads(1)
    if not hasattr(os, "fork") or driver_initialised():
        return False
    import torch._dynamo
    import torch._inductor.compile_fx
    import torch._inductor.cudagraph_trees
    import torch.export

    from fastkernels.evaluation.conflicts.stages import COMPILES, STAGES

    importlib.import_module("fastkernels.evaluation.conflicts.execute")
    for module in set(STAGES.values()):
        importlib.import_module(f"fastkernels.evaluation.conflicts.stages.{module}")
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")
    if torch.version.cuda is None and set(job.stages) & set(COMPILES):
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        pick_vec_isa()  # a probe of the processor by test compilations, the same for all candidates
    gc.collect()
    gc.freeze()  # the children collect often: not what is imported here
    return not driver_initialised()


@dataclass(kw_only=True)
class Child:
    """A running stage."""

    stage: str
    folder: Path
    process: int
    started: float


def _served(job: Job, root: Path, *, fork: bool) -> Iterator[Result]:
    waiting, running = sorted(job.stages, key=lambda s: s not in SLOW), list[Child]()
    parent = os.getppid()
    try:
        while waiting or running:
            while waiting and len(running) < job.parallel:
                running.append(_start(job, waiting.pop(0), root, fork=fork))
            time.sleep(POLL_SECONDS)
            if os.getppid() != parent:
                sys.exit(1)  # the host is gone: nobody wants the rest
            for child in list(running):
                result = _finished(child, job)
                if result is not None:
                    running.remove(child)
                    yield result
    finally:
        for child in running:
            _end(child.process, wait=True)


def _start(job: Job, stage: str, root: Path, *, fork: bool) -> Child:
    folder = root / stage
    folder.mkdir()
    (folder / "job.json").write_text(job.model_copy(update={"stages": [stage]}).model_dump_json())
    started = time.monotonic()
    if fork:
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            try:
                _stage(folder)
            finally:
                os._exit(0)
    else:
        command = [sys.executable, "-m", WORKER, str(folder)]
        nothing = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]  # stdin is the worker's own
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=nothing, setpgroup=0)
    return Child(stage=stage, folder=folder, process=process, started=started)


def _finished(child: Child, job: Job) -> Result | None:
    """The child's result once it has ended, by itself or by the time limit."""
    seconds = time.monotonic() - child.started
    ended, status = os.waitpid(child.process, os.WNOHANG)
    hang = not ended and seconds > job.timeout and not (seconds < BUILDING * job.timeout and _builds(child.process))
    if not ended and not hang:
        return None
    _end(child.process, wait=hang)
    answer = child.folder / "result.json"
    if hang or not answer.is_file():
        _unlock(child)
    if answer.is_file() and not hang:
        return Result.model_validate_json(answer.read_text()).model_copy(update={"seconds": seconds})
    findings = [post_mortem(child.folder, status=None if hang else status, limit=job.timeout)]
    return Result(stage=child.stage, outcome="hang" if hang else "crash", findings=findings, seconds=seconds)


def _builds(group: int) -> bool:
    """Whether a compiler runs in the process group: a build takes its time, and only once."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name in COMPILERS and int(rest.split()[2]) == group:
                return True
    return False


def _unlock(child: Child) -> None:
    """Removes the build locks of torch's extensions that a child left which died while building one: the next build
    would wait for them for ever."""
    notes = child.folder / "crash"
    if not notes.is_file() or "cpp_extension.py" not in notes.read_text(errors="replace"):
        return
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    born = time.time() - (time.monotonic() - child.started)
    for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
        if lock.stat().st_mtime >= born:
            lock.unlink(missing_ok=True)


def _end(process: int, *, wait: bool) -> None:
    """Kills whatever is left of the child's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    if wait:
        os.waitpid(process, 0)


def _stage(folder: Path) -> None:
    """In the child: runs the one stage of ``folder``/job.json, writes ``folder``/result.json."""
    log: IO[bytes] = (folder / "log").open("wb")
    for fd in (1, 2):
        os.dup2(log.fileno(), fd)
    crash = (folder / "crash").open("w")
    faulthandler.enable(crash)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    job = Job.model_validate_json((folder / "job.json").read_text())
    faulthandler.dump_traceback_later(max(job.timeout - GRACE_SECONDS, job.timeout / 2), file=crash)
    from fastkernels.evaluation.conflicts.execute import execute

    result = execute(job, job.stages[0])
    partial = folder / "partial"
    partial.write_text(result.model_dump_json())
    partial.rename(folder / "result.json")
    log.flush()
    os._exit(0)  # nothing that the candidate left behind may run at exit


if __name__ == "__main__":
    main()
