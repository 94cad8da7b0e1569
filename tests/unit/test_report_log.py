"""What a report makes of a log: the last attempt counts, few points keep the extremes, places follow, runs compare."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_world import MISSING, STEPS, TOKENS, write_run

from cptron.cli import main
from cptron.config.load import load_config
from cptron.data.stage_plan import StagePlan
from cptron.data.stages import stage_at, token_bounds
from cptron.errors import ConfigError, DataError
from cptron.optim.schedule import learning_rate
from cptron.report.compare import config_differences, loss_at, same_tokens
from cptron.report.figure import json_block
from cptron.report.happened import events_of
from cptron.report.html import status, write_report
from cptron.report.places import Places
from cptron.report.rates import planned_curve, rate_table
from cptron.report.run_log import read_run
from cptron.report.steplog import StepLog
from cptron.report.thin import buckets_for, thin
from cptron.report.view import View


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With everything in it."""
    return write_run(tmp_path_factory.mktemp("log") / "run", "n")


def log_of(steps: list[int], values: list[float]) -> StepLog:
    """One metric."""
    log = StepLog()
    for step, value in zip(steps, values, strict=True):
        log.add({"kind": "step", "step": step, "tokens_total": step, "step_time_s": 3600.0, "m": value})
    return log


def test_the_last_attempt_counts(run: Path) -> None:
    log = read_run(run)
    assert log.steps.steps.tolist() == [step for step in range(1, STEPS + 1) if step not in MISSING]
    (left,) = log.replayed
    assert left.steps.tolist() == list(range(71, 81))
    assert log.gaps() == [(MISSING[0] - 1, MISSING[-1] + 1)]
    assert log.steps.texts == {"loss_nats_per_token": {49: "nan"}}
    assert log.selected_step == 100
    assert status(log) == f"finished {STEPS} steps"


def test_a_gpu_that_the_log_names_needs_no_option(tmp_path: Path) -> None:
    """Its peak is the table's; of a device that is not surely in it there is none."""
    run = write_run(tmp_path / "run", "n")
    log = run / "metrics.jsonl"
    for name, peak in (("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA H100 NVL", 0.0)):
        log.write_text(
            log.read_text().replace('"device": "cpu"', f'"device": "cuda", "device_name": "{name}"')
        )
        log.write_text(log.read_text().replace("NVIDIA H100 80GB HBM3", name))
        assert View(read_run(run)).peak_tflop_per_s == peak


def test_a_step_that_is_written_twice_in_a_row_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "n")
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if json.loads(line).get("step") == 30 and '"step", ' in line)
    log.write_text("".join([*lines[: at + 1], *lines[at:]]))
    assert (
        read_run(run).steps.steps.tolist() == read_run(write_run(tmp_path / "once", "n")).steps.steps.tolist()
    )


def test_a_slow_rank_is_an_event(run: Path) -> None:
    (found,) = [event for event in events_of(View(read_run(run), 0)) if "straggler" in event.text]
    assert (found.kind, found.step) == ("fault", 100) and "rank 1 (node05, local rank 1; tp 0" in found.text


def test_a_run_that_starts_over_leaves_nothing_of_before_but_the_replayed(tmp_path: Path) -> None:
    """Also where the start has left no record, and where an evaluation is made twice."""
    run = write_run(tmp_path / "run", "n", steps=90, sets=())
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    evals = [
        json.dumps({"kind": "eval", "step": 80, "tokens_total": 1, "valid/v/loss_nats_per_token": x})
        for x in (1, 2)
    ]
    again = [line for line in lines if json.loads(line)["kind"] == "step"][-20:]
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], *evals, *again, ""]))
    log = read_run(run)
    assert log.steps.steps.tolist() == list(range(1, 91))
    assert [len(left) for left in log.replayed] == [10, 20]
    assert log.evals == []  # of step 80, after which it went back to 70
    assert status(log) == "running, or ended without a stop record"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_few_points_keep_mean_and_extremes(data: st.DataObject) -> None:
    """Against buckets counted by hand; no bucket reaches over a gap."""
    steps = sorted(data.draw(st.sets(st.integers(1, 400), min_size=1, max_size=150)))
    values = data.draw(st.lists(st.floats(-1e6, 1e6), min_size=len(steps), max_size=len(steps)))
    gaps = [(a, b) for a, b in itertools.pairwise(steps) if b - a > 5]
    log, buckets = log_of(steps, values), data.draw(st.integers(1, 60))
    thinned = thin(log, Places(log, [], CONFIG), buckets, gaps)
    found, starts = thinned.means("m"), [*thinned.starts.tolist(), len(steps)]
    assert len(found.y) <= buckets + len(gaps) + 1
    for place, (start, stop) in enumerate(itertools.pairwise(starts)):
        part = values[start:stop]
        assert found.y[place] == pytest.approx(math.fsum(part) / len(part), rel=1e-6, abs=1e-6)
        if found.low and found.high:
            assert found.low[place] == pytest.approx(min(part), rel=1e-6)
            assert found.high[place] == pytest.approx(max(part), rel=1e-6)
        assert not any(a in steps[start:stop] and b in steps[start:stop] for a, b in gaps)
    assert {steps[starts[place]] for place in thinned.grid.breaks} == {after for _, after in gaps}


