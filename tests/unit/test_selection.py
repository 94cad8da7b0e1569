"""`cptron select` on runs that were never trained: what is a candidate, what is refused, what is written and marked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_checkpoints import make_run, store
from shard_files import sign

from cptron.checkpoint.marks import mark, read_marks
from cptron.checkpoint.prune import prune
from cptron.checkpoint.retention import Rules
from cptron.cli import main as cptron
from cptron.config.schema import Config
from cptron.data.windows import SetFacts
from cptron.errors import ConfigError, CptronError, DataError
from cptron.forgetting.compare import suite_changes
from cptron.forgetting.evaluation import EvaluatedSet, Evaluation, evaluation_path, write_evaluation
from cptron.forgetting.settings import resampling_of
from cptron.inspect_run import describe_run
from cptron.report.html import write_report
from cptron.selection.best import mark_best, mark_best_so_far
from cptron.selection.main import NONE_WITHIN, main
from cptron.selection.record import SELECTION, read_selection

CHANGES = {10: (0.01, -0.1), 20: (0.03, -0.2), 30: (0.2, -0.3)}
"""Step -> change of old and of new data, in nats per token, give or take a little noise."""


def evaluation(step: int, old: float, new: float, facts: str = "w", base: float = 2.0) -> Evaluation:
    """Forty windows of a set of each suite, and a probe."""
    tokens_W = np.random.default_rng(0).integers(8, 17, 40)
    nats_W = (base + np.random.default_rng(step).normal(0, 0.01, 40) * (step > 0)) * tokens_W
    sets = {
        name: EvaluatedSet(
            suite, SetFacts(f"{facts} {name}"), nats_W + change * tokens_W, tokens_W, kind=kind
        )
        for name, suite, change, kind in (
            ("a", "old", old, "text"),
            ("b", "new", new, "text"),
            ("induction", "probe", 0.0, "induction"),
        )
    }
    return Evaluation(step, 256 * step, sets)


BASE = evaluation(0, 0.0, 0.0)


def put(checkpoint: Path, now: Evaluation | None, base: Evaluation | None = BASE) -> Path:
    """Give a checkpoint what was evaluated at its step."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = manifest["files"]
    for name, content in (("now", now), ("base", base)):
        if content is not None:
            write_evaluation(checkpoint / "forgetting" / f"{name}.losses", content.to_bytes())
            files |= {f"forgetting/{name}.losses": {"size": 0, "sha256": ""}}
    attempt = now.attempt if now else 0
    sign(checkpoint, files=files, tokens_total=256 * manifest["step"], attempt=attempt)
    return checkpoint


def add(run: Path, config: Config, step: int, **words: Any) -> Path:
    """One more checkpoint, evaluated as `CHANGES` says or otherwise."""
    now = evaluation(step, *words.pop("changes", CHANGES.get(step, (0.0, 0.0))), **words)
    return put(store(run, step, config), now)


def evaluated_run(directory: Path, changes: Mapping[int, tuple[float, float]] = CHANGES) -> Config:
    """A run whose checkpoints were all evaluated."""
    config = make_run(directory, [], "forgetting.resamples=200")
    for step, pair in changes.items():
        add(directory, config, step, changes=pair)
    return config


def record(run: Path) -> dict[str, Any]:
    """What was written."""
    found: dict[str, Any] = json.loads((run / SELECTION).read_text())
    return found


