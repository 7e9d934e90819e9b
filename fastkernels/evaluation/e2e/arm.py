"""The parent's side of one arm's process: orders with a time limit, a log, and an end that is always told."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.engines.environment import environment_of
from fastkernels.evaluation.e2e.setup import Role, Setup

MODULE = "fastkernels.evaluation.e2e.worker"
LONGEST_REPLY = 1 << 26  # bytes
TAIL = 2000  # characters of a log that go into a result


class ArmFailed(EvaluationError):
    """An arm raised, and is ``alive`` still, or died or hung; ``role`` says which, ``tail`` is the end of its log."""

    def __init__(self, role: Role, reason: str, tail: str, *, alive: bool = False) -> None:
        super().__init__(f"{role} arm: {reason}")
        self.role, self.reason, self.tail, self.alive = role, reason, tail, alive


class Arm:
    """A running arm. Its output goes to ``<role>.log``, its compile caches to a folder of its own, cold as the others'.

    Use it as a context manager: the process ends with the block, whatever happens.
    """

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.role, self.log = setup.role, folder / f"{setup.role}.log"
        here, there = multiprocessing.Pipe()
        self._pipe = here
        caches = folder / "caches" / setup.role
        environment, flags = dict(os.environ), []
        if setup.entry.engine != "hf" and setup.role != "reference":
            environment = environment_of(setup, folder, caches)
            flags = ["-P"]  # a checkout's own metadata, of an older build, would hide the plugin that is installed
        environment |= {
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if setup.threads:
            environment |= {"OMP_NUM_THREADS": str(setup.threads), "MKL_NUM_THREADS": str(setup.threads)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-m", MODULE, str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[there.fileno()],
                start_new_session=True,
            )
        there.close()
        here.send_bytes(setup.model_dump_json().encode())
        self.seconds = 0.0  # of the last order, by this process's clock
        self.started = self.ended = 0.0

    def order(self, verb: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
        """The arm's reply.

        Raises:
            ArmFailed: it raised, died, or gave no reply within ``timeout`` seconds.
        """
        self.send(verb, **arguments)
        return self.reply(timeout=timeout)

    def send(self, verb: str, **arguments: Any) -> None:
        """Gives an order without waiting for its reply."""
        self._verb = verb
        message = json.dumps({"verb": verb, "arguments": arguments}).encode()
        self.started = time.monotonic()
        try:
            self._pipe.send_bytes(message)
        except OSError:
            raise ArmFailed(self.role, self._end(), self.tail()) from None

    def reply(self, *, timeout: float) -> dict[str, Any]:
        """The reply to the order sent last."""
        late = threading.Timer(timeout, self.signal, (signal.SIGKILL,))  # a reply may also stop half way
        late.start()
        try:
            message = self._pipe.recv_bytes(LONGEST_REPLY)
            self.ended = time.monotonic()
            reply = json.loads(message)
            if not isinstance(reply, dict) or not reply.keys() & {"value", "error"}:
                raise ValueError("neither a value nor an error")
        except (EOFError, OSError):
            hangs = not late.is_alive()
            reason = f"no reply to '{self._verb}' within {timeout:.0f} s: it hangs" if hangs else self._end()
            self.close()
            raise ArmFailed(self.role, reason, self.tail()) from None
        except ValueError as error:
            self.close()
            raise ArmFailed(self.role, f"its reply to '{self._verb}' is none: {error}", self.tail()) from None
        finally:
            late.cancel()
        self.seconds = self.ended - self.started
        if "error" in reply:
            raise ArmFailed(self.role, reply["error"], self.tail(), alive=True)
        return reply["value"]

    def signal(self, number: int) -> None:
        """Sends a signal to the process and all that it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-TAIL:] if self.log.is_file() else ""

    def _end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.poll()
        if code is not None and code < 0:
            return f"its process died in '{self._verb}' of signal {signal.Signals(-code).name}"
        return f"its process ended in '{self._verb}' with exit status {code}"

    def close(self) -> None:
        """Ends the process and all that it started; a second call does nothing."""
        self._pipe.close()
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
