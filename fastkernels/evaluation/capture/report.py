"""A capture for people: calls by task and phase, routing beside uniform routing, what graphs see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fastkernels.evaluation.capture.record import PHASES, Capture, Phase, SiteRecord, Variant
from fastkernels.evaluation.capture.routing import compare

LISTED = 6  # variants of one kind of site
SHOWN = 4  # facts


def as_markdown(capture: Capture) -> str:
    """The whole report."""
    parts = [_head(capture), _tasks(capture)]
    parts += [_routing(capture)] if capture.routing else []
    parts += [_graph(capture)] if capture.graph is not None else []
    parts += [_rest(capture)]
    return "\n".join(part for part in parts if part) + "\n"


def _head(c: Capture) -> str:
    calls = ", ".join(f"{n} {phase}" for phase, n in c.root_calls.items()) or "none seen"
    engine = f"{c.engine} {c.engine_version}".strip()
    rank = f", rank {c.rank} of {c.world_size}" if c.world_size > 1 else ""
    lines = [
        f"# Capture of {c.model} ({c.cls})",
        "",
        f"{engine}{rank}, {c.dtype} on {c.device}; {c.workload or 'calls of a live model'}; {c.captured_at}.",
        f"Calls of the model: {calls}. Sites: {len(c.sites)}, of which {sum(not s.gated for s in c.sites)} are open.",
    ]
    if c.values != "none":
        lines.append(
            f"Values: {c.values}, {len(c.samples)} calls in {size(c.stored_bytes)} of {size(c.max_bytes)}; "
            f"{c.dropped} found no room, {c.withheld} tensors withheld because they tell the prompts."
        )
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes in the unit that shows them.

    >>> size(912), size(132032), size(1 << 28), size(3 << 30)
    ('912 B', '128.9 KiB', '256 MiB', '3 GiB')
    """
    units = ("B", "KiB", "MiB", "GiB")
    at = min(max(count, 1).bit_length() - 1, 39) // 10
    return f"{count / (1 << 10 * at):.1f} {units[at]}".replace(".0 ", " ")


def _tasks(c: Capture) -> str:
    rows = []
    phases = [p for p in PHASES if any(site.calls[p] for site in c.sites)]
    kinds = dict.fromkeys((s.task, _facts(s)) for s in c.sites)
    for task, facts in kinds:
        sites = [s for s in c.of(task) if _facts(s) == facts]
        merged: dict[str, Counter[Phase]] = {}
        for site in sites:
            for variant in site.variants:
                merged.setdefault(_shown(site, variant), Counter()).update(variant.calls)
        ordered = sorted(merged.items(), key=lambda item: -item[1].total())
        first = [f"{task} {facts}".strip(), str(sum(s.copies for s in sites))]
        for i, (text, calls) in enumerate(ordered[:LISTED]):
            rows.append([*(first if not i else ("", "")), text, *_by_phase(calls, phases)])
        if len(ordered) > LISTED:
            more: Counter[Phase] = Counter()
            for _, calls in ordered[LISTED:]:
                more.update(calls)
            rows.append(["", "", f"... {len(ordered) - LISTED} more", *_by_phase(more, phases)])
        if not ordered:
            rows.append([*first, "not called", *[""] * len(phases)])
    return "\n## Calls\n\n" + table(["task", "sites", "arguments", *phases], rows)


def _facts(site: SiteRecord) -> str:
    """The first numbers among the constructor facts: they tell one linear from another."""
    numbers = [(k, v) for k, v in site.facts.items() if isinstance(v, int) and not isinstance(v, bool)]
    return ", ".join(f"{name}={value}" for name, value in numbers[:SHOWN])


def _shown(site: SiteRecord, variant: Variant) -> str:
    return variant.describe() + (" (the host's own)" if site.gated else "")


def _by_phase(calls: Counter[Phase], phases: Sequence[Phase]) -> list[str]:
    return [str(calls[phase]) if calls[phase] else "" for phase in phases]


def _routing(c: Capture) -> str:
    rows = []
    for routing in c.routing:
        found = compare(routing)
        hot = ", ".join(f"{i}: {share:.1%}" for i, share in routing.hot())
        rows.append(
            [
                routing.path,
                routing.phase,
                str(found.calls),
                str(found.tokens),
                f"{found.skew:.2f} / {found.uniform_skew:.2f}",
                f"{found.call_skew:.2f} / {found.uniform_call_skew:.2f}",
                f"{found.touched:.1f} / {found.uniform_touched:.1f} of {found.experts}",
                hot,
            ]
        )
    head = ["layer", "phase", "calls", "tokens", "skew", "skew of a call", "experts of a call", "hot experts"]
    return (
        "\n## Routing\n\nCaptured / uniform: where each token picks as many experts at random. Skew is the most loaded "
        "expert's tokens over the mean.\n\n" + table(head, rows)
    )


def _graph(c: Capture) -> str:
    graph = c.graph
    assert graph is not None
    verdict = {True: "agree", False: "differ", None: "not compared"}[graph.passed]
    lines = [f"\n## Graphs: {verdict}", "", graph.detail]
    if graph.sizes:
        lines.append(f"Captured sizes in tokens: {', '.join(map(str, graph.sizes))}.")
    if graph.padded:
        steps = ", ".join(f"{a} in {b}" for a, b in sorted(graph.padded.items()))
        lines.append(f"Steps of so many tokens run in a graph of: {steps}.")
    return "\n".join(lines + [f"- {difference}" for difference in graph.differences])


def _rest(c: Capture) -> str:
    lines = []
    gated = {(s.task, s.gated) for s in c.sites if s.gated}
    lines += [f"- {task}: gated: {reason}" for task, reason in sorted(gated)]
    left: Counter[tuple[str, str]] = Counter()
    for site in c.sites:
        for reason, count in site.left.items():
            left[site.task, reason] += count
    lines += [f"- {task}: {count} calls are none of the task's: {reason}" for (task, reason), count in left.items()]
    alike: dict[str, list[str]] = {}
    for what in c.unrecognised:
        path, _, why = what.partition(" ")
        alike.setdefault(why, []).append(path)
    for why, paths in alike.items():
        lines.append(f"- unrecognised: {paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''} {why}")
    lines += [f"- {note}" for note in c.notes]
    return "\n## Notes\n\n" + "\n".join(lines) if lines else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of markdown.

    >>> print(table(["a"], [["1"]]))
    | a |
    | --- |
    | 1 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