def test_the_last_within_epsilon_is_chosen_marked_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last checkpoint has learned more and forgotten too much. The numbers are those of the evaluations; a second
    choice moves the mark."""
    run = tmp_path / "run"
    config = evaluated_run(run)
    assert main([str(run)]) == 0
    found, shown = record(run), capsys.readouterr().out
    assert found["chosen"] == ["checkpoints/step_00000020"] and found["rule"]["epsilon_nats"] == 0.05
    assert "checkpoints/step_00000020: lowest loss on new data (-0.2" in found["reason"]
    assert found["result"] == [str(run / "checkpoints" / "step_00000020")]
    assert found["reason"] in shown and "marked selected: step 20" in shown
    rows = {row["step"]: row for row in found["candidates"]}
    for step, pair in CHANGES.items():
        expected = suite_changes(evaluation(step, *pair), BASE, resampling_of(config))
        for key, suite in (("old_change_nats", "old"), ("new_change_nats", "new")):
            assert rows[step][key] == [expected[suite].estimate, expected[suite].low, expected[suite].high]
        assert rows[step]["is_within_epsilon"] == (step < 30) and rows[step]["is_pareto"]
    assert rows[20]["new_minus_chosen_nats"] == [0, 0, 0] and rows[10]["new_minus_chosen_nats"][1] > 0.09
    assert found["command"] == ["cptron", "select", str(run)] and found["versions"]["cptron"]
    prune(run / "checkpoints", Rules(keep_last=1))
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == [
        "step_00000020",
        "step_00000030",
    ]
    assert main([str(run), "--epsilon", "1"]) == 0
    assert read_marks(run / "checkpoints") == {30: ("selected",)}
    assert "no longer marked selected: step 20" in capsys.readouterr().out


def test_none_within_epsilon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said, with the nearest and a code of its own; marks stay as they were."""
    run = tmp_path / "run"
    evaluated_run(run)
    mark(run / "checkpoints", 30, "selected")
    assert cptron(["select", str(run), "--epsilon", "0.001"]) == NONE_WITHIN
    shown = capsys.readouterr().out
    assert "none of 3 has old data at most 0.001 nats" in shown
    assert "nearest is checkpoints/step_00000010" in shown and "marked nothing" in shown
    found = record(run)
    assert (found["chosen"], found["nearest"]) == ([], "checkpoints/step_00000010")
    assert read_marks(run / "checkpoints") == {30: ("selected",)}


def test_pareto_and_weighted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole list is marked; weights decide otherwise than epsilon."""
    run = tmp_path / "run"
    config = evaluated_run(run)
    add(run, config, 40, changes=(0.3, -0.25))
    assert main([str(run), "--mode", "pareto"]) == 0
    assert record(run)["chosen"] == [f"checkpoints/step_000000{step}" for step in (30, 20, 10)]
    assert sorted(read_marks(run / "checkpoints")) == [10, 20, 30]
    assert main([str(run), "--mode", "weighted", "--weight", "old=1", "--weight", "new=10"]) == 0
    assert record(run)["chosen"] == ["checkpoints/step_00000030"]
    assert record(run)["rule"] == {"mode": "weighted", "weights": {"old": 1.0, "new": 10.0}}
    assert "score" in capsys.readouterr().out
    weights = ["--weight", "valid/a=1", "--weight", "probe/induction=0.1"]
    assert main([str(run), "--mode", "weighted", *weights, "--json", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == ["checkpoints/step_00000010"]
    assert record(run)["chosen"] == ["checkpoints/step_00000030"], "a dry run writes nothing"


def test_every_checkpoint_is_a_candidate_or_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not evaluated, without a base, on other data, against another base, damaged, of another step; and evaluations
    that were not saved. The newest is that of the second pass, not the one that a rollback has left."""
    run = tmp_path / "run"
    config = evaluated_run(run)
    store(run, 11, config)
    put(store(run, 12, config), evaluation(12, 0.0, -1.0), None)
    add(run, config, 13, facts="other", changes=(0.0, -1.0))
    put(store(run, 14, config), evaluation(14, 0.0, -1.0), evaluation(0, 0.0, 0.0, base=1.9))
    (add(run, config, 15) / "state.json").write_text("longer than it was")
    put(store(run, 16, config), evaluation(17, 0.0, -1.0))
    damaged = add(run, config, 18) / "forgetting" / "now.losses"
    damaged.write_bytes(damaged.read_bytes()[:-8] + b"12345678")
    only_old = evaluation(19, 0.0, 0.0)
    put(store(run, 19, config), replace(only_old, sets={"a": only_old.sets["a"]}))
    for step in (0, 10, 5):
        write_evaluation(evaluation_path(run, step), evaluation(step, 0.0, 0.0).to_bytes())
    swapped = {
        name: replace(found, suite={"a": "new", "b": "old"}[name])
        for name, found in BASE.sets.items()
        if name in "ab"
    }
    put(store(run, 21, config), replace(evaluation(21, 0.0, 0.0), sets=swapped))
    put(store(run, 35, config), replace(evaluation(35, 0.2, -0.3), attempt=1))
    left = run / "left" / "0" / "step_00000025"
    left.parent.mkdir(parents=True)
    shutil.move(add(run, config, 25, changes=(0.04, -0.5)), left)
    shutil.move(add(run, config, 50, facts="other"), left.with_name("step_00000050"))
    assert main([str(run)]) == 0
    found, shown = record(run), capsys.readouterr().out
    expected = {
        11: "it was not evaluated",
        12: "its run has no base",
        13: "evaluated with other data than checkpoints/step_00000035: set a has other tokens or windows",
        14: "its base is another than that of checkpoints/step_00000035: loss on a differs by -0.1000",
        15: "is damaged: state.json has 18 bytes",
        16: "its now.losses is of (step, tokens, attempt) (17, ",
        18: "its sha256 is another",
        19: "evaluated with other data than checkpoints/step_00000035: set b is not among its old and new sets",
        21: "set a has suite new, not old",
    }
    refused = [f"checkpoints/step_000000{step}" for step in expected]
    assert list(found["not_comparable"]) == [*refused, "left/0/step_00000050"]
    for step, why in expected.items():
        name = f"checkpoints/step_000000{step}"
        assert why in found["not_comparable"][name]
        assert f"not comparable: {name}: {found['not_comparable'][name]}" in shown
    assert found["without_checkpoint"] == ["forgetting/step_00000005.losses"]
    assert "evaluated, and not saved: forgetting/step_00000005.losses" in shown
    assert found["chosen"] == ["left/0/step_00000025"] and found["marked"] == []
    assert f"{left} is not marked: what a rollback has left is never deleted" in shown


