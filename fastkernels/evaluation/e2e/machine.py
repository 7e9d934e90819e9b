"""The machine that a run is made on, as far as its numbers depend on it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch

import fastkernels
from fastkernels.errors import EvaluationError
from fastkernels.evaluation.e2e.result import Machine

PATIENCE_SECONDS = 30.0


def machine(device: str, engines: Iterable[str] = ()) -> Machine:
    """Names the device, and the versions that matter to its speed: of ``engines`` too.

    Raises:
        EvaluationError: there is no such device here.

    >>> found = machine("cpu")
    >>> found.versions["torch"] == torch.__version__, "thread" in found.device
    (True, True)
    """
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise EvaluationError(f"device {device}: {str(error).splitlines()[0]}") from None
    if wanted.type not in ("cpu", "cuda"):
        raise EvaluationError(f"device {device}: arms run on cpu or on cuda.")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {
        name: found
        for name in ("transformers", "triton", *sorted(set(engines)))
        if (found := version_of(name)) is not None
    }
    versions["fastkernels"] = fastkernels.__version__
    if wanted.type == "cpu":
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        name = f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    else:
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (wanted.index or 0) >= there:
            raise EvaluationError(f"device {device}: torch {torch.__version__} sees {there} CUDA devices here.")
        name = torch.cuda.get_device_name(wanted)
        versions |= {"cuda": torch.version.cuda or "?", "driver": driver()}
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return Machine(device=name, versions=versions, host=host)


def version_of(package: str) -> str | None:
    """Of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The CPU's model as Linux names it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next((name for name in names if name), platform.processor() or platform.machine())


@functools.cache
def driver() -> str:
    """The NVIDIA driver's version, or ``?`` where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "?"
    return told.stdout.split("\n")[0].strip() if told.returncode == 0 and told.stdout else "?"
