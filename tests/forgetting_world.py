"""A tiny run that forgets: a model that has learned one kind of sequences goes on with another kind.

Old sequences count upwards through the ids 1 to 40, new ones downwards through 50 to 89, both with mistakes. The base
model was trained on the old ones for so many steps that it knows them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_calls
from guard_world import ARCHITECTURE
from shared_directory import shared_directory
from tiny_world import ONE, Layout
from tokens_world import write_known

from cptron.testing import run_ranks

SEQ = 16
STEPS = 16
EVERY = 4
"""Steps between evaluations, and between saves."""
CONFIG = """\
run: {{dir: {root}/unset, seed: 5}}
start: {start}
data:
  seq_length: 16
  sources:
    - {{name: new, path: {root}/new, token_share: 0.9}}
    - {{name: old, path: {root}/old, token_share: 0.1, role: replay}}
  valid:
    - {{name: old, path: {root}/old_valid, suite: old}}
    - {{name: new, path: {root}/new_valid, suite: new}}
train: {{steps: 16, global_batch_size: 8, micro_batch_size: 2, precision: fp32}}
optim: {{lr: 3.0e-3, schedule: constant}}
eval: {{every_steps: 4, micro_batch_size: 8}}
forgetting: {{epsilon_nats: 0.3, patience: 2, grace_tokens: 500, resamples: 200}}
checkpoint: {{every_steps: 4}}
log: {{every_steps: 1}}
runtime: {{device: cpu, threads_per_rank: 1, timeout_s: 240}}
"""


@dataclass(frozen=True)
class ForgettingWorld:
    """Where it is, and how to train on it."""

    root: Path

    @property
    def config(self) -> Path:
        """YAML file; `run.dir` is set by an override."""
        return self.root / "run.yaml"

    def words(self, run_dir: Path, layout: Layout, *overrides: str) -> list[str]:
        """Overrides of one run."""
        return [f"run.dir={run_dir}", *layout.overrides, *overrides]

    def train(self, run_dir: Path, layout: Layout, *overrides: str) -> list[rank_calls.Outcome]:
        """`cptron train` on warm ranks; what it came to on every rank."""
        words = self.words(run_dir, layout, *overrides)
        return run_ranks(rank_calls.train, layout.world_size, str(self.config), words)

    def trained(self, run_dir: Path, layout: Layout = ONE, *overrides: str) -> Path:
        """`train` that must succeed on every rank; returns the run directory."""
        errors = [outcome.error for outcome in self.train(run_dir, layout, *overrides) if outcome.error]
        assert not errors, errors[0]
        return run_dir


def share(replay: float) -> list[str]:
    """Overrides that set the share of replay."""
    return [f"data.sources.new.token_share={1 - replay}", f"data.sources.old.token_share={replay}"]


def without_replay(root: Path) -> str:
    """The override that leaves the replay source out."""
    return f"data.sources=[{{name: new, path: {root}/new, token_share: 1.0}}]"


def verdicts(run: Path) -> list[dict[str, Any]]:
    """The monitor's journal."""
    return [json.loads(line) for line in (run / "forgetting.jsonl").read_text().splitlines()]


def sequences(first: int, step: int, count: int, seed: int) -> list[list[int]]:
    """Documents that count through 40 ids, with a mistake here and there."""
    draw = np.random.default_rng(seed)
    starts_D, lengths_D = draw.integers(0, 40, count), draw.integers(8, 40, count)
    found = []
    for start, length in zip(starts_D.tolist(), lengths_D.tolist(), strict=True):
        ids = first + (start + step * np.arange(length)) % 40
        wrong = draw.random(length) < 0.05
        ids[wrong] = first + draw.integers(0, 40, int(wrong.sum()))
        found.append(ids.tolist())
    return found


def make_forgetting_world(root: Path) -> ForgettingWorld:
    """Write it below `root`, and train the base."""
    for name, first, step, count, seed in (
        ("old", 1, 1, 200, 1),
        ("new", 50, -1, 200, 2),
        ("old_valid", 1, 1, 30, 3),
        ("new_valid", 50, -1, 30, 4),
    ):
        write_known(root / name, sequences(first, step, count, seed))
    (root / "config.json").write_text(json.dumps(ARCHITECTURE))
    world = ForgettingWorld(root)
    start = "{mode: random}\nmodel: {architecture: " + str(root / "config.json") + "}"
    world.config.write_text(CONFIG.format(root=root, start=start))
    learn = ["train.steps=60", "eval.every_steps=0", "checkpoint.every_steps=0", "optim.lr=1.0e-2"]
    only_old = f"data.sources=[{{name: old, path: {root}/old, token_share: 1.0}}]"
    world.trained(root / "pretrained", ONE, *learn, only_old, "forgetting.base=step0")
    base = f"{{checkpoint: {root}/pretrained/checkpoints/step_00000060}}"
    world.config.write_text(
        CONFIG.format(root=root, start=base).replace("patience: 2", "patience: 2, base: step0")
    )
    return world


@pytest.fixture(scope="session")
def forgetting_world(tmp_path_factory: pytest.TempPathFactory) -> ForgettingWorld:
    """The world. Nobody changes it."""
    return ForgettingWorld(shared_directory(tmp_path_factory, "forgetting", make_forgetting_world))