def test_several_runs_against_one_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another layout's last bits are no other base. The winner's run has the mark, each run has the record."""
    one, two = tmp_path / "one", tmp_path / "two"
    evaluated_run(one)
    config = make_run(two, [], "forgetting.resamples=200")
    put(store(two, 10, config), evaluation(10, 0.02, -0.4), evaluation(0, 0.0, 0.0, base=2.0 + 1e-5))
    put(store(two, 20, config), evaluation(20, 0.02, -0.4), evaluation(0, 0.0, 0.1))
    mark(one / "checkpoints", 10, "selected")
    assert main([str(one), str(two)]) == 0
    chosen = str(two / "checkpoints" / "step_00000010")
    assert record(one) == record(two) and record(one)["chosen"] == [chosen]
    (row,) = [row for row in record(one)["candidates"] if row["name"] == chosen]
    how = resampling_of(config)
    expected = suite_changes(evaluation(10, 0.02, -0.4), BASE, how)["old"]
    assert row["old_change_nats"] == [expected.estimate, expected.low, expected.high], "the first run's base"
    assert list(record(one)["not_comparable"]) == [str(two / "checkpoints" / "step_00000020")]
    assert (read_marks(one / "checkpoints"), read_marks(two / "checkpoints")) == ({}, {10: ("selected",)})
    assert f"no longer marked selected: step 10 of {one}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="given twice"):
        main([str(one), str(one)])


def test_doubts_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another candidate that is as good within noise, and a winner that is no better than the base."""
    run = tmp_path / "run"
    evaluated_run(run, {10: (0.0, 0.001), 20: (0.0, 0.0)})
    assert main([str(run), "--no-mark"]) == 0
    shown = capsys.readouterr().out
    assert "not told apart from it on new data: checkpoints/step_000000" in shown
    assert "is not shown to be better on new data than the base" in shown
    assert read_marks(run / "checkpoints") == {} and record(run)["marked"] == []


