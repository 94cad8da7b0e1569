"""The report in a real browser: what is drawn, read, switched off and zoomed is what the log has; nothing is loaded.

Skipped where there is no Chromium. Pictures of the pages are kept in build/report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Tab, find_browser
from report_world import MISSING, STEPS, write_run

from cptron.report.html import write_comparison, write_report

PICTURES = Path(__file__).parents[2] / "build" / "report"
NASTY = "</script><script>alert(1)</script> 电路 <b>&"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests here."""
    program = find_browser()
    if not program:
        pytest.skip("no Chromium: install chromium or google-chrome, or set CHROME to one")
    started = Browser(program)
    yield started
    started.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it."""
    return write_run(tmp_path_factory.mktemp("report") / "run", name=NASTY)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    """Of metrics.jsonl, the last of each step."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    found = {r["step"]: r for line in lines if (r := json.loads(line))["kind"] == kind}
    return [found[step] for step in sorted(found)]


def figure(title: str) -> str:
    """JavaScript for the figure of this title."""
    figures = "[...document.querySelectorAll('figure')]"
    return f"{figures}.find(f => f.querySelector('b').textContent === {json.dumps(title)})"


def points(tab: Tab, title: str) -> dict[str, int]:
    """Points drawn of each line of a chart."""
    lines = f"[...{figure(title)}.querySelectorAll('path.line')].map(p => [p.dataset.label, Number(p.dataset.points)])"
    return dict(tab.value(lines))


def centre(tab: Tab, node: str, at: float = 0.5) -> tuple[float, float]:
    """A place of the window on an element: so far from its left edge."""
    tab.value(f"{node}.scrollIntoView({{block: 'center'}})")
    x, y, width, height = tab.value(f"(r => [r.x, r.y, r.width, r.height])({node}.getBoundingClientRect())")
    return x + width * at, y + height / 2


def values(tab: Tab, title: str) -> tuple[str, dict[str, str]]:
    """What the read-out of a chart says: where, and the value by line."""
    box = f"{figure(title)}.querySelector('.readout')"
    where = tab.value(f"{box}.querySelector('b').textContent")
    rows = tab.value(
        f"[...{box}.querySelectorAll('tr')].map(r => [r.cells[0].textContent, r.cells[1].textContent])"
    )
    return where, dict(rows)


def assert_quiet(tab: Tab, page: Path) -> None:
    """No message, no error, and nothing asked for but the page itself."""
    assert tab.said() == []
    assert tab.requested() == [page.resolve().as_uri()]


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        pytest.param(1280, False, marks=pytest.mark.more),
        pytest.param(390, False, marks=pytest.mark.more),
        (390, True),
        pytest.param(1280, True, marks=pytest.mark.more),
    ],
)
def test_charts_are_there_with_all_points(browser: Browser, run: Path, width: int, dark: bool) -> None:
    page = write_report(run)
    with browser.opened(page, width, dark) as tab:
        steps, evals = records(run, "step"), records(run, "eval")
        assert tab.value("document.querySelector('h1').textContent") == NASTY
        assert int(tab.value("document.documentElement.dataset.ready")) == tab.value(
            "document.querySelectorAll('figure svg.live').length"
        ) == len(tab.value("JSON.parse(document.getElementById('report-data').textContent).charts"))  # fmt: skip
        finite = [r for r in steps if isinstance(r["loss_nats_per_token"], float)]
        assert len(steps) == STEPS - len(MISSING) and len(finite) == len(steps) - 1
        assert points(tab, "Training loss") == {"all sources": len(finite), "replayed": 10}
        assert points(tab, "Validation loss") == {"new": len(evals), "old": len(evals)}
        assert tab.value("document.documentElement.scrollWidth") == width
        background = tab.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(", "))) < 300) is dark
        assert_quiet(tab, page)
        print(tab.screenshot(PICTURES / f"run_{width}_{'dark' if dark else 'light'}.png"))


def test_the_read_out_says_what_the_log_says(browser: Browser, run: Path) -> None:
    """By the pointer, and by the keyboard; a value that is not finite is said too."""
    with browser.opened(write_report(run)) as tab:
        svg = f"{figure('Training loss')}.querySelector('svg')"
        for at in (0.2, 0.5, 0.9):
            x, y = centre(tab, svg, at)
            tab.mouse("mouseMoved", x, y)
            where, found = values(tab, "Training loss")
            step = int(where.removeprefix("step ").partition(" ")[0])
            (record,) = [r for r in records(run, "step") if r["step"] == step]
            assert json.loads(found["all sources"]) == record["loss_nats_per_token"]
        tab.value(f"{svg}.focus()")
        for key, step in (("Home", 1), ("ArrowRight", 2), ("End", STEPS), ("ArrowLeft", STEPS - 1)):
            tab.key(key)
            where, found = values(tab, "Training loss")
            assert where.startswith(f"step {step} ·")
            (record,) = [r for r in records(run, "step") if r["step"] == step]
            assert json.loads(found["all sources"]) == record["loss_nats_per_token"]
        spoken = tab.value(f"{figure('Training loss')}.querySelector('[aria-live]').textContent")
        assert f"step {STEPS - 1}" in spoken
        tab.key("Escape")
        assert tab.value(f"{figure('Training loss')}.querySelector('.readout').hidden")
        assert tab.value(f"{figure('Training loss')}.querySelectorAll('path.bad').length") == 1


