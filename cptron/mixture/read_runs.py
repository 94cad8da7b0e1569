"""Measured runs from the directories of `cptron train`.

Place in the flow: `cptron mixlaw fit RUN_DIR ...`. The shares are those of the run's configuration, the losses those of
its last evaluation, the baseline its evaluation at step 0. Invariant: a run whose batches were not mixed as its
configuration says, or that has not ended, is refused and not averaged over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.errors import CheckpointError, DataError
from cptron.inspect_run import num_parameters
from cptron.mixture.points import Baseline, Point, Table
from cptron.report.console import valid_sets
from cptron.report.sinks import METRICS_FILE, Record, read_records

SHARE_TOLERANCE = 0.01
"""Between a configured and a measured share, beyond what whole samples explain."""


def read_runs(directories: Sequence[Path], *, every_evaluation: bool) -> Table:
    """The points of all runs; with `every_evaluation` one for each evaluation after step 0, else one a run.

    Raises `DataError` and `ConfigError`.
    """
    points: list[Point] = []
    baselines: list[Baseline] = []
    notes: list[str] = []
    names: dict[str, None] = {}
    found = []
    for directory in directories:
        config = load_config(directory / "config.yaml").config
        found.append((directory, config))
        names |= dict.fromkeys(source.name for source in config.data.sources)
    for directory, config in found:
        records = _records(directory)
        shares = configured_shares(config, tuple(names))
        params = _params(directory)
        if math.isnan(params):
            notes.append(f"{directory} has no checkpoint left, so the size of its model is unknown")
        for record in _evaluations(directory, config, records, every_evaluation=every_evaluation):
            losses = _losses(directory, record)
            if record["step"] == 0:
                baselines.append(Baseline(params, losses))
                continue
            _check_measured(directory, config, records, record["step"])
            run = str(directory.resolve())
            points.append(Point(shares, losses, float(record["tokens_total"]), params, run=run))
    return Table(tuple(names), tuple(points), tuple(baselines), tuple(notes))


def configured_shares(config: Config, domains: Sequence[str]) -> tuple[float, ...]:
    """Share of the tokens of each domain; 0 for those that the run does not have."""
    given = {source.name: source.token_share for source in config.data.sources}
    total = math.fsum(given.values())
    return tuple(given.get(name, 0.0) / total for name in domains)


def _records(directory: Path) -> list[Record]:
    path = directory / METRICS_FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist, a run has it; name the directory of a run of cptron train")
    return read_records(path)


def _evaluations(
    directory: Path, config: Config, records: Sequence[Record], *, every_evaluation: bool
) -> list[Record]:
    evals = [record for record in records if record["kind"] == "eval"]
    trained = [record for record in evals if record["step"] > 0]
    last = trained[-1]["step"] if trained else 0
    if not every_evaluation and last != config.train.steps:
        raise DataError(
            f"{directory} was last evaluated at step {last} of {config.train.steps}, must have ended; train it to "
            "its end, or name --every-evaluation for laws of the tokens"
        )
    if not every_evaluation:
        trained = trained[-1:]
    return [record for record in evals if record["step"] == 0][:1] + trained


def _losses(directory: Path, record: Record) -> dict[str, float]:
    found = {name: record[f"valid/{name}/loss_nats_per_token"] for name in valid_sets(record)}
    for name, loss in found.items():
        if type(loss) not in (int, float) or not math.isfinite(loss):
            raise DataError(
                f"{directory} has the loss {loss!r} on {name} at step {record['step']}, must be a number; leave the "
                "run out"
            )
    if not found or type(record.get("tokens_total")) is not int:
        raise DataError(
            f"{directory} has an evaluation at step {record['step']} without validation sets or tokens; restore "
            f"{METRICS_FILE}"
        )
    return {name: float(loss) for name, loss in found.items()}


def _check_measured(directory: Path, config: Config, records: Sequence[Record], step: int) -> None:
    """Raise DataError where the tokens drawn up to `step` are not in the configured shares."""
    names = [source.name for source in config.data.sources]
    shares = configured_shares(config, names)
    steps = [record for record in records if record["kind"] == "step" and record["step"] <= step]
    if not steps:
        raise DataError(
            f"{directory} has no metrics up to step {step}, must have them; restore {METRICS_FILE}"
        )
    counts: list[Any] = [steps[-1].get(f"tokens/{name}") for name in names]
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) == 0:
        raise DataError(f"{directory} has no tokens by source at step {step}; restore {METRICS_FILE}")
    allowed = SHARE_TOLERANCE + 2 * config.data.seq_length / sum(counts)
    for name, share, count in zip(names, shares, counts, strict=True):
        if abs(count / sum(counts) - share) > allowed:
            raise DataError(
                f"{directory} drew {count / sum(counts):.3f} of its tokens from {name}, its configuration says "
                f"{share:.3f}; a run whose mixture changed fits no law, leave it out"
            )


def _params(directory: Path) -> float:
    """Parameters of the model in the run's newest checkpoint; NaN where there is none."""
    checkpoints = directory / "checkpoints"
    for _, path in reversed(layout.list_checkpoints(checkpoints) if checkpoints.is_dir() else []):
        try:
            return float(num_parameters(layout.read_manifest(path).arch))
        except CheckpointError:
            continue
    return float("nan")