def test_what_cannot_be_chosen_from_is_refused(tmp_path: Path) -> None:
    """In one line."""
    run = tmp_path / "run"
    config = make_run(run, [])
    store(run, 10, config)
    for words, message in (
        ([str(run)], "has an evaluation with a base .checkpoints/step_00000010: it was not evaluated"),
        ([str(tmp_path / "none")], "is no run"),
        ([str(run), "--weight", "old=1"], "--weight is for --mode weighted"),
        ([str(run), "--mode", "pareto", "--epsilon", "1"], "--epsilon is for --mode constrained"),
        ([str(run), "--epsilon", "nan"], "must be a number from 0"),
        ([str(run), "--output", "x"], "--output is for --wise-ft"),
        ([str(run), "--mark", "x", "--no-mark"], "--mark is for marks"),
        ([str(run), "--wise-ft", "0.5"], "give --output DIR"),
        ([str(run), "--wise-ft", "0.5,1.5", "--output", "x"], "numbers from 0 to 1"),
        ([str(run), "--wise-ft", "0.5", "--output", "x", "--mode", "pareto"], "gives a list"),
    ):
        with pytest.raises(CptronError, match=message):
            main(words)
    evaluated = add(run, config, 20)
    now = evaluation(20, 0.0, 0.0)
    put(evaluated, replace(now, sets={"b": now.sets["b"]}))
    with pytest.raises(CptronError, match="evaluated without old data"):
        main([str(run)])
    put(evaluated, now, replace(BASE, sets={"b": BASE.sets["b"]}))
    with pytest.raises(CptronError, match="tells nothing of set a: it was not evaluated"):
        main([str(run)])
    put(evaluated, now)
    for word in ("old", "old=x", "=1"):
        with pytest.raises(ConfigError, match="must be"):
            main([str(run), "--mode", "weighted", "--weight", word])


def test_the_monitor_chooses_by_the_same_rule(tmp_path: Path) -> None:
    """Without any within epsilon it keeps the nearest; not what a rollback has left."""
    run = tmp_path / "run"
    config = evaluated_run(run)
    left = run / "left" / "0" / "step_00000025"
    left.parent.mkdir(parents=True)
    shutil.move(add(run, config, 25, changes=(0.0, -0.5)), left)
    assert mark_best(run, 0.05) == 20
    assert mark_best(run, 0.001) == 10
    assert read_marks(run / "checkpoints") == {10: ("best",)}


def test_a_run_without_a_base_goes_on_unmarked(tmp_path: Path) -> None:
    """After every save nothing is marked where nothing can be compared; at the end it is an error."""
    run = tmp_path / "run"
    config = make_run(run, [])
    put(store(run, 10, config), evaluation(10, 0.0, 0.0), None)
    assert mark_best_so_far(run, 0.05) is None and read_marks(run / "checkpoints") == {}
    with pytest.raises(CptronError, match="an evaluation with a base"):
        mark_best(run, 0.05)
    add(run, config, 20)
    assert mark_best_so_far(run, 0.05) == 20
    assert read_marks(run / "checkpoints") == {20: ("best",)}


def test_report_and_inspect_show_the_choice(tmp_path: Path) -> None:
    """As text, whatever is in it; a damaged record is refused by both."""
    run = tmp_path / "run"
    evaluated_run(run)
    (run / "metrics.jsonl").write_text('{"kind": "start", "step": 0}\n')
    (run / "run.json").write_text('{"name": "<b>", "identity": {}}')
    assert "Which checkpoint" not in write_report(run).read_text()
    assert read_selection(run) is None
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Which checkpoint" in page and "lowest loss on new data" in page and "&gt;*" in page
    assert describe_run(run)["selection"] == record(run)["reason"]
    for damage in ("", "[]", '{"format_version": 2}', json.dumps(record(run) | {"candidates": []})):
        (run / SELECTION).write_text(damage)
        with pytest.raises(DataError, match="is none that cptron select has written"):
            write_report(run)
        assert describe_run(run)["selection"].startswith("cannot be read")
