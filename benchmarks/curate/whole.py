"""Rows of a whole corpus: raw documents to tokens by two commands on two cores, undisturbed and killed again and again.

Place in the flow: `run` puts them on record. Invariant: what the killed runs leave is compared byte by byte with what
the undisturbed one left, all files but `timing.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.curate.rows_dedup import Settings
from benchmarks.data.measure import ROOT, BenchmarkError, Run, run_process
from benchmarks.data.results import Row

WORKERS = 2
GOAL_BYTES = 2 << 30
LANGUAGES = ["en", "de", "es", "fr"]
UNORDERED = "timing.json"
"""The one file that may differ between equal runs."""
STEPS: list[dict[str, Any]] = [
    {"step": "normalise"},
    {"step": "length", "min_characters": 200},
    {"step": "language", "engine": "py3langid", "keep": LANGUAGES, "threshold": 0.5},
    {
        "step": "gopher_quality",
        "min_stop_words": 0,
        "max_non_alpha_words_ratio": 0.25,
        "min_avg_word_length": 2.0,
    },
    {"step": "exact_dedup"},
    {"step": "near_duplicates"},
    {
        "step": "gopher_repetition",
        "dup_para_frac": 0.9,
        "dup_para_char_frac": 0.9,
        "dup_line_char_frac": 0.9,
        "dup_line_frac": 0.9,
        "top_n_grams": [0.6, 0.6, 0.6],
        "dup_n_grams": [0.6, 0.6, 0.6, 0.6, 0.6, 0.6],
    },
    {"step": "pii"},
    {"step": "decontaminate", "evaluation": ["examples/quickstart/data/*.valid.jsonl.gz"]},
]
"""With the limits of rules for prose wide enough for programs and manuals, so that later steps have work, too."""
_KILLS = 6
"""At most, of each of the two commands."""
_LATEST = 0.3
"""Part of the undisturbed time after which a command is killed at the latest: each start goes on where the one before
was killed, so that the kills are spread over the whole work."""
_GONE_S = 60


@dataclass(frozen=True)
class Raw:
    """Both commands on one corpus, with all that they write below `directory`."""

    directory: Path
    corpus: Path
    tokenizer: Path
    shard_bytes: int = 32 << 20

    def commands(self) -> dict[str, list[str | Path]]:
        """Curation and preprocessing, in order. Writes the curation's file."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # The manifest holds all settings, so equal runs write to equal places.
        content = {
            "output": str(self.directory / "corpus"),
            "inputs": [{"name": "real", "paths": [str(self.corpus)]}],
            "steps": STEPS,
            "tokenizer": str(self.tokenizer),
            "shard_bytes": self.shard_bytes,
        }
        path = self.directory / "curate.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        command: list[str | Path] = [sys.executable, "-W", "ignore", "-m", "cptron.cli"]
        workers = ["--workers", str(WORKERS)]
        words = [
            "--tokenizer-model",
            self.tokenizer,
            "--append-eod",
            "--output-prefix",
            self.directory / "tokens",
        ]
        return {
            "curate": [*command, "curate", path, *workers],
            "preprocess": [*command, "preprocess", "--input", self.directory / "corpus", *words, *workers],
        }

    def left(self) -> dict[str, str]:
        """SHA-256 of every published file by its name."""
        files = [*self.directory.glob("tokens*"), *(self.directory / "corpus").iterdir()]
        return {
            str(path.relative_to(self.directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.is_file() and path.name != UNORDERED
        }


def whole(settings: Settings) -> list[Row]:
    """Rows 4a (speed, memory) and 4b (kills)."""
    raw = Raw(settings.work_dir / "whole", settings.corpus, settings.model)
    return rows(raw, settings.command)


def rows(raw: Raw, command: str, seed: int = 0) -> list[Row]:
    """Both rows of one corpus. Raises BenchmarkError where a command fails, or the killed runs leave other bytes."""
    shutil.rmtree(raw.directory, ignore_errors=True)
    runs = {name: run_process(words, _environment()) for name, words in raw.commands().items()}
    expected = raw.left()
    about = f"{raw.corpus.stat().st_size / 1e6:.1f} MB of JSONL"
    first = _speed_row(raw, runs, about, command)
    shutil.rmtree(raw.directory)
    draw = random.Random(seed)
    kills = {name: killed_and_ended(words, runs[name].wall_s, draw) for name, words in raw.commands().items()}
    found = raw.left()
    other = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if other:
        raise BenchmarkError(
            f"{', '.join(other)} differ after {kills} kills from those of an undisturbed run"
        )
    shutil.rmtree(raw.directory)
    return [first, _kills_row(kills, len(expected), about, command)]


def killed_and_ended(words: Sequence[str | Path], undisturbed_s: float, draw: random.Random) -> int:
    """Start the command and kill it with all its workers, at moments of any part of its work, then let it end. Returns
    how often it was killed."""
    kills = 0
    for _ in range(_KILLS):
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            env={**os.environ, **_environment()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=draw.random() * _LATEST * undisturbed_s)
        except subprocess.TimeoutExpired:
            kills += 1
        finally:
            _kill_group(process)
        if process.returncode == 0:
            return kills  # it came to its end before it was killed
        if process.returncode > 0:
            raise BenchmarkError(f"{words[5]} ended with {process.returncode} after {kills} kills")
    run_process(words, _environment())
    return kills


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The command and its workers, and wait until all are gone: none of them may write beside the next run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline_s = time.monotonic() + _GONE_S
    while time.monotonic() < deadline_s:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise BenchmarkError(f"workers of {process.args!r:.200} are there {_GONE_S} s after their kill")


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _speed_row(raw: Raw, runs: dict[str, Run], about: str, command: str) -> Row:
    corpus = raw.directory / "corpus"
    manifest = json.loads((corpus / "manifest.json").read_text())
    timing = json.loads((corpus / UNORDERED).read_text())
    steps = ", ".join(f"{name} {step['mb_per_cpu_s']}" for name, step in timing["steps"].items())
    wall_s = sum(run.wall_s for run in runs.values())
    peak = max(run.peak_bytes for run in runs.values())
    each = "; ".join(
        f"{name} {run.wall_s:.1f} s, {run.peak_bytes / 1e6:.0f} MB" for name, run in runs.items()
    )
    return Row(
        row="whole 4a",
        work=f"raw documents to tokens, {len(STEPS)} steps, {WORKERS} workers",
        unit="MB/s of raw JSONL",
        ours=raw.corpus.stat().st_size / 1e6 / wall_s,
        goal="<= 2 GiB of memory",
        met=peak <= GOAL_BYTES,
        input=f"{about}, {manifest['records_read']} documents",
        rounds=1,
        memory={"ours": peak},
        note=(
            f"{each}; {manifest['documents']} documents and {manifest['tokens']} tokens are left; MB of text per CPU "
            f"second: {steps}; reading and writing {timing['reading_and_writing_cpu_s']} CPU s"
        ),
        command=command,
    )


def _kills_row(kills: dict[str, int], num_files: int, about: str, command: str) -> Row:
    return Row(
        row="whole 4b",
        work="the same, killed with SIGKILL and started again",
        unit="kills",
        ours=sum(kills.values()),
        goal="every file byte for byte that of an undisturbed run",
        met=all(kills.values()),
        input=about,
        rounds=1,
        note=f"{num_files} files are equal; kills: {', '.join(f'{name} {n}' for name, n in kills.items())}",
        command=command,
    )
