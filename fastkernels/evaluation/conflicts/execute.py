"""Runs one stage on one candidate in this process; everything it raises becomes a result."""

from __future__ import annotations

import torch

from fastkernels.errors import CandidateError
from fastkernels.evaluation.conflicts.job import Job, Result
from fastkernels.evaluation.conflicts.observe import frame_of
from fastkernels.evaluation.conflicts.opaque import Unmendable, opaque
from fastkernels.evaluation.conflicts.report import Finding
from fastkernels.evaluation.conflicts.skip import Skip, wants_cuda
from fastkernels.evaluation.conflicts.stages import check_of
from fastkernels.evaluation.conflicts.subject import Subject

MANY = 40  # findings that are kept of a stage


def execute(job: Job, stage: str) -> Result:
    """The result of ``stage``; loading the candidate is part of it."""
    try:
        candidate = job.target.load()
    except (CandidateError, SystemExit) as error:
        cause = error.__cause__ or error
        if wants_cuda(error):
            return Result(stage=stage, outcome="skip", reason=f"needs a CUDA device: {str(cause).splitlines()[0]}")
        finding = Finding(code="LOAD_ERROR", evidence=frame_of(cause).model_copy(update={"text": str(error)[:1500]}))
        return Result(stage=stage, outcome="load error", findings=[finding])
    cuda = torch.cuda.is_available() and "cuda" in (candidate.supports.devices or ("cuda",))
    subject = Subject(candidate=candidate, device=torch.device("cuda" if cuda else "cpu"), buckets=job.buckets)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result = Result(
        stage=stage,
        outcome="done",
        label=job.target.label,
        task=candidate.task.name,
        cuda=torch.cuda.is_available(),
        device=device,
    )
    try:
        if job.mended:
            _ = subject.dtypes  # as the candidate itself takes them: the mend must hold in all of these
            subject.rebuild = opaque(candidate)
        for finding in check_of(stage)(subject):
            result.findings.append(finding)
            if len(result.findings) >= MANY:
                break
        if stage == "eager":
            result.reason = _refused(subject)
    except (Skip, Unmendable) as skip:
        if result.findings:
            result.reason = f"stopped: {skip}"
        else:
            result.outcome, result.reason = "skip", str(skip)
    except Exception as error:  # noqa: BLE001 - a candidate may break a stage in any way; it is reported as unknown
        result.findings.append(Finding(code="UNKNOWN", evidence=frame_of(error)))
    return result


def _refused(subject: Subject) -> str:
    """Which dtypes are left out of every stage because the candidate raises in them; empty for none."""
    left = [str(d).removeprefix("torch.") for d in subject.declared if d not in subject.dtypes]
    return f"not tested in {', '.join(left)}: the candidate raises; say so in supports" if left else ""
