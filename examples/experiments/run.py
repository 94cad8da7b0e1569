"""The experiments in one go: `make experiments`.

Usage: python -m examples.experiments.run [--workers N] [--finished | --page]     (from the repository root)

Place in the flow: prepare -> train -> select -> collect -> judge -> `docs/experiments/`. Invariant: what was finished
is not run again; page and plots are made from `results.json` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.data.results import machine
from cptron.config.load import load_config
from cptron.durable import replace_text
from cptron.versions import installed_versions
from examples.experiments.claims import judged
from examples.experiments.collect import collected
from examples.experiments.execute import ExperimentError, ended, is_done, prepare, select, train_all
from examples.experiments.page import page, verdict
from examples.experiments.plan import EXPERIMENTS, config_path, trials
from examples.experiments.plots import charts

DOCS = Path("docs/experiments")
RESULTS = DOCS / "results.json"


def results(workers: int) -> dict[str, Any]:
    """Everything that is kept, of the runs that are finished."""
    finished = [trial for trial in trials() if is_done(trial)]
    runs = [collected(trial) for trial in finished]
    config = load_config(config_path(EXPERIMENTS[0].name)).config
    train, optim = config.train, config.optim
    return {
        "command": "make experiments",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "workers": workers,
        "versions": installed_versions(),
        "commit": ", ".join(sorted({ended(trial)["commit"] for trial in finished})),
        "seeds": sorted({trial.seed for trial in finished}),
        "not_run": [trial.name for trial in trials() if trial not in finished],
        "model": "SmolLM2-135M-Instruct, all weights trained",
        "run": f"{train.steps} steps of {train.global_batch_size} x {config.data.seq_length} tokens in "
        f"{train.precision}; AdamW, {optim.schedule} from {optim.lr:g} to {optim.lr_min:g} (but where a table says "
        f"otherwise), warm-up of {optim.warmup_steps} steps",
        "sequence_tokens": config.data.seq_length,
        "runs": runs,
        "claims": judged(runs),
    }


def to_text(record: Mapping[str, Any]) -> str:
    """JSON with a list of numbers on one line."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[[-\d.,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def write_page() -> None:
    """Page and plots, from the results on record."""
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    replace_text(DOCS / "README.md", page(record))
    for name, content in charts(record).items():
        replace_text(DOCS / name, content)
    for claim in record["claims"]:
        print(f"{claim['experiment']}: {claim['claim']} {verdict(claim)}: {claim['why']}")


def main() -> int:
    """Run all stages; 0 whatever the verdicts are: they are results."""
    parser = argparse.ArgumentParser(
        description="Replay, rate, monitor and selector on a real model and real text."
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="runs at a time (default: cores)"
    )
    parser.add_argument(
        "--finished", action="store_true", help="train nothing: record the runs that are finished"
    )
    parser.add_argument(
        "--page", action="store_true", help="only make page and plots from the results on record"
    )
    args = parser.parse_args()
    if not args.page:
        try:
            prepare()
            if not args.finished:
                train_all(trials(), args.workers)
            for trial in trials():
                if is_done(trial):
                    select(trial)
        except ExperimentError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        DOCS.mkdir(parents=True, exist_ok=True)
        replace_text(RESULTS, to_text(results(args.workers)))
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
