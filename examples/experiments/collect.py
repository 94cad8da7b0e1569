"""From directories of runs to raw numbers.

Place in the flow: finished runs -> here -> `results.json`, from which `claims`, `plots` and `page` are made. Invariant:
nothing is judged and nothing is averaged here but what the run itself has recorded; losses are kept by window, so that
every interval can be computed again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cptron.forgetting.evaluation import BASE, FOLDER, Evaluation, evaluation_path, read_evaluation
from cptron.forgetting.journal import JOURNAL, read_verdicts
from cptron.report.sinks import METRICS_FILE, read_records
from examples.experiments.execute import SELECTION, ended
from examples.experiments.plan import Trial, loaded, run_dir

Json = dict[str, Any]
DECIMALS = 5
"""Of a window's loss in nats: 1e-5 of about 600."""


def collected(trial: Trial) -> Json:
    """All that is kept of a finished run."""
    config, note = loaded(trial).config, ended(trial)
    return {
        "name": trial.name,
        "experiment": trial.experiment,
        "replay_percent": trial.percent,
        "rate": trial.rate,
        "seed": trial.seed,
        "lr": config.optim.lr,
        "lr_min": config.optim.lr_min,
        "epsilon_nats": config.forgetting.epsilon_nats,
        "command": note["command"],
        "wall_s": note["wall_s"],
        **numbers_of(run_dir(trial), config.train.steps),
    }


def numbers_of(directory: Path, last_step: int) -> Json:
    """What a run has recorded until its last step."""
    steps = [record for record in read_records(directory / METRICS_FILE) if record["kind"] == "step"]
    counts = {key.split("/")[1]: steps[-1][key] for key in steps[-1] if re.fullmatch(r"tokens/[^/]+", key)}
    return {
        "tokens": counts,
        "training_loss": [round(record["loss_nats_per_token"], 4) for record in steps],
        "base": _windows(read_evaluation(directory / FOLDER / BASE)),
        "last": _windows(read_evaluation(evaluation_path(directory, last_step))),
        "evaluations": _evaluations(directory),
        "verdicts": _verdicts(directory),
        "selection": _selection(directory),
    }


def _windows(evaluation: Evaluation) -> Json:
    """Set -> suite, and loss and labels of each of its windows."""
    return {
        name: {
            "suite": found.suite,
            "nats": [round(float(nats), DECIMALS) for nats in found.nats_W],
            "tokens": [int(count) for count in found.tokens_W],
        }
        for name, found in evaluation.sets.items()
    }


def _evaluations(directory: Path) -> list[Json]:
    """What the records of the evaluations say: step, tokens, losses, and changes of the suites with their intervals."""
    kept = []
    for record in read_records(directory / METRICS_FILE):
        if record["kind"] == "eval":
            numbers = {
                key: round(value, 6)
                for key, value in record.items()
                if key.startswith(("valid/", "forgetting/", "learning/")) and isinstance(value, float)
            }
            kept.append({"step": record["step"], "tokens_total": record["tokens_total"], **numbers})
    return kept


def _verdicts(directory: Path) -> list[Json]:
    """What the monitor found at each evaluation, and did."""
    return [
        {"step": found.step, "finding": found.finding, "action": found.action, "why": found.why}
        for found in read_verdicts(directory / JOURNAL)
    ]


def _selection(directory: Path) -> Json | None:
    """What `cptron select` has chosen among checkpoints and, where it made them, interpolations; None where it was not
    asked."""
    if not (directory / SELECTION).exists():
        return None
    record = json.loads((directory / SELECTION).read_text())
    parts = [record, record["grid"]] if record["grid"] else [record]
    kept = ("step", "alpha", "old_change_nats", "new_change_nats", "is_chosen", "is_within_epsilon")
    return {
        "epsilon_nats": record["rule"]["epsilon_nats"],
        "reasons": [part["reason"] for part in parts],
        "candidates": [{key: row.get(key) for key in kept} for row in record["candidates"]],
        "grid_of": record["grid"]["of"] if record["grid"] else None,
        "grid": [{key: row.get(key) for key in kept} for row in parts[1]["candidates"]]
        if record["grid"]
        else [],
    }
