"""Prepares data and base, and trains what is not trained yet.

Place in the flow: `run` calls it first. Invariant: a trial is `cptron train` and nothing else; one whose configuration
and data are those of a finished run is not run again, and one that was interrupted is resumed by `cptron train` itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cptron.durable import replace_text
from examples.experiments.plan import (
    HERE,
    MODEL,
    RUNS,
    WORK,
    Trial,
    config_path,
    loaded,
    overrides_of,
    run_dir,
)

QUICKSTART = Path("examples/quickstart/data")
CORPORA = {
    "vietnamese": HERE / "data" / "libreoffice_help_vi",
    "postgresql": QUICKSTART / "postgresql_docs_en",
    "wikipedia": QUICKSTART / "wikipedia_vital_en",
}


SELECTION = "selection.json"
ALPHAS = (0.25, 0.5, 0.75)
"""Of interpolations: base + alpha (checkpoint - base)."""
NONE_WITHIN = 3
"""Exit code of `cptron select` where no checkpoint keeps the constraint."""


class ExperimentError(Exception):
    """A command that failed, and where its output is."""


def prepare() -> None:
    """Tokenize all texts and convert the base model, where that is not done."""
    WORK.mkdir(parents=True, exist_ok=True)
    for corpus, stem in CORPORA.items():
        for split in ("train", "valid"):
            prefix = WORK / f"{corpus}_{split}"
            if Path(f"{prefix}_text_document.manifest.json").exists():
                continue
            _cptron(
                *("preprocess", "--input", f"{stem}.{split}.jsonl.gz", "--append-eod"),
                *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(MODEL)),
                *("--output-prefix", str(prefix), "--workers", "2"),
                log=WORK / "prepare.log",
            )
    if not (WORK / "base").exists():
        _cptron("convert", "--verify", str(MODEL), str(WORK / "base"), log=WORK / "prepare.log")


def train_all(trials: Sequence[Trial], workers: int) -> None:
    """Train what is not finished, `workers` runs at a time. Raises `ExperimentError` after the others have ended."""
    waiting = [trial for trial in trials if not is_done(trial)]
    print(
        f"{len(trials) - len(waiting)} of {len(trials)} runs are there; {len(waiting)} to train", flush=True
    )
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(_train, trial) for trial in waiting]:
            future.result()


def is_done(trial: Trial) -> bool:
    """Whether there is a finished run of just this configuration and data."""
    found = ended(trial)
    return found.get("fingerprint") == fingerprint(trial) and "wall_s" in found


def ended(trial: Trial) -> dict[str, Any]:
    """What is written of a trial: its fingerprint and, once it has ended, command and time. Empty before its start."""
    found: dict[str, Any] = json.loads(_note(trial).read_text()) if _note(trial).exists() else {}
    return found


def fingerprint(trial: Trial) -> str:
    """Of all that a run is made from: configuration as written, tokens and base model."""
    digest = hashlib.sha256("\0".join(overrides_of(trial)).encode())
    data = loaded(trial).config.data
    prefixes = [*(source.path for source in data.sources), *(valid.path for valid in data.valid)]
    tokens = [Path(f"{prefix}.bin") for prefix in prefixes]
    for path in (config_path(trial.experiment), *tokens, MODEL / "complete.json"):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _train(trial: Trial) -> None:
    directory, started_s = run_dir(trial), time.monotonic()
    note = {"fingerprint": fingerprint(trial), "commit": _commit()}
    is_same = ended(trial).get("fingerprint") == note["fingerprint"]
    if not is_same or not any(directory.glob("checkpoints/step_*")):
        shutil.rmtree(
            directory, ignore_errors=True
        )  # of another configuration, or with nothing to go on from
    RUNS.mkdir(parents=True, exist_ok=True)
    replace_text(_note(trial), json.dumps(note) + "\n")
    print(f"{datetime.now(UTC):%H:%M} {trial.name}", flush=True)
    words = ["train", str(config_path(trial.experiment)), *overrides_of(trial)]
    _cptron(*words, log=RUNS / f"{trial.name}.log")
    if not trial.keeps:
        shutil.rmtree(directory / "checkpoints")  # 1.6 GB that nothing reads
    wall_s = round(time.monotonic() - started_s, 1)
    replace_text(_note(trial), json.dumps({**note, "command": ["cptron", *words], "wall_s": wall_s}) + "\n")
    print(f"{datetime.now(UTC):%H:%M} {trial.name} is done after {wall_s:.0f} s", flush=True)


def select(trial: Trial) -> None:
    """Let `cptron select` choose among the checkpoints of a trial that has kept them; where none is within epsilon,
    also among interpolations of the nearest with the base. What was chosen once is not chosen again. Raises
    `ExperimentError`."""
    directory, log = run_dir(trial), RUNS / f"{trial.name}.log"
    if not trial.keeps or (directory / SELECTION).exists():
        return
    models = WORK / f"{trial.name}_wise_ft"
    shutil.rmtree(models, ignore_errors=True)
    words = ["select", str(directory), "--dry-run", "--json"]
    if json.loads(_cptron(*words, log=log, fine=(0, NONE_WITHIN)))["chosen"]:
        _cptron("select", str(directory), log=log)
    else:
        alphas = ",".join(f"{alpha:g}" for alpha in ALPHAS)
        more = ("--wise-ft", alphas, "--output", str(models))
        _cptron("select", str(directory), *more, log=log, fine=(0, NONE_WITHIN))
    shutil.rmtree(models, ignore_errors=True)


def _commit() -> str:
    """Of the working tree; `unknown` outside of a repository."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _note(trial: Trial) -> Path:
    """Beside its directory, which belongs to the run alone."""
    return RUNS / f"{trial.name}.json"


def _cptron(*words: str, log: Path, fine: Sequence[int] = (0,)) -> str:
    """Run a command; what it says goes to `log`, and its output comes back too."""
    command = [sys.executable, "-m", "cptron.cli", *words]
    with log.open("a") as output:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=output, text=True, check=False)
        output.write(done.stdout)
    if done.returncode not in fine:
        raise ExperimentError(f"cptron {words[0]} ended with {done.returncode}; see {log}")
    return done.stdout
