"""A bench's result as rows: ``us | GB/s or TFLOP/s | % of roofline | x best baseline | gate``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fastkernels.evaluation.bench.reasons import REASONS
from fastkernels.evaluation.bench.result import BenchResult, CaseResult, Mode, Timing

HIGH_INTENSITY = 100.0  # operations a byte from which TFLOP/s says more, where the roofline has not told
SHOWN_MODES: tuple[Mode, ...] = ("eager", "graph")  # with their ratios; all times are told apart from the rows
HEADINGS = ("case", "us", "rate", "roofline", "x best baseline", "gate")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case, each cell as it is shown; a dash where nothing was measured."""

    case: str
    us: str
    rate: str
    roofline: str
    ratio: str
    gate: str
    passed: bool

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.case, self.us, self.rate, self.roofline, self.ratio, self.gate)


def row(case: CaseResult) -> Row:
    """The row of a case. A red gate shows no ratio: its times mean nothing.

    >>> slow = Timing(seconds=2e-6, low=2e-6, high=2e-6)
    >>> found = row(CaseResult(task="silu", level=1, case="rows", dtype="float32", device="cpu", status="PASSED",
    ...     gate=True, timing={"eager": slow}, bytes=4000, flops=500))
    >>> found.us, found.rate, found.gate
    ('2.00', '2 GB/s', 'pass')
    """
    mine = case.mine
    codes = ", ".join(dict.fromkeys(f.code for f in case.failures))
    return Row(
        case=" ".join((f"L{case.level} {case.task}", case.case, case.dtype)),
        us=microseconds(mine.seconds) if mine is not None else "-",
        rate=rate(case, mine) if mine is not None else "-",
        roofline=f"{case.roofline_share:.0%}" if case.roofline_share is not None and mine is not None else "-",
        ratio=ratio(case),
        gate=", ".join(("pass", *flags(case))) if case.gate else codes,
        passed=case.gate,
    )


def flags(case: CaseResult) -> list[str]:
    """What qualifies a pass: a candidate that only calls the reference, times that noise hides."""
    noisy = any(n.startswith("noise") for n in case.notes)
    return [*(["delegates"] if case.delegates else []), *(["noise"] if noisy else [])]


def rate(case: CaseResult, timing: Timing) -> str:
    """TFLOP/s where arithmetic binds, else GB/s, at the task's least bytes and operations."""
    intensity = case.flops / case.bytes if case.bytes else 0.0
    computes = case.bound == "compute" or (case.bound is None and intensity > HIGH_INTENSITY)
    if computes:
        return f"{case.flops / timing.seconds / 1e12:.3g} TFLOP/s"
    return f"{case.bytes / timing.seconds / 1e9:.3g} GB/s"


def ratio(case: CaseResult) -> str:
    """The ratio with its interval and the baseline's name, or a dash. Where both sides ran eager and as graphs, the
    mode that is scored and the other one's ratio."""
    if case.ratio is None or not case.gate:
        return "-"
    r = case.ratio
    told = f"{r.value:.2f}x [{r.low:.2f}, {r.high:.2f}] {case.best_baseline or ''}".rstrip()
    others = [f"{m} {case.ratios[m].value:.2f}x" for m in SHOWN_MODES if m in case.ratios and m != case.mode]
    return f"{told}, {case.mode} ({', '.join(others)})" if others else told


def baselines(case: CaseResult) -> list[tuple[str, str, str]]:
    """Every baseline and mode: name, mode and microseconds; the candidate's own modes first."""
    all_modes = [("candidate", case.timing), *((b.name, b.modes) for b in case.baselines)]
    return [(name, str(mode), microseconds(t.seconds)) for name, modes in all_modes for mode, t in modes.items()]


def microseconds(seconds: float) -> str:
    """Three significant digits, no exponent.

    >>> microseconds(1.234e-6), microseconds(0.0123), microseconds(4.5e-5)
    ('1.23', '12300', '45.0')
    """
    us = seconds * 1e6
    if us >= 1000:
        return f"{float(f'{us:.3g}'):.0f}"
    return f"{us:.{max(0, 2 - len(str(int(us))) + 1)}f}"


def why(case: CaseResult, *, at_most: int | None = None) -> list[str]:
    """A line for each failure (``at_most`` of them), then for each of their codes what it means and the way out."""
    codes = dict.fromkeys(f.code for f in case.failures)
    more = len(case.failures) - (at_most or len(case.failures))
    lines = [*map(str, case.failures[:at_most]), *([f"and {more} more"] if more > 0 else [])]
    return lines + [f"{c}: {REASONS[c].means}. Way out: {REASONS[c].way_out}." for c in codes]


def notes(result: BenchResult) -> list[str]:
    """The run's notes, then each note of its cases once, with how many have it."""
    counts = Counter(n for c in result.cases for n in dict.fromkeys(c.notes))
    return [*result.notes, *(f"{note} ({n} case{'s' if n > 1 else ''})" for note, n in counts.items())]


def closing(result: BenchResult) -> str:
    """The score, what it is of, and what it was measured on."""
    counts = [c.status for c in result.cases]
    passed, skipped, failed = counts.count("PASSED"), counts.count("SKIPPED"), len(result.failed)
    score = f"score {result.score:.3f}" if passed or failed else "no score"
    skips = f", {skipped} skipped" if skipped else ""
    machine = f"{result.machine.device}, torch {result.machine.versions.get('torch', '?')}"
    return f"{score}: {passed} passed, {failed} failed{skips} of {len(counts)} cases; {machine}, {result.seconds:.0f} s"
