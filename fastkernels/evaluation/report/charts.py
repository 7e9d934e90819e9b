"""The charts of the page as plotly figures. Text and ground get no colour here: the page's script follows its theme.

Every series also has a symbol or a dash of its own, so that none is told apart by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.coverage.result import Coverage
from fastkernels.evaluation.e2e.result import ArmName, Interval, Metric
from fastkernels.evaluation.report.arms import NAMES
from fastkernels.evaluation.report.document import Figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Mid tones: at least 3:1 against white and against the dark ground.
COLOURS = {"baseline": "#76828f", "null": "#9a6bd0", "candidate": "#2f86d6", "control": "#c2661f", "noise": "#76828f"}
SYMBOLS = {"baseline": "diamond", "null": "square", "candidate": "circle", "control": "x"}
HOLLOW = {"baseline": "diamond-open", "control": "x-thin-open"}  # the candidate may stand on either: both show
DASHES = {"baseline": "dash", "null": "dot", "candidate": "solid"}
RUN_COLOURS = ("#2f86d6", "#c2661f", "#9a6bd0", "#3f9a5f", "#c9507f", "#76828f")
RUN_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
LABEL_CHARACTERS = 22  # of a row's label: what a phone has room for
LEGEND = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"}
ROW_PIXELS, FRAME_PIXELS = 46, 90


def speed(rows: Sequence[tuple[str, Mapping[str, Interval | None]]]) -> Figure:
    """A row a workload: the A/A noise of the baseline as a band, the null arm and the candidate with 95% intervals."""
    import_plotly()
    import plotly.graph_objects as go

    n = len(rows)
    figure = go.Figure()
    bands = [(i, v) for i, (_, r) in enumerate(rows) if (v := r.get("noise"))]
    figure.add_bar(
        name="A/A noise",
        y=[n - 1 - i for i, _ in bands],
        x=[b.high - b.low for _, b in bands],
        base=[b.low for _, b in bands],
        orientation="h",
        width=0.8,
        marker={"color": COLOURS["noise"], "opacity": 0.3, "line": {"width": 0}},
        customdata=[[b.low, b.high] for _, b in bands],
        hovertemplate="A/A noise %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>",
    )
    offsets: dict[ArmName, float] = {"null": -0.18, "candidate": 0.12}
    for name, offset in offsets.items():
        seen = [(i, v) for i, (_, r) in enumerate(rows) if (v := r.get(name))]
        figure.add_scatter(
            name=NAMES[name],
            mode="markers",
            y=[n - 1 - i + offset for i, _ in seen],
            x=[v.value for _, v in seen],
            error_x=_error([v for _, v in seen]),
            marker={"color": COLOURS[name], "symbol": SYMBOLS[name], "size": 9},
            customdata=[[v.low, v.high] for _, v in seen],
            hovertemplate=f"{name} %{{x:.3f}}x [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]<extra></extra>",
        )
    return _ratio_rows(figure, [text for text, _ in rows])


def compare(rows: Sequence[tuple[str, Mapping[str, Interval | None]]], names: Sequence[str]) -> Figure:
    """A row a workload: each run's candidate with its 95% interval, each run with a symbol of its own."""
    import_plotly()
    import plotly.graph_objects as go

    n, step = len(rows), 0.7 / max(len(names), 1)
    figure = go.Figure()
    for k, name in enumerate(names):
        seen = [(n - 1 - i + 0.35 - step * (k + 0.5), v) for i, (_, r) in enumerate(rows) if (v := r.get(name))]
        figure.add_scatter(
            name=label(name),
            mode="markers",
            y=[y for y, _ in seen],
            x=[v.value for _, v in seen],
            error_x=_error([v for _, v in seen]),
            marker={"color": RUN_COLOURS[k % len(RUN_COLOURS)], "symbol": RUN_SYMBOLS[k % len(RUN_SYMBOLS)], "size": 9},
            hovertemplate="%{x:.3f}x<extra></extra>",
        )
    return _ratio_rows(figure, [text for text, _ in rows])


def _error(values: Sequence[Interval]) -> Figure:
    """Error bars from intervals."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [v.high - v.value for v in values],
        "arrayminus": [v.value - v.low for v in values],
        "thickness": 2,
        "width": 5,
    }


def _ratio_rows(figure: go.Figure, labels: Sequence[str]) -> Figure:
    """Axes of a chart of ratios, a row a label from the top, with a line at 1."""
    figure.add_vline(x=1, line={"color": COLOURS["baseline"], "width": 1, "dash": "dot"})
    _label(figure, labels)
    figure.update_xaxes(title="of the baseline", ticksuffix="x")
    return finish(figure, legend=True)


def _label(figure: go.Figure, labels: Sequence[str]) -> None:
    """Labels of rows, the first at the top."""
    n = len(labels)
    figure.update_yaxes(tickvals=list(range(n)), ticktext=[label(t) for t in reversed(labels)], range=[-0.6, n - 0.4])


def speed_height(rows: int) -> int:
    """Pixels of a chart of as many rows."""
    return FRAME_PIXELS + ROW_PIXELS * max(rows, 1)


def distribution(latencies_ms: Mapping[ArmName, Sequence[float]]) -> Figure:
    """Share of requests that took at most so long, by arm."""
    import_plotly()
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm, values in latencies_ms.items():
        ordered = sorted(values)
        figure.add_scatter(
            name=NAMES[arm],
            mode="lines",
            x=ordered,
            y=[(i + 1) / len(ordered) for i in range(len(ordered))],
            line={"color": COLOURS[arm], "dash": DASHES[arm], "width": 2, "shape": "hv"},
            hovertemplate=f"{arm} %{{y:.0%}} within %{{x:.4g}} ms<extra></extra>",
        )
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02], title="of requests")
    figure.update_xaxes(title="ms", nticks=5)
    return finish(figure, legend=True)


def boxes(values_ms: Mapping[ArmName, Sequence[float]]) -> Figure:
    """A box an arm over the rounds' medians, each round a dot."""
    import_plotly()
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm, values in values_ms.items():
        figure.add_box(
            name=NAMES[arm],
            x=list(values),
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            marker={"color": COLOURS[arm], "symbol": SYMBOLS[arm], "size": 4},
            line={"width": 1.5},
            hoverinfo="x+name",
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title="ms", nticks=5)
    return finish(figure, legend=False)


