"""The parent's side of one child: orders with a nonce and a time limit; what comes back is never unpickled."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import select
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from fastkernels.evaluation.bench import process, wire
from fastkernels.evaluation.bench.collected import Collected
from fastkernels.evaluation.bench.fork_server import ForkServer
from fastkernels.evaluation.bench.replies import Batch, Called, Observed, RunnerFailed, called
from fastkernels.evaluation.bench.result import Mode
from fastkernels.evaluation.bench.shared import Arena, Moves, Place
from fastkernels.evaluation.bench.source import Source

SOCKET_BYTES = 1 << 16
ON_CPU_SHARE = 0.8
# What a child may say of itself, by order; anything else is CALL_ERROR.
OWN_CODES = {"load": ("IMPORT_ERROR",), "build": ("BUILD_ERROR", "SKIPPED")}
START_SECONDS = 60.0
ENDING_SECONDS = 0.5  # from a closed socket to the end of the process


class Runner:
    """A child with one implementation. Use it as a context manager: the child ends with the block.

    Args:
        timeout: seconds that an order may take.
        caches: folder for what compilers keep; where they always keep it if None.
    """

    def __init__(
        self, server: ForkServer, source: Source, *, device: torch.device, timeout: float, caches: str | None = None
    ) -> None:
        self.source, self.device, self.timeout, self._caches = source, device, timeout, caches
        self.arenas: dict[str, Arena] = {}
        self.nondeterministic = False
        self.dtypes: tuple[str, ...] | None = None
        self._server = server
        self._child = server.fork()
        self._stopped = False
        self._privileges = self._granted()
        self.seconds = 0.0

    @property
    def pid(self) -> int:
        return self._child.pid

    def load(self) -> None:
        """Imports the implementation; nothing has been drawn yet.

        Raises:
            RunnerFailed: IMPORT_ERROR, or the child died or hangs.
        """
        flags = {"matmul": torch.get_float32_matmul_precision(), "cudnn_tf32": torch.backends.cudnn.allow_tf32}
        threads = torch.get_num_threads()
        self.order(
            "start", timeout=START_SECONDS, device=str(self.device), threads=threads, flags=flags, caches=self._caches
        )
        told = self.order("load", task=self.source.task, source=self.source.told())
        self.nondeterministic = bool(told.get("nondeterministic"))
        dtypes = told.get("dtypes")
        self.dtypes = None if dtypes is None else tuple(str(d) for d in dtypes)

    def attach(self, name: str, arena: Arena) -> None:
        """Gives the child an arena of the parent's under ``name``."""
        if self.arenas.get(name) is not arena:
            descriptors = [] if arena.descriptor is None else [arena.descriptor]
            self.order("attach", descriptors=descriptors, name=name, handle=arena.handle())
            self.arenas[name] = arena

    def detach(self, name: str) -> None:
        """Has the child let go of the arena under ``name``."""
        if self.arenas.pop(name, None) is not None:
            self.order("detach", name=name)

    def build(
        self, init: Mapping[str, Any], facts: Mapping[str, Any], dtype: torch.dtype, parameters: Mapping[str, Place]
    ) -> list[str]:
        """Builds the implementation over the parent's parameters; the tasks whose candidates stand inside it.

        Raises:
            RunnerFailed: BUILD_ERROR; SKIPPED where it declares that it does not take the site.
        """
        told = self.order("build", init=dict(init), facts=dict(facts), dtype=dtype, parameters=dict(parameters))
        return [str(name) for name in told]

    def call(self, places: Any, outputs: Sequence[Place]) -> Called:
        """One call in poisoned memory, on the arguments at ``places``."""
        self.arenas["outputs"].fill(0xFF)
        return self.described(self.order("call", places=places, outputs=list(outputs)), outputs)

    def bind(self, slots: Sequence[Any], mode: Mode = "eager", *, lengths: Sequence[int] = ()) -> None:
        """Builds the arguments of timed calls, one slot a call, and what ``mode`` needs for batches of ``lengths``."""
        self.order("bind", slots=list(slots), mode=mode, lengths=list(lengths))

    def timed(self, slots: Sequence[int], *, paced: bool = False) -> Batch:
        """One batch. Its contents were written while the child stood still; the clock is read here.

        With ``paced`` the child waits for its device before it tells each position: no score comes from such a batch.

        With one thread on the CPU, time in which the child or this process waited for a processor is taken off: that
        is other processes' work. Where hardly more than the time on a processor is left, that is the better clock.
        """
        before = [process.cpu_seconds(self.pid), process.waited_seconds(self.pid), process.waited_seconds(None)]
        told = self.order("timed", order=list(slots), paced=paced)
        after = [process.cpu_seconds(self.pid), process.waited_seconds(self.pid), process.waited_seconds(None)]
        cpu, waited, own = (max(0.0, b - a) for a, b in zip(before, after, strict=True))
        wall = self.seconds
        if self.device.type == "cpu" and torch.get_num_threads() == 1:
            wall = max(wall - waited - own, cpu)
            wall = cpu if cpu > ON_CPU_SHARE * wall else wall
        events = told.get("events")
        return Batch(
            calls=len(slots), wall=wall, cpu=cpu, events=float(events) if isinstance(events, (int, float)) else None
        )

    def check(self, slots: Sequence[int], before: Sequence[Moves], outputs: Sequence[Sequence[Place]]) -> Collected:
        """Calls of graph mode that are not timed: ``before`` each, bytes come from the staging arena; right after each,
        its outputs go to their places in the parent's memory."""
        self.arenas["outputs"].fill(0xFF)
        told = self.order("check", order=list(slots), before=list(before), outputs=[list(o) for o in outputs])
        return Collected(self, told, outputs)

    def collect(self, slots: Sequence[int], outputs: Sequence[Sequence[Place]]) -> Collected:
        """The outputs of all calls of the last batch, each copied to its places in the parent's memory."""
        self.arenas["outputs"].fill(0xFF)
        before = process.cpu_seconds(self.pid)
        told = self.order("collect", order=list(slots), outputs=[list(o) for o in outputs])
        on_cpu = process.cpu_seconds(self.pid) - before
        return Collected(self, told, outputs, on_cpu if self.device.type == "cpu" else self.seconds)

    def observe(self, places: Any) -> Observed:
        """What a call on the arguments at ``places`` runs. A profiler was on: the child is not to be timed any more."""
        told = self.order("observe", places=places)
        seconds = told.get("kernel_seconds")
        return Observed(
            own=tuple(map(str, told.get("own", ()))),
            brings=tuple(map(str, told.get("brings", ()))),
            kernels=tuple(map(str, told.get("kernels", ()))),
            kernel_seconds=float(seconds) if isinstance(seconds, (int, float)) else None,
            delegates=bool(told.get("delegates")),
        )

    def ghost(self, places: Any, outputs: Sequence[Place]) -> tuple[Called, tuple[str, ...]]:
        """One call without the implementation's own kernels; and which of them would have run."""
        self.arenas["outputs"].fill(0xFF)
        told = self.order("ghost", places=places, outputs=list(outputs))
        return self.described(told.get("told"), outputs), tuple(map(str, told.get("stopped", ())))

    def tampered(self) -> list[str]:
        """What the child says is no longer as it was before the import."""
        return [str(line)[:300] for line in self.order("tampered")]

    def outside(self, *, alone: bool = True) -> list[str]:
        """What the system says, unasked of the child, that it changed: its priority, its CPUs, processes beside it,
        of which it may have none if ``alone``."""
        found = []
        if self._granted() != self._privileges:
            found.append(f"the priority, scheduler, CPUs or limits of the process of {self.source.name} were changed")
        beside = process.descendants(self.pid) if alone else []
        if beside:
            found.append(f"processes that outlive the call: {', '.join(map(process.name, beside))}")
        for pid in beside:
            process.kill(pid)
        return found

    def _granted(self) -> tuple[object, ...]:
        return process.privileges(self.pid, threads=self.device.type == "cpu")

    def stop(self) -> None:
        """Halts the child: it does not see contents change, and costs the others nothing."""
        if not self._stopped and self._child.pipe.fileno() >= 0:
            process.stop(self.pid)
            self._stopped = True

    def resume(self) -> None:
        """Lets the child go on."""
        if self._stopped:
            process.resume(self.pid)
            self._stopped = False

    def order(
        self, verb: str, *, timeout: float | None = None, descriptors: Sequence[int] = (), **arguments: Any
    ) -> Any:
        """The child's answer; ``seconds`` then is the time from the order to it, by this process's clock.

        Raises:
            RunnerFailed: the child raised, died, hangs or did not answer this very order.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what this process wrote: nothing orders its stream and the child's
        pipe, nonce = self._child.pipe, secrets.token_hex(16)
        if pipe.fileno() < 0:
            raise RunnerFailed("CRASH", f"the process of {self.source.name} was ended before '{verb}'")
        message = pickle.dumps((verb, nonce, arguments))
        if len(message) > SOCKET_BYTES:
            self.resume()  # more than the socket holds: the child must read while it is sent
        if select.select([pipe], [], [], 0)[0]:
            self._read(verb)  # a death is told as such
            raise RunnerFailed("FORGED", f"a reply came before the order '{verb}'")
        pipe.settimeout(timeout or self.timeout)
        start = time.perf_counter()
        try:
            wire.send(pipe, message, descriptors)
        except TimeoutError:
            self.close()
            raise RunnerFailed("TIMEOUT", f"the order '{verb}' was not taken") from None
        except OSError:
            raise self._ended(verb) from None
        self.resume()  # after the order: nothing runs ahead of the clock
        reply = self._read(verb, timeout or self.timeout)
        self.seconds = time.perf_counter() - start
        return self._checked(reply, verb, nonce)

    def _read(self, verb: str, limit: float = 0.0) -> bytes:
        try:
            return wire.receive_untrusted(self._child.pipe)
        except TimeoutError:
            self.close()
            raise RunnerFailed("TIMEOUT", f"no reply to '{verb}' within {limit:.0f} s") from None
        except (EOFError, OSError):
            raise self._ended(verb) from None
        except ValueError as error:
            self.close()
            raise RunnerFailed("FORGED", f"'{verb}' was answered with {error}") from None

    def _checked(self, reply: bytes, verb: str, nonce: str) -> Any:
        try:
            told = json.loads(reply)
            genuine = isinstance(told, dict) and told.get("nonce") == nonce and ("value" in told or "error" in told)
        except (ValueError, RecursionError):
            genuine = False
        if not genuine:
            self.close()
            raise RunnerFailed("FORGED", f"the reply to '{verb}' does not carry the nonce of the order")
        if "error" in told:
            code = told.get("code")
            if told.get("broken"):  # nothing that it is told from now on would run
                self.close()
            raise RunnerFailed(code if code in OWN_CODES.get(verb, ()) else "CALL_ERROR", str(told["error"])[:1000])
        return told["value"]

    def described(self, told: Any, outputs: Sequence[Place]) -> Called:
        try:
            return called(told, outputs, self.arenas["outputs"])
        except (KeyError, TypeError, ValueError, IndexError, RecursionError, AttributeError) as error:
            self.close()
            raise RunnerFailed("FORGED", f"its description of the outputs is none: {error}"[:300]) from None

    def _ended(self, verb: str) -> RunnerFailed:
        process.ended(self.pid, ENDING_SECONDS)
        status = self._server.ending(self.pid)
        if status is None:
            how = "closed its socket"
        elif os.WIFSIGNALED(status):
            how = f"died of signal {signal.Signals(os.WTERMSIG(status)).name}"
        else:
            how = f"ended with exit status {os.waitstatus_to_exitcode(status)}"
        tail = self._child.tail()
        self.close()
        return RunnerFailed("CRASH", f"the process {how} in '{verb}'. {tail}".strip())

    @property
    def alive(self) -> bool:
        """Whether its process is there and its socket open."""
        return self._child.pipe.fileno() >= 0 and process.state(self.pid) not in ("", "Z", "X")

    def kill(self) -> None:
        """Kills the child and what it started, and does not wait; ``close`` is still to be called."""
        if self._child.pipe.fileno() >= 0:
            for pid in (*process.descendants(self.pid), self.pid):
                process.kill(pid)

    def close(self) -> None:
        """Ends the child and what it started; a second call does nothing."""
        if self._child.pipe.fileno() < 0:
            return
        self.kill()
        self._child.pipe.close()
        if self.device.type == "cuda":
            process.ended(self.pid)  # it maps the parent's memory until then
        self._server.ending(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
