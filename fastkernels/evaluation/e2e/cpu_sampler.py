"""Samples of a Linux machine's cores: clock, temperature, and the time that arms wanted a core and did not have it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class CpuSample:
    """The cores at one moment: ``at`` in seconds of ``time.monotonic()``.

    The rest counts up, in seconds: ``busy`` and ``stolen`` over all cores, by this machine and by others on its host;
    ``ran`` and ``waited`` over the threads of the arms, on a core and ready for one.
    """

    at: float
    megahertz: float | None = None
    celsius: float | None = None
    busy: float = 0.0
    stolen: float = 0.0
    ran: float = 0.0
    waited: float = 0.0


class CpuSampler:
    """Samples every 0.1 s on a thread, and once for each look at them. Arms are the children of this process."""

    failure = ""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc, self._sys = root / "proc", root / "sys"
        self._samples: list[CpuSample] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._known: dict[Path, tuple[float, float]] = {}
        self._ran = self._waited = 0.0
        self._clocks = sorted(self._sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._zones = sorted(self._sys.glob("class/thermal/thermal_zone*/temp"))

    def start(self) -> None:
        """Begins to sample, where there is anything to read."""
        if (self._proc / "stat").is_file():
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def samples(self) -> Sequence[CpuSample]:
        """Those so far and one of now, in order of time."""
        if self._thread.ident is not None:
            self._sample()
        return self._samples[:]

    def _run(self) -> None:
        self._sample()
        while not self._end.wait(PERIOD_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            busy, stolen = parse_stat(_text(self._proc / "stat") or "")
            self._count_waiting()
            clocks = [int(t) / 1e3 for f in self._clocks if (t := _text(f)) is not None]  # kHz
            zones = [int(t) / 1e3 for f in self._zones if (t := _text(f)) is not None]  # thousandths of a degree
            self._samples.append(
                CpuSample(
                    at=time.monotonic(),
                    megahertz=max(clocks, default=None),
                    celsius=max(zones, default=None),
                    busy=busy,
                    stolen=stolen,
                    ran=self._ran,
                    waited=self._waited,
                )
            )

    def _count_waiting(self) -> None:
        """Adds what the arms' threads ran and waited since; a thread that is new counts from when it is first seen."""
        known, self._known = self._known, {}
        for thread in self._threads():
            text = _text(thread / "schedstat")
            if text is None:
                continue
            ran, waited = parse_schedstat(text)
            before = known.get(thread, (ran, waited))
            self._ran += ran - before[0]
            self._waited += waited - before[1]
            self._known[thread] = ran, waited

    def _threads(self) -> Iterator[Path]:
        for own in _list(self._proc / "self/task"):
            for child in (_text(own / "children") or "").split():
                yield from _list(self._proc / child / "task")


def parse_stat(text: str) -> tuple[float, float]:
    """Seconds that the cores were busy for this machine, and that others on the host took, from /proc/stat.

    >>> parse_stat("cpu  4000 0 1000 90000 500 0 100 700 0 0\\ncpu0 ...")
    (51.0, 7.0)
    """
    fields = text.partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return 0.0, 0.0
    user, nice, system, _, _, irq, softirq, stolen = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields[1:9])
    return user + nice + system + irq + softirq, stolen


def parse_schedstat(text: str) -> tuple[float, float]:
    """Seconds that a thread ran, and that it was ready and waited for a core, from its schedstat.

    >>> parse_schedstat("2500000000 40000000 312")
    (2.5, 0.04)
    """
    ran, waited, *_ = text.split()
    return int(ran) / 1e9, int(waited) / 1e9


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:  # the process or thread has ended, or the kernel keeps no such file
        return None


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # the process has ended
        return []
