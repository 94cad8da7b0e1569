"""A run's data from end to end: what was seen, proven; limits; the index cache; packing; Megatron's order."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from commands import steps
from tiny_world import LAYOUTS, ONE, Layout, World

from cptron.cli import main
from cptron.data.audit import audit
from cptron.data.log import DATA_LOG
from cptron.data.source import TokenSource
from cptron.errors import DataError
from cptron.report.sinks import METRICS_FILE, read_records


def test_ledger_is_proven_from_the_log(world: World, whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """Ranges by brute force: the tokens of the first `cursor` samples of each source."""
    for layout in (ONE, LAYOUTS[-1]):
        found = audit(whole_runs[layout])
        assert len(found.compared_with) == 2
        assert all(account.largest_deviation_samples < 1 for account in found.accounts)
    out = tmp_path / "seen.jsonl"
    assert main(["data", "ledger", str(whole_runs[ONE]), "--documents", str(out)]) == 0
    ranges = [json.loads(line) for line in out.read_text().splitlines()]
    for account in found.accounts:
        source = TokenSource(account.name, str(world.tokens(account.name)), 32, 1234)
        expected: Counter[tuple[int, int, int]] = Counter()
        for cursor in range(account.samples):
            for span in source.spans(cursor):
                for token in range(span.offset, span.offset + span.length):
                    expected[cursor // source.samples_per_epoch, span.document, token] = 1
        seen = Counter(
            (r["epoch"], r["document"], token)
            for r in ranges
            if r["source"] == account.name
            for token in range(r["start"], r["stop"])
        )
        assert seen == expected


def test_a_changed_log_or_ledger_is_found(whole_runs: dict[Layout, Path], tmp_path: Path) -> None:
    """One sample more in the log, one token more in a checkpoint."""
    copy = shutil.copytree(whole_runs[ONE], tmp_path / "run")
    log = copy / DATA_LOG
    lines = log.read_text().splitlines()
    record = json.loads(lines[9])
    record["cursors"]["domain"] += 1
    log.write_text("\n".join([*lines[:9], json.dumps(record), *lines[10:]]) + "\n")
    with pytest.raises(DataError):
        audit(copy)
    log.write_text("\n".join(lines) + "\n")
    audit(copy)
    state = copy / "checkpoints" / "step_00000020" / "state.json"
    content = json.loads(state.read_text())
    content["ledger"]["entries"]["general"]["tokens"] += 1
    state.write_text(json.dumps(content))
    with pytest.raises(DataError, match="general"):
        audit(copy)


@pytest.mark.more
def test_limits_stop_or_redistribute(world: World, tmp_path: Path) -> None:
    """A source at its limit ends the run with a checkpoint, or leaves its share to the other."""
    limit = "data.sources.general.max_epochs=0.25"
    run = world.trained(
        tmp_path / "stop", ONE, limit, "data.on_max_epochs=stop", "train.steps=60", "eval.every_steps=0"
    )
    last = steps(run)[-1]
    limit_samples = -(-TokenSource("general", str(world.tokens("general")), 32, 1234).samples_per_epoch // 4)
    assert last["step"] < 60
    assert limit_samples - 8 < audit(run).accounts[1].samples <= limit_samples
    assert (run / "checkpoints" / f"step_{last['step']:08d}").is_dir()
    records = read_records(run / METRICS_FILE)
    assert [record["step"] for record in records if record["kind"] == "eval"][-1:] == [last["step"]]
    run = world.trained(
        tmp_path / "go_on",
        ONE,
        limit,
        "data.on_max_epochs=redistribute",
        "train.steps=60",
        "eval.every_steps=0",
    )
    found = audit(run)
    assert steps(run)[-1]["step"] == 60
    assert found.accounts[1].samples == limit_samples
    assert sum(account.samples for account in found.accounts) == 60 * 8


@pytest.mark.more
def test_prepared_cache_is_what_the_run_asks_for(world: World, tmp_path: Path) -> None:
    """No further file is made by the run, and its losses are those of the run without a cache."""
    cache = tmp_path / "cache"
    words = [f"run.dir={tmp_path / 'run'}", f"data.cache_dir={cache}", "eval.every_steps=0"]
    assert main(["data", "prepare", str(world.config), *words[:2], "--verify", *words[2:]]) == 0
    prepared = {path: path.stat().st_mtime_ns for path in cache.glob("*.index")}
    assert prepared
    run = world.trained(tmp_path / "run", Layout(2, tp=2), *words[1:])
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.index")} == prepared
    assert audit(run).step == 20


@pytest.mark.more
def test_best_fit_and_megatron_order_train(world: World, tmp_path: Path) -> None:
    """Both run to the end on two ranks and account for every token."""
    run = world.trained(
        tmp_path / "packed", Layout(2), "data.packing=best_fit", "train.steps=8", "eval.every_steps=0"
    )
    found = audit(run)
    assert sum(account.tokens for account in found.accounts) == steps(run)[-1]["tokens_total"]
    run = world.trained(
        tmp_path / "megatron",
        Layout(2, tp=2),
        "data.order=megatron",
        "data.megatron_samples=64",
        "train.steps=8",
        "eval.every_steps=0",
    )
    assert steps(run)[-1]["tokens_total"] == 8 * 8 * 32
