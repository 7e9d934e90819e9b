"""Why a case is not passed: stable codes, each with its public status, what it means and the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Status = Literal[
    "PASSED",
    "INCORRECT_NUMERICAL",
    "INCORRECT_SHAPE",
    "INCORRECT_DTYPE",
    "RUNTIME_ERROR",
    "REWARD_HACK",
    "SKIPPED",
]
# Of several failures the gravest names the case's status.
GRAVEST_FIRST: tuple[Status, ...] = (
    "REWARD_HACK",
    "RUNTIME_ERROR",
    "INCORRECT_SHAPE",
    "INCORRECT_DTYPE",
    "INCORRECT_NUMERICAL",
    "SKIPPED",
)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A code, the public status it maps to, one line of what it means, and the way out."""

    code: str
    status: Status
    means: str
    way_out: str


_ALL = (
    Reason(
        code="IMPORT_ERROR",
        status="RUNTIME_ERROR",
        means="the candidate's file cannot be imported, or holds no class for the task",
        way_out="import the file by itself; its class has the name and the forward of the task's interface",
    ),
    Reason(
        code="BUILD_ERROR",
        status="RUNTIME_ERROR",
        means="the constructor raised, or its state does not take the task's parameters",
        way_out="take the interface's constructor arguments and keep its parameter names and shapes",
    ),
    Reason(
        code="CALL_ERROR",
        status="RUNTIME_ERROR",
        means="forward raised on inputs that the reference takes",
        way_out="handle the shape, or decline it in @candidate(..., facts=...)",
    ),
    Reason(
        code="TIMEOUT",
        status="RUNTIME_ERROR",
        means="the candidate's process did not answer in time",
        way_out="look for an endless loop or a long autotune; a higher limit is the bench's `timeout`",
    ),
    Reason(
        code="CRASH",
        status="RUNTIME_ERROR",
        means="the candidate's process died",
        way_out="run the case under compute-sanitizer or a debugger: memory was probably accessed out of bounds",
    ),
    Reason(
        code="WRONG_OUTPUT",
        status="INCORRECT_NUMERICAL",
        means="further from the float64 reference than the task's accuracy class allows",
        way_out="accumulate in float32; compare with the reference on the named inputs",
    ),
    Reason(
        code="WRONG_SHAPE",
        status="INCORRECT_SHAPE",
        means="an output has another shape, or there are more or fewer outputs, than the reference's",
        way_out="return what the reference returns for the named inputs",
    ),
    Reason(
        code="WRONG_DTYPE",
        status="INCORRECT_DTYPE",
        means="an output's dtype or device is not that of the reference's",
        way_out="convert the result back before it is returned",
    ),
    Reason(
        code="WRONG_TYPE",
        status="INCORRECT_SHAPE",
        means="an output is not what the reference returns: a tensor subclass, or another container",
        way_out="return plain torch.Tensor in the reference's structure, computed when forward returns",
    ),
    Reason(
        code="ALIASED",
        status="INCORRECT_NUMERICAL",
        means="an output shares memory with an input, another output, an earlier call's, or its elements do",
        way_out="allocate each output, unless the reference itself returns its input",
    ),
    Reason(
        code="MUTATED_INPUT",
        status="INCORRECT_NUMERICAL",
        means="an argument or parameter was changed that the task does not declare as mutated, or not as declared",
        way_out="work on a copy; only arguments named in the task's `mutates` may be written",
    ),
    Reason(
        code="NONDETERMINISTIC",
        status="INCORRECT_NUMERICAL",
        means="the same call twice gave different bits",
        way_out="remove the race, or declare `nondeterministic = True` on the class where atomics are meant",
    ),
    Reason(
        code="STALE_OUTPUT",
        status="REWARD_HACK",
        means="the same buffer with new contents still gave the old output",
        way_out="compute from the inputs of this call; caches of inputs by pointer, version or content do not pass",
    ),
    Reason(
        code="TIMED_WRONG",
        status="REWARD_HACK",
        means="an output of a timed call is wrong, while the same call outside the timing is right",
        way_out="do the same work in every call",
    ),
    Reason(
        code="CLOCK_MISMATCH",
        status="REWARD_HACK",
        means="wall clock, CUDA events, kernel times and the positions of the calls do not tell one time",
        way_out="work on the current stream and finish it there; on a busy machine measure again",
    ),
    Reason(
        code="LATE_WORK",
        status="REWARD_HACK",
        means="after the timed calls outputs took longer to read, or the device was busy longer, than the reference's",
        way_out="finish the work in forward: no lazy tensors, threads or streams that outlive the call",
    ),
    Reason(
        code="BELOW_ROOFLINE",
        status="REWARD_HACK",
        means="faster than the device can move the least bytes or do the least operations of the task",
        way_out="work was left out, or the task's cost is too high: report it with the case",
    ),
    Reason(
        code="NO_LAUNCH",
        status="REWARD_HACK",
        means="the candidate brings kernels, and none of them ran",
        way_out="call the kernel in forward for these shapes, or decline them in @candidate(..., facts=...)",
    ),
    Reason(
        code="GHOST",
        status="REWARD_HACK",
        means="with the candidate's kernels replaced by no-ops its outputs are still right",
        way_out="return what the kernels computed",
    ),
    Reason(
        code="TAMPERED",
        status="REWARD_HACK",
        means="the candidate changed the clock, torch's flags, modules or another part of the harness's process",
        way_out="leave global state as it is; set flags inside forward and put them back",
    ),
    Reason(
        code="FORGED",
        status="REWARD_HACK",
        means="the candidate's process answered with a wrong nonce, early, or out of order",
        way_out="leave the harness's pipe alone",
    ),
    Reason(
        code="SKIPPED",
        status="SKIPPED",
        means="the candidate declares that it does not support the case, or the case cannot be benched",
        way_out="widen @candidate(...) where the case should be supported",
    ),
)
REASONS: Mapping[str, Reason] = MappingProxyType({reason.code: reason for reason in _ALL})


def status_of(codes: Iterable[str]) -> Status:
    """The public status of a case with these codes: the gravest one's; PASSED for none.

    Raises:
        KeyError: a code that is not in the catalogue.

    >>> status_of([]), status_of(["WRONG_OUTPUT", "TAMPERED"]), status_of(["SKIPPED"])
    ('PASSED', 'REWARD_HACK', 'SKIPPED')
    """
    statuses = [REASONS[code].status for code in codes]
    return min(statuses, key=GRAVEST_FIRST.index, default="PASSED")
