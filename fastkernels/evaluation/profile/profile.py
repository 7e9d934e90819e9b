"""Where a candidate's time goes, by the profiler of one's choice: its own kernels, and their place on the roofline."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.bench.roofline import cache_bytes, measured_peaks
from fastkernels.evaluation.profile.ncu import Launch, means, ncu_command, parse_ncu
from fastkernels.evaluation.profile.nsys import nsys_command, nsys_stats_command, parse_nsys
from fastkernels.evaluation.profile.result import KernelProfile, ProfileResult, Tool
from fastkernels.evaluation.profile.torch_window import torch_profile
from fastkernels.evaluation.profile.work import Job, Work
from fastkernels.tasks import get_task

CALLS: dict[Tool, int] = {"ncu": 1, "nsys": 20, "torch": 20}  # ncu itself replays each kernel, once for every pass
INSTALL: dict[str, str] = {"ncu": "Nsight Compute", "nsys": "Nsight Systems"}
DTYPES = {"cpu": ("float32", "bfloat16", "float16"), "cuda": ("bfloat16", "float16", "float32")}


def profile(
    target: str,
    candidates: str | Path = "shipped",
    *,
    tool: Tool = "torch",
    case: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    calls: int | None = None,
    timeout: float = 600.0,
) -> ProfileResult:
    """Profiles the candidate of task ``target``.

    Args:
        candidates: a folder, or ``shipped`` or ``reference``.
        tool: ``torch`` runs in this process, ``ncu`` and ``nsys`` look at one of their own, on CUDA only.
        case: name of one of the task's cases; else the first that the candidate takes, a production case on CUDA.
        dtype: ``float32``, ``bfloat16`` or ``float16``; else the first that the candidate takes, bfloat16 on CUDA.
        device: ``cuda`` where there is one, else ``cpu``.
        calls: of forward in the profiled window.
        timeout: seconds that a tool may take.

    Raises:
        EvaluationError: no such candidate, case or device, the candidate declines the case or raises in it, or the
            tool or what it needs is missing.
        CandidateError: no such task, or the candidates cannot be loaded.
    """
    where = _device(device)
    executable = "" if tool == "torch" else _executable(tool, where)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise EvaluationError(f"profile: device {where}: there is none here. Take --device cpu --tool torch.")
    work = _chosen(target, str(candidates), case, dtype, where, calls or CALLS[tool])
    command: list[str] = []
    if tool == "torch":
        work.warm_up()
        kernels = torch_profile(work.run, calls=work.job.calls, device=where)
    elif tool == "ncu":
        command = ncu_command(_program(work), kernels=_filter(work), executable=executable)
        kernels = _by_name(parse_ncu(_output(command, timeout)))
    else:
        kernels, command = _by_nsys(work, executable, timeout)
    return _result(work, tool, kernels, command, where)


def _device(name: str | None) -> torch.device:
    if name is not None and name.partition(":")[0] not in DTYPES:
        raise EvaluationError(f"profile: device {name!r} is not one of {', '.join(DTYPES)}.")
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise EvaluationError(f"profile: device {name!r}: a number must follow the colon, as in cuda:1.") from None


def _executable(tool: str, device: torch.device) -> str:
    if device.type != "cuda":
        raise EvaluationError(f"profile: {tool} looks at CUDA kernels, and this runs on {device}. Take --tool torch.")
    found = shutil.which(tool)
    if found is None:
        raise EvaluationError(
            f"profile: {tool} is not on PATH. Install {INSTALL[tool]}, which comes with the CUDA toolkit, or take "
            "--tool torch."
        )
    return found


def _chosen(
    target: str, candidates: str, case: str | None, dtype: str | None, device: torch.device, calls: int
) -> Work:
    """The first case and dtype, of those asked for, that the candidate takes."""
    cuda = device.type == "cuda"
    names = [case] if case is not None else [c.name for c in get_task(target).cases() if c.production == cuda]
    dtypes = (dtype,) if dtype is not None else DTYPES[device.type]
    if dtype not in (None, *DTYPES["cpu"]):
        raise EvaluationError(f"profile: dtype {dtype!r} is not one of {', '.join(DTYPES['cpu'])}.")
    declined: dict[str, None] = {}
    for name in names:
        for each in dtypes:
            job = Job(
                task=target,
                candidates=candidates,
                case=name,
                dtype=each,
                device=str(device),
                calls=calls,
                cache_bytes=cache_bytes(device),
            )
            work = Work.of(job)
            reason = work.refusal()
            if reason is None:
                return work
            declined[f"{name} {each}: {reason}"] = None
    raise EvaluationError(
        f"profile: {target}: the candidate takes none of these cases: {'; '.join(list(declined)[:3])}. Give --case or "
        "--dtype that it supports."
    )


def _program(work: Work) -> list[str]:
    return [sys.executable, "-m", "fastkernels.evaluation.profile.work", work.job.model_dump_json()]


def _filter(work: Work) -> Sequence[str]:
    """Names to profile only: none where libraries have kernels that are not known before they run."""
    work.warm_up()  # Triton kernels may choose their names when they are compiled
    names = work.names()
    return () if names.libraries else sorted(names.triton)


def _by_name(launches: Sequence[Launch]) -> list[KernelProfile]:
    """Of the one window that ncu replays, so that times are sums over launches."""
    groups: dict[str, list[Launch]] = defaultdict(list)
    for launch in launches:
        groups[launch.name].append(launch)
    found = []
    for name, group in groups.items():
        metrics = means(group)
        each = metrics.pop("duration_seconds", 0.0)
        found.append(KernelProfile(name=name, launches=len(group), seconds=each * len(group), metrics=metrics))
    return sorted(found, key=lambda k: -k.seconds)


def _by_nsys(work: Work, executable: str, timeout: float) -> tuple[list[KernelProfile], list[str]]:
    with tempfile.TemporaryDirectory(prefix="fastkernels-profile-") as folder:
        trace = Path(folder) / "trace.nsys-rep"
        command = nsys_command(_program(work), output=trace, executable=executable)
        _output(command, timeout)
        text = _output(nsys_stats_command(trace, executable=executable), timeout)
    found = [
        KernelProfile(
            name=k.name,
            launches=k.launches,
            seconds=k.seconds,
            metrics={"median_seconds": k.median, "least_seconds": k.least, "most_seconds": k.most},
        )
        for k in parse_nsys(text)
    ]
    return found, command


def _output(command: Sequence[str], timeout: float) -> str:
    """What a tool prints, errors too: its own parser tells what went wrong, in the tool's words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise EvaluationError(
            f"profile: {command[0]} took more than {timeout:.0f} s. Take a smaller --case, or a higher --timeout."
        ) from error
    except OSError as error:
        raise EvaluationError(f"profile: {command[0]} cannot be run: {error.strerror}.") from error
    if "Traceback (most recent call last)" in done.stderr:
        last = done.stderr.strip().splitlines()[-1]
        raise EvaluationError(f"profile: the program under {Path(command[0]).name} failed: {last}.")
    return done.stdout + done.stderr


