"""From directories of runs to raw numbers.

Place in the flow: finished runs -> here -> `results.json`, from which `claims`, `plots` and `page` are made. Invariant:
nothing is judged and nothing is averaged here but what the run itself has recorded; losses are kept by window, so that
every interval can be computed again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cptron.forgetting.evaluation import BASE, FOLDER, Evaluation, evaluation_path, read_evaluation
from cptron.forgetting.journal import JOURNAL, read_verdicts
from cptron.report.sinks import METRICS_FILE, read_records
from examples.experiments.execute import ended
from examples.experiments.plan import Trial, loaded, run_dir

Json = dict[str, Any]
SELECTION = "selection.json"
DECIMALS = 5
"""Of a window's loss in nats: 1e-5 of about 600."""


def collected(trial: Trial) -> Json:
    """All that is kept of a finished run."""
    directory, config = run_dir(trial), loaded(trial).config
    steps = [record for record in read_records(directory / METRICS_FILE) if record["kind"] == "step"]
    base = read_evaluation(directory / FOLDER / BASE)
    last = read_evaluation(evaluation_path(directory, config.train.steps))
    sources = [source.name for source in config.data.sources]
    return {
        "name": trial.name,
        "experiment": trial.experiment,
        "replay_percent": trial.percent,
        "rate": trial.rate,
        "seed": trial.seed,
        "keeps": trial.keeps,
        "lr": config.optim.lr,
        "lr_min": config.optim.lr_min,
        "epsilon_nats": config.forgetting.epsilon_nats,
        "command": ended(trial)["command"],
        "wall_s": ended(trial)["wall_s"],
        "tokens": {name: steps[-1][f"tokens/{name}"] for name in sources},
        "training_loss": [round(record["loss_nats_per_token"], 4) for record in steps],
        "base": _windows(base),
        "last": _windows(last),
        "evaluations": _evaluations(directory),
        "verdicts": _verdicts(directory),
        "selection": _selection(directory) if trial.keeps else None,
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


def _selection(directory: Path) -> Json:
    """What `cptron select` has chosen, and among which candidates."""
    record = json.loads((directory / SELECTION).read_text())
    kept = ("name", "step", "old_change_nats", "new_change_nats", "is_chosen", "is_within_epsilon")
    return {
        "epsilon_nats": record["rule"]["epsilon_nats"],
        "chosen": record["chosen"],
        "reason": record["reason"],
        "candidates": [{key: row[key] for key in kept} for row in record["candidates"]],
    }
