"""A document as one self-contained HTML page: styles, the charts' data and plotly's script are inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastkernels.errors import EvaluationError
from fastkernels.evaluation.report.charts import import_plotly
from fastkernels.evaluation.report.document import Chart, Charts, Code, Details, Document, Table, Text

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {Text: "text", Table: "table", Code: "code", Charts: "charts", Details: "details"}


def page(document: Document) -> str:
    """The whole page. All text is escaped; plotly's script stands once, after the text.

    Raises:
        EvaluationError: jinja2 or plotly is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError:
        raise EvaluationError(
            "the page needs jinja2: pip install 'fastkernels[report]', or write the report as .md or .json."
        ) from None
    import_plotly()
    from plotly.offline import get_plotlyjs

    figures: list[dict[str, Any]] = []

    def place(chart: Chart) -> int:
        """Keeps a chart's data for the script, and says which one it is."""
        figures.append(plain(chart.figure()))
        return len(figures) - 1

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["block"] = lambda block, kind: KINDS[type(block)] == kind
    return environment.get_template("page.html.j2").render(
        document=document,
        place=place,
        figures=figures,
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        draw=(TEMPLATES / "charts.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def plain(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure as JSON data: plotly keeps numbers in arrays of its own."""
    import json

    from plotly.io import to_json

    return json.loads(to_json(figure, validate=False))