CONFIG = load_config(Path(__file__).parent / "report_config.yaml").config


def test_places() -> None:
    """Hours hold for the steps since the row before; beyond the log tokens go on at the mean pace, hours do not."""
    log = log_of([2, 4, 8], [0.0, 0.0, 0.0])
    places = Places(log, [], CONFIG)
    at = np.array([0.0, 1, 4, 6, 10])
    assert places.tokens(at).tolist() == [0, 1, 4, 6, 10]
    assert places.hours(at)[:4].tolist() == [0, 1, 4, 6] and math.isnan(places.hours(at)[4])


def test_pages_of_many_sources_have_fewer_points() -> None:
    assert buckets_for(10) == 2000 and buckets_for(10_000) == 60
    assert all(buckets_for(count) * count * 3 <= 240_000 for count in range(1, 1300))


def test_a_page_with_any_name_keeps_its_block_whole() -> None:
    name = "</script><!--<script>\u2028\ud800&"
    block = json_block({"a": name})
    inside = block.removeprefix('<script type="application/json" id="report-data">').removesuffix("</script>")
    assert json.loads(inside) == {"a": name} and not set("<>&") & set(inside)
    with pytest.raises(ValueError, match="Out of range"):
        json_block(math.nan)


def test_what_cannot_be_reported_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "metrics.jsonl does not exist, so there is nothing to report" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"trained on CPUs; leave --gpu out"):
        main_error("report", run, "--gpu", "h100", "--output", tmp_path / "x.html")
    with pytest.raises(ConfigError, match="is a directory; name a file"):
        main_error("report", run, "--output", tmp_path)
    with pytest.raises(DataError, match=r"cannot be written .* choose another --output"):
        main_error("report", run, run, "--output", tmp_path / "no" / "x.html")
    with pytest.raises(ConfigError, match="give --gpu too"):
        main_error("report", run, "--gpu-file", tmp_path / "x.yaml")
    assert main(["report", str(run), "--output", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_text() == write_report(run).read_text()


def main_error(*words: Any) -> None:
    """The command without its front door."""
    from cptron.report.main import main as report

    report([str(word) for word in words[1:]])


def test_results_at_the_same_tokens(run: Path, tmp_path: Path) -> None:
    short = write_run(tmp_path / "short", "short", steps=130)
    views = [View(read_run(each)) for each in (run, short)]
    assert same_tokens(views) == 130 * TOKENS
    assert loss_at(views[0], "new", 130 * TOKENS) == (pytest.approx(2.5 - 120 / 400), 120 * TOKENS)
    assert math.isnan(loss_at(views[0], "new", -1)[0])


def test_differences_of_configurations() -> None:
    """A source that is not everywhere is one row; of those that are, what differs."""
    one = {"a": 1, "s": [{"name": "x", "share": 1}, {"name": "y", "share": 2}], "same": [1, 2]}
    two = {"a": 2, "s": [{"name": "x", "share": 3}], "same": [1, 2]}
    assert config_differences([one, two]) == [("a", [1, 2]), ("s.y", ["there", None]), ("s.x.share", [1, 3])]
    assert config_differences([one, one]) == []


STAGES = "{until_tokens: 990, lr_scale: 2}, {until_tokens: 3000, global_batch_size: 4, seq_length: 16}, {lr_scale: 0.5}"


def test_planned_rates_count_stages_as_the_loader_does() -> None:
    """Against tokens added up batch by batch."""
    path = Path(__file__).parent / "report_config.yaml"
    config = load_config(path, [f"data.stages=[{STAGES}]"]).config
    plan, per_batch = StagePlan(config), [100.0, 64.0, 100.0]
    stages, tokens, expected = plan.stages, 0.0, {}
    for step in range(config.train.steps):
        stage = stage_at(token_bounds(stages, per_batch), int(tokens))
        assert (plan.stage(step), plan.tokens_before(step)) == (stage + 1, tokens)
        expected[step + 1.0] = learning_rate(config.optim, step, config.train.steps) * (2, 1, 0.5)[stage]
        tokens += per_batch[stage]
    assert dict(planned_curve(config)) == expected
    rows = [line.split() for line in rate_table(config).splitlines()[2:]]
    rates = {
        int(row[0]): float(next(cell for cell in row if "e" in cell and cell[0].isdigit())) for row in rows
    }
    assert len(rates) > 2
    for step, rate in rates.items():
        if step + 1.0 in expected:
            assert rate == pytest.approx(expected[step + 1.0], rel=1e-5)
