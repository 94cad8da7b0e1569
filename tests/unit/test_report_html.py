"""The report without its script: its numbers are those of the records, its drawing is inside the frame, and nothing in
it loads or runs but the one script that its policy names."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.config.load import resolved_yaml
from cptron.config.schema import (
    Config,
    DataConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    ValidSetConfig,
)
from cptron.errors import DataError
from cptron.report import svg
from cptron.report.html import write_report
from cptron.report.sinks import JsonlSink, Record

SOURCES = (
    SourceConfig(name="manuals", path="t/m", token_share=3.0),
    SourceConfig(name="web", path="t/w", token_share=1.0),
)
CONFIG = Config(
    run=RunConfig(dir="runs/r", name="a <b> & c"),
    data=DataConfig(seq_length=8, sources=SOURCES, valid=(ValidSetConfig(name="general", path="v/g"),)),
    train=TrainConfig(steps=200, global_batch_size=1),
    optim=OptimConfig(lr=1e-4),
)


def step_record(step: int) -> Record:
    return {
        "kind": "step", "step": step, "tokens_total": 100 * step, "loss_nats_per_token": 3.0 - step / 200, "lr": 1e-4,
        "grad_norm": 0.5, "step_time_s": 0.25, "tokens_per_s": 390.0 + step % 21, "mem_peak_gib": 1.5,
        "unix_s": 1.7e9 + step,
        "loss_nats_per_token/manuals": 2.0, "tokens/manuals": 75 * step, "tokens/web": 25 * step,
        "epochs/manuals": step / 100, "share/manuals": 0.75, "share/web": 0.25,
    }  # fmt: skip


def eval_record(step: int, loss: float) -> Record:
    key = "valid/general"
    return {
        "kind": "eval", "step": step, "tokens_total": 100 * step, f"{key}/loss_nats_per_token": loss,
        f"{key}/perplexity": math.exp(loss), f"{key}/tokens": 4096,
    }  # fmt: skip


def report(tmp_path: Path, records: list[Record]) -> str:
    (tmp_path / "config.yaml").write_text(resolved_yaml(CONFIG), encoding="utf-8")
    sink = JsonlSink(tmp_path / "metrics.jsonl", 0)
    for record in records:
        sink.write(record)
    sink.close()
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects table rows, and fails on tags left open and on anything that would load or run."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.kinds: list[str] = []
        self.policy = ""
        self.feed(text)
        assert self.open == []
        assert self.kinds == ["application/json", ""]
        digest = base64.b64encode(hashlib.sha256(self.scripts[1].encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}';" in self.policy and "default-src 'none'" in self.policy

    @property
    def numbers(self) -> dict[str, Any]:
        """What the script draws."""
        return dict(json.loads(self.scripts[0]))

    def line(self, title: str, label: str) -> dict[str, Any]:
        """A line of a chart."""
        (chart,) = [chart for chart in self.numbers["charts"] if chart["title"] == title]
        return next(line for line in chart["lines"] if line["label"] == label)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "img", "iframe", "object")
        assert not {"src", "href", "xlink:href", "style"} & dict(attrs).keys()
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "script":
            self.scripts.append("")
            self.kinds.append(dict(attrs).get("type") or "")
        if tag == "meta" and dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"] or ""
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def test_the_numbers_are_those_of_the_records(tmp_path: Path) -> None:
    records: list[Record] = [{"kind": "start", "step": 0, "layout": "tp2_pp1_dp4", "version/torch": "2.13.0"}]
    records += [eval_record(0, 2.5), *(step_record(step) for step in range(1, 201))]
    records += [
        eval_record(100, 2.25),
        eval_record(200, 2.4),
        {"kind": "stop", "step": 200, "reason": "finished"},
    ]
    (tmp_path / "summary.json").write_text('{"probe <x>": 1.5}', encoding="utf-8")
    text = report(tmp_path, records)
    page = Page(text)
    change = math.exp(2.4) / math.exp(2.5) - 1
    general = ["general", "2.5000", "2.4000", "-0.1000", f"{math.exp(2.4):.2f}", f"{change:+.1%}"]
    assert [*general, "2.2500 at step 100", "4.10k"] in page.rows
    assert ["manuals", "15,000", "75.0%", "75.0%", "2", "2.0000", "2.0000"] in page.rows
    assert ["web", "5,000", "25.0%", "25.0%", "-", "-", "-"] in page.rows  # never logged a loss
    assert "Epochs by source" in text
    loss = page.line("Training loss", "all sources")
    assert loss["y"] == [record["loss_nats_per_token"] for record in records if record["kind"] == "step"]
    grid = page.numbers["grids"][loss["grid"]]
    assert grid["step"] == list(range(1, 201)) and grid["tokens"] == list(range(100, 20001, 100))
    assert grid["hours"][-1] == pytest.approx(200 * 0.25 / 3600, rel=1e-6)
    mixture = page.line("Mixture", "web")["y"]
    assert mixture == pytest.approx([0.25] * 200)
    changes = page.line("Change of validation loss", "general")["y"]
    assert changes == pytest.approx([0, -0.25, -0.1])
    assert ["layout", "tp2_pp1_dp4"] in page.rows and ["version/torch", "2.13.0"] in page.rows
    assert ["probe <x>", "1.5"] in page.rows
    median = sorted(390 + step % 21 for step in range(1, 201))[100]
    assert f"<b>{median}</b><span>tokens/s, median" in text
    assert "<h1>a &lt;b&gt; &amp; c</h1><p>finished</p>" in text
    assert text.count("<svg") == len(page.numbers["charts"]) == 12
    outside = text.replace(page.scripts[1], "").replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text and "http" not in outside


@pytest.mark.parametrize("num_records", [0, 1, 2, 3])
def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path, num_records: int) -> None:
    records = [{"kind": "start", "step": 0}, eval_record(0, 2.5), step_record(1)][:num_records]
    text = report(tmp_path, records)
    Page(text)
    assert "no records yet" in text if num_records == 0 else "running, or ended without a stop record" in text
    assert text.count("<svg") == (0, 0, 1, 11)[num_records]


def test_non_finite_values_are_no_points_and_are_said(tmp_path: Path) -> None:
    bad = step_record(2) | {"grad_norm": math.nan, "loss_nats_per_token/manuals": math.inf}
    page = Page(report(tmp_path, [step_record(1), bad, step_record(3)]))
    norm = page.line("Gradient norm", "gradient norm")
    assert norm["y"] == [0.5, None, 0.5] and norm["bad"] == {"1": "nan"}
    assert page.line("Training loss by source", "manuals")["bad"] == {"1": "inf"}


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl does not exist"):
        write_report(tmp_path)


FLOATS = (
    st.floats(-1e9, 1e9)
    | st.floats(12345, 12345.000001)
    | st.floats(-1e-5, 1e-5)
    | st.sampled_from([math.nan, math.inf])
)


@settings(max_examples=60, deadline=None)
@given(
    ys=st.lists(st.lists(FLOATS, max_size=12), min_size=1, max_size=3),
    zero=st.booleans(),
    start=st.integers(0, 10**9),
)
def test_charts_are_well_formed_and_stay_inside_their_frame(
    ys: list[list[float]], zero: bool, start: int
) -> None:
    lines = [
        svg.Series(f"<{i}>", [(start + x, y) for x, y in enumerate(line)], i) for i, line in enumerate(ys)
    ]
    text = svg.line_chart("a & b", "step", "unit", lines, zero)
    finite = [y for line in ys for y in line if math.isfinite(y)]
    if not finite:
        assert text == ""
        return
    figure = ElementTree.fromstring(text)
    drawn = 0
    for line in figure.iter("polyline"):
        for x, y in (map(float, point.split(",")) for point in line.attrib["points"].split()):
            drawn += 1
            assert svg.LEFT - 0.1 <= x <= svg.WIDTH - svg.RIGHT + 0.1
            assert svg.TOP - 0.1 <= y <= svg.HEIGHT - svg.BOTTOM + 0.1
    assert drawn == len(finite)


def test_a_point_is_drawn_where_the_axes_say() -> None:
    text = svg.line_chart("t", "x", "y", [svg.Series("a", [(0.0, 0.0), (5.0, 3.0), (10.0, 10.0)], 0)])
    figure = ElementTree.fromstring(text)
    labels: dict[str, dict[str, Any]] = {"end": {}, "middle": {}}
    for label in figure.iter("text"):
        if label.text and re.fullmatch(r"[\d.]+", label.text):
            labels[label.attrib["text-anchor"]][label.text] = label.attrib
    x, y = map(float, next(figure.iter("polyline")).attrib["points"].split()[1].split(","))
    x0, x10 = (float(labels["middle"][k]["x"]) for k in ("0", "10"))
    y0, y10 = (float(labels["end"][k]["y"]) for k in ("0", "10"))
    assert x == pytest.approx((x0 + x10) / 2, abs=0.2)
    assert y == pytest.approx(y0 + 0.3 * (y10 - y0) - 4, abs=0.2)  # a label's baseline is 4 below its line


@given(low=st.floats(-1e12, 1e12), span=st.floats(0, 1e12), count=st.integers(3, 9))
def test_ticks_are_round_and_enclose_the_range(low: float, span: float, count: int) -> None:
    values = svg.ticks(low, low + span, count)
    slack = 1e-6 * (values[-1] - values[0])
    assert values[0] <= low + slack and values[-1] >= low + span - slack
    assert 2 <= len(values) <= 2 * count
    step = values[1] - values[0]
    if step > 1e-9 * abs(low):
        assert all(b - a == pytest.approx(step, rel=1e-4) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 20_000, 100_000], ["0", "20k", "100k"]),
        ([0.0, 2.5e6, 5e6], ["0", "2.5M", "5.0M"]),
        ([0, 500, 1000], ["0", "500", "1000"]),
        ([2.25, 2.5, 2.75], ["2.25", "2.50", "2.75"]),
        ([-0.1, 0.0, 0.1], ["-0.1", "0", "0.1"]),
        ([0.0, 5e-6, 1e-5, 1.5e-5], ["0", "5e-6", "1e-5", "1.5e-5"]),
    ],
)
def test_tick_labels_share_a_unit(values: list[float], labels: list[str]) -> None:
    assert svg.tick_labels(values) == labels


def test_smoothing_keeps_means_and_ends() -> None:
    points = [(float(x), 2.0) for x in range(500)]
    assert svg.smoothed(points) == points
    ramp = svg.smoothed([(float(x), float(x)) for x in range(500)])
    assert all(y == pytest.approx(x) for x, y in ramp[5:-5]) and abs(ramp[-1][1] - 499) <= 5


def test_what_the_guards_did_is_listed_and_marked(tmp_path: Path) -> None:
    """A line for each event, and an upright line where it was in the charts of loss and gradient norm."""
    entry: Record = {
        "kind": "guard", "event": "log", "step": 150, "tried_step": 150, "batch": 151, "first": 151, "cause": "spike",
        "loss_nats_per_token": 7.5, "grad_norm": 21.0, "z_loss": 9.25, "z_grad_norm": 1.0, "found": "", "to_step": 0,
        "tokens_skipped": 0,
    }  # fmt: skip
    back = {**entry, "event": "rollback", "step": 100, "first": 140, "to_step": 100}
    bad = {
        **entry,
        "event": "skip",
        "cause": "nonfinite",
        "loss_nats_per_token": math.nan,
        "tokens_skipped": 4096,
    }
    bad |= {"found": "first bad tensor: output of <x>"}
    steps = [step_record(step) for step in range(1, 201)]
    page = report(tmp_path, [*steps[:150], entry, back, *steps[100:], bad])
    cells = [row[2] for row in Page(page).rows if len(row) == 3 and row[1] in ("log", "rollback", "skip")]
    what = "spike at step 150, batch 151: loss 7.5000, grad_norm 21 (z 9.2 and 1.0); "
    assert cells == [
        f"{what}trained on",
        f"{what}back to step 100, will drop batches 140 to 151",
        "nonfinite at step 150, batch 151: first bad tensor: output of <x>; batch 151 dropped",
    ]
    assert page.count('<line class="mark"') == 3 * page.count("<svg")
    faults = [event for event in Page(page).numbers["events"] if event["kind"] == "fault"]
    assert [(event["step"], event["tokens"]) for event in faults] == [(150, 15000)] * 3
    (again,) = [event for event in Page(page).numbers["events"] if event["kind"] == "replay"]
    assert (again["step"], again["until"][0]) == (101, 150)
    replayed = Page(page).line("Training loss", "replayed")
    assert replayed["y"] == [record["loss_nats_per_token"] for record in steps[100:150]]
    assert "4,096 tokens were drawn and not trained on" in page
    assert "Spikes" not in report(tmp_path, steps)
