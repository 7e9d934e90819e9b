"""``python -m fastkernels.evaluation.bench.fork_server FD``: one process that has imported torch and forks children.

A fork of the parent itself would carry its secrets; this one never knew any. CUDA is left alone before the fork."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Collection, Mapping
from typing import IO, Any, Self

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench import process, wire

MODULE = "fastkernels.evaluation.bench.fork_server"
START_SECONDS = 120.0
TAIL_BYTES = 1500
# What a child's environment keeps of the parent's: names, and how names begin.
KEPT = frozenset({
    "PATH", "HOME", "USER", "LANG", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "MAX_JOBS",
    # Of compilers and linkers.
    "CC", "CXX", "CPP", "AR", "LD", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH",
    "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH", "SYSROOT", "SDKROOT",
})  # fmt: skip
KEPT_PREFIXES = (
    "LD_", "LC_", "CUDA", "NVIDIA", "NVCC_", "NV_", "TORCH", "PYTORCH", "TRITON", "OMP_", "MKL_", "OPENBLAS", "KMP_",
    "GOMP_", "FASTKERNELS_", "XDG_", "PYTHON", "HF_", "CMAKE_", "NINJA_", "GCC_", "CCACHE_", "CONDA_", "FLASHINFER_",
    "VLLM_", "DG_",
)  # fmt: skip
SET = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # compile workers would be processes beside the child
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # to ask whether there is a device must not initialise the driver: it forks
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Forked:
    """A child: its process id, the parent's end of its socket, and its output."""

    def __init__(self, pid: int, pipe: socket.socket, log: IO[bytes]) -> None:
        self.pid, self.pipe, self._log = pid, pipe, log

    def tail(self) -> str:
        """The end of what the child printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - TAIL_BYTES))
        return self._log.read().decode(errors="replace")


class ForkServer:
    """The parent's handle on the server. Use it as a context manager: all children end with the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._forked: set[int] = set()
        self._lock = threading.RLock()  # baselines are started by several threads
        self._caches: tempfile.TemporaryDirectory[str] | None = None

    @property
    def caches(self) -> str:
        """A new folder for what the compilers of this run's baselines keep: no candidate of an earlier run knew it."""
        if self._caches is None:
            self._caches = tempfile.TemporaryDirectory(prefix="fastkernels-", ignore_cleanup_errors=True)
        return self._caches.name

    def start(self) -> None:
        """Starts the process, and does not wait until it has imported torch; ``fork`` does."""
        if self._process is None or self._process.poll() is not None:
            self._start()

    def fork(self) -> Forked:
        """A new child, which serves orders from now on.

        Raises:
            EvaluationError: the server does not start or fork.
        """
        with self._lock:
            return self._fork()

    def _fork(self) -> Forked:
        for attempt in (1, 2):
            self.start()
            here, there = socket.socketpair()
            log = tempfile.TemporaryFile()  # noqa: SIM115 - the child's for as long as it lives
            try:
                self.ready()
                wire.send(self._pipe, b'{"verb": "fork"}', [there.fileno(), log.fileno()])
                pid = json.loads(wire.receive(self._pipe)[0])["pid"]
            except (EOFError, OSError) as error:  # a child may have ended it
                here.close()
                self.close()
                if attempt == 2:
                    raise EvaluationError(
                        f"bench: what forks the candidates' processes has ended ({error!r})."
                    ) from error
            else:
                self._forked.add(pid)
                return Forked(pid, here, log)
            finally:
                there.close()
        raise AssertionError("unreachable")

    def strays(self, trusted: Collection[int] = ()) -> list[str]:
        """Ends processes that a child left to the server when it died or let go of them; their names.

        Those still in the session of a ``trusted`` child are ended without being named.
        """
        if self._process is None:
            return []
        known = self._forked.union(process.descendants(*self._forked))
        found = [pid for pid in process.descendants(self._process.pid) if pid not in known]
        names = [process.name(pid) for pid in found if process.session(pid) not in trusted]
        for pid in found:
            process.kill(pid)
        return names

    def ending(self, pid: int) -> int | None:
        """How the child ended, as of waitpid; None where that is not known."""
        with self._lock:
            try:
                wire.send(self._pipe, json.dumps({"verb": "wait", "pid": pid}).encode())
                return json.loads(wire.receive(self._pipe)[0])["status"]
            except (EOFError, OSError):
                return None

    def _start(self) -> None:
        here, there = socket.socketpair()
        here.settimeout(START_SECONDS)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(there.fileno())],
            stdin=subprocess.DEVNULL,
            env=environment(os.environ),
            pass_fds=[there.fileno()],
            start_new_session=True,
        )
        there.close()
        self._pipe, self._ready = here, False

    def ready(self) -> None:
        """Waits until the process has imported torch.

        Raises:
            EvaluationError: it did not start, or cannot fork children that use CUDA.
        """
        self.start()
        if self._ready:
            return
        try:
            told = json.loads(wire.receive(self._pipe)[0])
        except (EOFError, OSError) as error:
            self.close()
            raise EvaluationError("bench: the process that forks the candidates' did not start; see above.") from error
        if told.get("driver"):
            self.close()
            raise EvaluationError(
                "bench: importing torch and the tasks initialised the CUDA driver, which no forked process can use "
                "then. Find the import that asks for a device, by python -X importtime, and move it into a function."
            )
        self._ready = True

    def close(self) -> None:
        """Ends the server, and with it every child."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._caches is not None:
            self._caches.cleanup()
            self._caches = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What children see of the environment: what compilers and libraries are found and set up by, and no more.

    >>> sorted(environment({"CPATH": "/opt/include", "NVCC_PREPEND_FLAGS": "-O2", "SECRET": "7"}).keys() - SET.keys())
    ['CPATH', 'NVCC_PREPEND_FLAGS']
    """
    return {k: v for k, v in given.items() if k in KEPT or k.startswith(KEPT_PREFIXES)} | SET