def distances(rows: Sequence[tuple[str, Metric]]) -> Figure:
    """A row a metric: how far baseline, candidate and control are from the oracle. A distance of 0 is at the edge."""
    import_plotly()
    import plotly.graph_objects as go

    positive = [v for _, m in rows for v in (m.baseline, m.candidate, m.control) if v > 0 and math.isfinite(v)]
    edge = 10 ** (math.floor(math.log10(min(positive, default=1.0))) - 1)
    n = len(rows)
    figure = go.Figure()
    for i, (_, m) in enumerate(rows):
        ends = [max(v, edge) for v in (m.baseline, m.candidate, m.control)]
        figure.add_scatter(
            mode="lines", x=[min(ends), max(ends)], y=[n - 1 - i] * 2, showlegend=False, hoverinfo="skip",
            line={"color": COLOURS["baseline"], "width": 1},
        )  # fmt: skip
    for name in ("baseline", "candidate", "control"):
        values = [getattr(m, name) for _, m in rows]
        figure.add_scatter(
            name=name,
            mode="markers",
            x=[max(v, edge) for v in values],
            y=[n - 1 - i for i in range(n)],
            customdata=values,
            marker={
                "color": COLOURS[name],
                "symbol": HOLLOW.get(name, SYMBOLS[name]),
                "size": 14 if name in HOLLOW else 9,
                "line": {"width": 2 if name in HOLLOW else 0},
            },
            hovertemplate=f"{name} %{{customdata:.3g}}<extra></extra>",
        )
    _label(figure, [text for text, _ in rows])
    figure.update_xaxes(
        type="log", title="distance to the oracle", exponentformat="power", dtick=decades(positive, edge)
    )
    if edge in [max(v, edge) for _, m in rows for v in (m.baseline, m.candidate, m.control)]:
        figure.update_xaxes(title="distance (0 at the edge)")
    return finish(figure, legend=True)


def decades(values: Sequence[float], edge: float) -> int:
    """Powers of ten between two ticks: five ticks or so from the edge to the largest value.

    >>> decades([1e-12, 0.5], 1e-13), decades([0.006, 0.09], 1e-3)
    (3, 1)
    """
    return max(1, math.ceil(math.log10(max(values, default=edge) / edge) / 5))


def coverage(found: Coverage) -> Figure:
    """One bar of the time: inside replaced modules by task, then outside by class."""
    import_plotly()
    import plotly.graph_objects as go

    inside = [(t.task, t.share) for t in found.tasks if t.share]
    parts = [(name, part, True) for name, part in inside] + [(n, p, False) for n, p in found.outside.items()]
    parts = parts[:14]
    rest = 1 - sum(p for _, p, _ in parts)
    if rest > 0.005:
        parts.append(("everything else", rest, False))
    n = len(parts)
    figure = go.Figure()
    for name, wanted, colour, pattern in (
        ("candidates", True, COLOURS["candidate"], ""),
        ("not replaced", False, COLOURS["baseline"], "/"),
    ):
        own = [(n - 1 - i, p) for i, (_, p, replaced) in enumerate(parts) if replaced == wanted]
        figure.add_bar(
            name=name,
            orientation="h",
            y=[y for y, _ in own],
            x=[p for _, p in own],
            marker={"color": colour, "pattern": {"shape": pattern, "fillmode": "overlay", "size": 5}, "opacity": 0.85},
            hovertemplate="%{x:.1%}<extra></extra>",
        )
    figure.update_yaxes(tickvals=list(range(n)), ticktext=[label(text) for text, _, _ in reversed(parts)])
    figure.update_xaxes(tickformat=".0%", title=f"of {found.clock} time", rangemode="tozero")
    return finish(figure, legend=True)


def label(text: str) -> str:
    """A row's label: the lines of ``text`` cut to what a phone has room for, and no markup in it for plotly to read.

    >>> label("org/a-model-of-a-rather-long-name\\nLLM.mixed")
    'a-model-of…r-long-name<br>LLM.mixed'
    """
    lines = [line.rpartition("/")[2] for line in text.split("\n")]
    half = LABEL_CHARACTERS // 2
    short = [line if len(line) <= LABEL_CHARACTERS else f"{line[: half - 1]}…{line[-half:]}" for line in lines]
    return "<br>".join(escape(line) for line in short)


def finish(figure: go.Figure, *, legend: bool) -> Figure:
    """The look that all charts share, as plain data."""
    figure.update_layout(
        template="none",
        barmode="overlay",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=legend,
        legend=LEGEND,
        margin={"l": 8, "r": 12, "t": 28 if legend else 8, "b": 40},
        hovermode="closest",
        dragmode=False,
    )
    figure.update_xaxes(automargin=True, zeroline=False, fixedrange=True, title_standoff=6)
    figure.update_yaxes(automargin=True, zeroline=False, fixedrange=True)
    return figure.to_plotly_json()


def import_plotly() -> None:
    """Raises EvaluationError where plotly is not installed."""
    try:
        import plotly.graph_objects  # noqa: F401 - whether it can be
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"the page needs {error.name}: pip install 'fastkernels[report]', or write the report as .md or .json."
        ) from None
