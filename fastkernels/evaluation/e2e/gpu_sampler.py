"""Samples of a GPU from one long-lived nvidia-smi, which a thread reads."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

PERIOD_MS = 100
# Newest names first; an older nvidia-smi refuses the whole query for one name that it does not know.
# power.draw is the mean of a second on recent GPUs, which is longer than many a block.
QUERIES = tuple(
    ("clocks.sm", power, "temperature.gpu", reasons)
    for power, reasons in (
        ("power.draw.instant", "clocks_event_reasons.active"),
        ("power.draw", "clocks_event_reasons.active"),
        ("power.draw", "clocks_throttle_reasons.active"),
    )
)
PATIENCE_SECONDS = 30.0  # for one answer: the first one loads the driver


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """A GPU at one moment: ``at`` in seconds of ``time.monotonic()``, ``reasons`` the bits of why clocks are as they
    are; None is what the GPU does not tell."""

    at: float
    megahertz: float | None = None
    watts: float | None = None
    celsius: float | None = None
    reasons: int = 0


def parse(line: str, at: float) -> GpuSample | None:
    """A line of nvidia-smi's CSV: MHz, W, °C, reasons in hexadecimal. None for a line that is none.

    >>> parse("1980, 512.34, 56, 0x0000000000000004", at=1.0)
    GpuSample(at=1.0, megahertz=1980.0, watts=512.34, celsius=56.0, reasons=4)
    >>> parse("1410, [N/A], 41, [Not Supported]", at=2.0)
    GpuSample(at=2.0, megahertz=1410.0, watts=None, celsius=41.0, reasons=0)
    >>> parse("Unable to determine the device handle for GPU0: 0000:04:00.0: Unknown Error", at=3.0)
    """
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(QUERIES[0]):
        return None
    megahertz, watts, celsius = (_number(field) for field in fields[:3])
    try:
        reasons = int(fields[3], 16)
    except ValueError:  # [N/A]
        reasons = 0
    return GpuSample(at=at, megahertz=megahertz, watts=watts, celsius=celsius, reasons=reasons)


def _number(field: str) -> float | None:
    try:
        return float(field)
    except ValueError:  # [N/A], [Not Supported], [Unknown Error]
        return None


class GpuSampler:
    """``failure`` says why there are no samples, or no more of them."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._samples: list[GpuSample] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._stopping = False
        self.failure = ""

    def start(self) -> None:
        """Starts nvidia-smi with the first query that it knows."""
        target = name_of(self._index)
        for query in QUERIES:
            command = ["nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv,noheader,nounits", "-i", target]
            try:
                tried = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                self.failure = f"no readings: nvidia-smi cannot be run ({error})"
                return
            first = parse(tried.stdout.strip(), time.monotonic())
            if tried.returncode == 0 and first is not None:
                self._samples.append(first)
                break
            self.failure = f"no readings: nvidia-smi says {' '.join((tried.stdout + tried.stderr).split())[:200]}"
        else:
            return
        self.failure = ""
        self._process = subprocess.Popen(
            [*command, "-lms", str(PERIOD_MS)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Ends nvidia-smi and the thread."""
        self._stopping = True
        if self._process is not None and self._reader is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._reader.join()

    def samples(self) -> Sequence[GpuSample]:
        """Those so far, in order of time."""
        return self._samples[:]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                sample = parse(line, time.monotonic())
                if sample is not None:
                    self._samples.append(sample)
        if not self._stopping:
            self.failure = f"no readings: nvidia-smi ended with status {process.wait()}"


def name_of(index: int) -> str:
    """What nvidia-smi calls torch's CUDA device ``index``: its UUID, for the two number devices differently."""
    if torch.cuda.is_available() and index < torch.cuda.device_count():
        return f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    return str(index)