def test_switches(browser: Browser, run: Path) -> None:
    """Legend, log scale, axis, smoothing, events, zoom by drawing and back: each changes what is drawn."""
    page = write_report(run)
    with browser.opened(page) as tab:
        loss = figure("Training loss by source")
        button = f"{loss}.querySelector('.legend button')"
        before = points(tab, "Training loss by source")
        tab.click(*centre(tab, button))
        assert points(tab, "Training loss by source").keys() == set(list(before)[1:])
        assert tab.value(f"{button}.getAttribute('aria-pressed')") == "false"
        tab.click(*centre(tab, button))
        assert points(tab, "Training loss by source") == before

        path = f"{figure('Training loss')}.querySelector('path.line').getAttribute('d')"
        labels = f"[...{figure('Training loss')}.querySelectorAll('.axes text')].map(t => t.textContent)"
        linear = tab.value(path)
        tab.click(*centre(tab, f"{figure('Training loss')}.querySelector('button.log')"))
        assert tab.value(path) != linear
        tab.click(*centre(tab, f"{figure('Training loss')}.querySelector('button.log')"))
        assert tab.value(path) == linear

        for axis, name in (
            ("tokens", "tokens trained on"),
            ("hours", "hours of training steps"),
            ("step", "step"),
        ):
            tab.click(*centre(tab, f"document.querySelector('.tools button[value={axis}]')"))
            assert tab.value(labels)[-1] == name
        assert tab.value(path) == linear

        tab.value(
            "(s => { s.value = 0; s.dispatchEvent(new Event('input')); })(document.getElementById('smoothing'))"
        )
        rough = tab.value(path)
        assert rough != linear and tab.value(f"{figure('Training loss')}.querySelector('path.raw')") is None
        tab.click(*centre(tab, "document.getElementById('events')"))
        assert tab.value("document.querySelectorAll('.event, .stretch, .save').length") == 0
        tab.click(*centre(tab, "document.getElementById('events')"))
        kinds = ("fault", "policy", "resume", "replay", "gap", "save", "selected")
        shown = {
            kind: tab.value(f"{figure('Training loss')}.querySelectorAll('.{kind}').length") for kind in kinds
        }
        assert all(shown.values()), shown

        svg = f"{figure('Training loss')}.querySelector('svg')"
        (x0, y), (x1, _) = centre(tab, svg, 0.4), centre(tab, svg, 0.6)
        for kind, x in (("mouseMoved", x0), ("mousePressed", x0), ("mouseMoved", x1), ("mouseReleased", x1)):
            tab.mouse(kind, x, y, **({"buttons": 1} if kind == "mouseMoved" and x == x1 else {}))
        ticks = [float(text) for text in tab.value(labels) if text.replace(".", "").isdigit()]
        assert max(ticks) < 0.7 * STEPS and tab.value(path) != rough
        tab.click(*centre(tab, "document.getElementById('reset')"))
        assert tab.value(path) == rough
        assert_quiet(tab, page)


def test_several_runs(browser: Browser, run: Path, tmp_path: Path) -> None:
    """Every run is a line of every chart that it has numbers for; other sources and sets are no hindrance."""
    other = write_run(
        tmp_path / "other", name="other", lr=5e-4, steps=150, sources=("manuals", "code"), sets=("new",)
    )
    short = write_run(tmp_path / "short", name="short", steps=90, sets=())
    page = write_comparison([run, other, short], tmp_path / "compared.html")
    with browser.opened(page) as tab:
        assert points(tab, "Training loss") == {NASTY: STEPS - 5, "other": 145, "short": 89}
        assert points(tab, "Validation loss: new").keys() == {NASTY, "other"}
        assert points(tab, "Training loss: code").keys() == {"other"}
        rows = tab.value(
            "[...document.querySelectorAll('tr')].map(r => [...r.cells].map(c => c.textContent))"
        )
        assert ["optim.lr", "0.001", "0.0005", "0.001"] in rows
        together = 90 * 1000
        for name, first in (("new", 0), ("old", 1)):
            at = [r for r in records(run, "eval") if r["tokens_total"] <= together][-1]
            (row,) = [row for row in rows if row[0] == f"{name}: loss at 90.0k tokens"]
            assert row[1].startswith(f"{at[f'valid/{name}/loss_nats_per_token']:.4f} ")
            assert (row[2] == "-") is bool(first) and row[3] == "-"
        assert_quiet(tab, page)
        print(tab.screenshot(PICTURES / "compared.png"))


def test_a_long_log_is_a_small_page_that_keeps_its_extremes(browser: Browser, tmp_path: Path) -> None:
    """One step in eight thousand has a spike, and it is to be seen."""
    run = write_run(tmp_path / "long", name="long", steps=8_000, spike=5_432)
    page = write_report(run)
    assert page.stat().st_size < 3e6
    with browser.opened(page) as tab:
        assert 1000 < points(tab, "Training loss")["all sources"] <= 2000
        data = tab.value("JSON.parse(document.getElementById('report-data').textContent)")
        (line,) = [c["lines"][0] for c in data["charts"] if c["title"] == "Gradient norm"]
        grid = data["grids"][line["grid"]]
        place = max(range(len(line["high"])), key=lambda i: line["high"][i] or -math.inf)
        assert line["high"][place] == 50.0 and abs(grid["step"][place] - 5_432) <= grid["count"][place]
        assert sum(grid["count"]) == 8_000 - len(MISSING) and len(grid["breaks"]) == 1
        assert_quiet(tab, page)