def main() -> None:
    """Forks a child for each order until the parent closes the socket."""
    from fastkernels.evaluation.bench.confine import adopt_orphans, confine
    from fastkernels.evaluation.conflicts.driver import driver_initialised

    pipe = socket.socket(fileno=int(sys.argv[1]))
    confine()
    adopt_orphans()
    _preload()
    if threading.active_count() == 1:  # what is left are a BLAS library's, which wait for work
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    wire.send(pipe, json.dumps({"driver": driver_initialised()}).encode())
    ended: dict[int, int] = {}
    while True:
        try:
            message, descriptors = wire.receive(pipe)
        except (EOFError, OSError):
            return
        order: dict[str, Any] = json.loads(message)
        if order["verb"] == "fork":
            pid = os.fork()
            if pid == 0:
                pipe.close()
                _child(*descriptors)
            wire.close_all(descriptors)
            reply: dict[str, Any] = {"pid": pid}
        else:
            reply = {"status": ended.pop(order["pid"], None)}
            with contextlib.suppress(ChildProcessError):
                found, status = os.waitpid(order["pid"], os.WNOHANG)
                reply = {"status": status if found else None}
        wire.send(pipe, json.dumps(reply).encode())


def _preload() -> None:
    import importlib.util

    import torch
    import torch._dynamo  # replaces some of torch's functions when it is first imported

    from fastkernels.evaluation.bench import serve  # noqa: F401 - imported for the children
    from fastkernels.tasks.registry import all_tasks

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    with contextlib.suppress(ImportError):
        from tqdm.std import tqdm

        tqdm.monitor_interval = 0  # the compiler makes bars that nobody sees, and the first starts a thread for good
    all_tasks()
    # Without CUDA a candidate may ask for Triton's interpreter, which is decided when Triton is first imported, by
    # Inductor too.
    if torch.version.cuda is not None and importlib.util.find_spec("triton") is not None:
        import torch._inductor.compile_fx  # seconds, which each child that compiles would pay
        import triton
        import triton.runtime.interpreter
        import triton.runtime.jit  # noqa: F401
    gc.collect()
    gc.freeze()


def _child(pipe_descriptor: int, log_descriptor: int) -> None:
    from fastkernels.evaluation.bench.confine import confine
    from fastkernels.evaluation.bench.serve import serve

    status = 1
    try:
        os.setsid()
        for standard in (1, 2):
            os.dup2(log_descriptor, standard)
        os.close(log_descriptor)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends children itself
        confine()
        serve(socket.socket(fileno=pipe_descriptor))
        status = 0
    finally:
        os._exit(status)  # nothing that the candidate left behind may run at exit


if __name__ == "__main__":
    main()
