"""Run directories as the trainer leaves them: what is read, and which runs are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cptron.cli import main
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
from cptron.errors import CptronError, DataError
from cptron.mixture.read_runs import read_runs

STEPS = 200
TOKENS = 1000
"""Of a step."""


def make_run(
    directory: Path, replay: float, *, every: int = 100, steps: int = STEPS, drawn: float | None = None
) -> Path:
    """A run of two sources, `general` and `law`, evaluated on `web` and `cases`; `drawn` is the share of general that
    its batches really had."""
    sources = tuple(
        SourceConfig(name=name, path=f"t/{name}", token_share=share)
        for name, share in (("general", 10 * replay), ("law", 10 * (1 - replay)))
        if share > 0
    )
    config = Config(
        run=RunConfig(dir=str(directory)),
        data=DataConfig(
            seq_length=8,
            sources=sources,
            valid=tuple(ValidSetConfig(name=n, path=n) for n in ("web", "cases")),
        ),
        train=TrainConfig(steps=STEPS, global_batch_size=1),
        optim=OptimConfig(lr=1e-4),
    )
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")
    part = replay if drawn is None else drawn
    lines: list[dict[str, Any]] = [evaluation(0, replay)]
    for step in range(every, steps + 1, every):
        tokens = {
            f"tokens/{s.name}": round(step * TOKENS * (part if s.name == "general" else 1 - part))
            for s in sources
        }
        lines.append({"kind": "step", "step": step, "tokens_total": step * TOKENS, **tokens})
        lines.append(evaluation(step, replay))
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return directory


def evaluation(step: int, replay: float) -> dict[str, Any]:
    done = step / STEPS
    losses = {
        "web": 2.0 + done * 0.1 * (replay + 0.02) ** -0.4 - 0.05 * done,
        "cases": 2.5 - done * (1.1 - 0.3 * replay),
    }
    record: dict[str, Any] = {"kind": "eval", "step": step, "tokens_total": step * TOKENS}
    for name, loss in losses.items():
        record |= {f"valid/{name}/loss_nats_per_token": loss, f"valid/{name}/perplexity": math.exp(loss)}
    return record


def test_last_evaluation_and_baseline(tmp_path: Path) -> None:
    """Shares are normalised, a source that a run does not have has the share 0."""
    runs = [make_run(tmp_path / "a", 0.25), make_run(tmp_path / "b", 0.0)]
    table = read_runs(runs, every_evaluation=False)
    assert table.domains == ("general", "law")
    assert [point.shares for point in table.points] == [(0.25, 0.75), (0.0, 1.0)]
    assert [point.tokens for point in table.points] == [STEPS * TOKENS] * 2
    assert table.points[1].losses["cases"] == pytest.approx(1.4)
    assert [one.losses for one in table.baselines] == [{"web": 2.0, "cases": 2.5}] * 2
    assert len(table.notes) == 2 and "no checkpoint" in table.notes[0]
    assert len(read_runs(runs, every_evaluation=True).points) == 4


def test_fit_and_predict_from_run_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two commands, and the answer known from how the runs were made."""
    runs = [str(make_run(tmp_path / str(r), r)) for r in (0.0, 0.01, 0.05, 0.1, 0.25, 0.5)]
    output = str(tmp_path / "fit.json")
    roles = ["--old", "web=general", "--new", "cases=law"]
    assert main(["mixlaw", "fit", *runs, "--law", "d-cpt", *roles, "--output", output, "--draws", "60"]) == 0
    shown = capsys.readouterr().out
    assert "web: E + C/(r+ε)^γ, r: share of the loss's own domain; 6 points, 4 parameters" in shown
    assert main(["mixlaw", "predict", output, "--max-old-increase-nats", "0.15", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    shares = dict(zip(found["domains"], found["recommended"]["shares"], strict=True))
    # 0.1 (r + 0.02)^-0.4 - 0.05 = 0.15
    assert shares["general"] == pytest.approx(0.5**2.5 - 0.02, abs=2e-3)


def test_runs_that_are_no_measurement(tmp_path: Path) -> None:
    """Not ended; drawn in other shares than configured; no run at all; a loss that is no number."""
    with pytest.raises(DataError, match="last evaluated at step 100 of 200"):
        read_runs([make_run(tmp_path / "short", 0.25, steps=100)], every_evaluation=False)
    assert len(read_runs([tmp_path / "short"], every_evaluation=True).points) == 1
    with pytest.raises(
        DataError, match=r"drew 0\.400 of its tokens from general, its configuration says 0\.250"
    ):
        read_runs([make_run(tmp_path / "changed", 0.25, drawn=0.4)], every_evaluation=False)
    with pytest.raises(CptronError, match=r"config\.yaml"):
        read_runs([tmp_path], every_evaluation=False)
    for damage in ('"nan"', "null", '"x"', "true"):
        run = make_run(tmp_path / f"damaged{damage.strip(chr(34))}", 0.25)
        text = (run / "metrics.jsonl").read_text().splitlines()
        record = json.loads(text[-1]) | {"valid/web/loss_nats_per_token": json.loads(damage)}
        (run / "metrics.jsonl").write_text("\n".join([*text[:-1], json.dumps(record)]) + "\n")
        with pytest.raises(DataError, match="on web at step 200, must be a number"):
            read_runs([run], every_evaluation=False)


def test_metrics_need_not_be_written_at_the_last_step(tmp_path: Path) -> None:
    """`log.every_steps` may skip it; the mixture is then checked where it was last written."""
    run = make_run(tmp_path / "a", 0.25)
    text = (run / "metrics.jsonl").read_text().replace('"step", "step": 200', '"step", "step": 190')
    (run / "metrics.jsonl").write_text(text)
    assert len(read_runs([run], every_evaluation=False).points) == 1


def test_missing_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 0.25)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match="does not exist, a run has it"):
        read_runs([run], every_evaluation=False)
    changed = make_run(tmp_path / "b", 0.25)
    lines = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["kind"] != "step"]
    (changed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    with pytest.raises(DataError, match="has no metrics up to step 200"):
        read_runs([changed], every_evaluation=False)