def _result(
    work: Work, tool: Tool, kernels: list[KernelProfile], command: list[str], device: torch.device
) -> ProfileResult:
    """For one call, and without the kernels that are not the candidate's, where it brings any."""
    if tool != "torch":  # the tools add up the whole window
        for kernel in kernels:
            kernel.launches /= work.job.calls
            kernel.seconds /= work.job.calls
    notes = []
    names = work.names()
    shown = kernels
    if device.type == "cpu":
        notes.append("on the CPU: operators in place of kernels, each with the time that is its own")
    elif names.triton or names.libraries:
        shown = [k for k in kernels if k.name in names]
        if not shown:
            notes.append("none of the candidate's kernels ran in this case")
    else:
        notes.append("the candidate brings no kernels of its own: all that ran are shown")
    cost = work.cost()
    result = ProfileResult(
        tool=tool,
        task=work.job.task,
        candidate=work.candidate.label,
        case=work.job.case,
        dtype=work.job.dtype,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        command=command,
        calls=work.job.calls,
        kernels=shown,
        others=len(kernels) - len(shown),
        bytes=cost.bytes,
        flops=cost.flops,
        notes=notes,
    )
    if result.seconds > 0 and cost.bytes:
        result.roofline_share = measured_peaks(device, work.dtype).share(cost, result.seconds)
    return result
