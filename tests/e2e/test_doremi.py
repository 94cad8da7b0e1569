"""`cptron doremi` on three Markov chains: what can be learned and is hard gains weight, noise does not; under every
layout, and where it was cut off."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_calls
from commands import call, cptron, error_lines, records
from guard_world import ARCHITECTURE
from tiny_world import ONE, Layout
from tokens_world import write_known

from cptron.testing import run_ranks

SEQ = 16
CONFIG = """\
run: {{dir: {root}/unset}}
start: {{mode: random}}
model: {{architecture: {root}/config.json}}
data:
  seq_length: 16
  sources:
    - {{name: easy, path: {root}/easy, token_share: 1}}
    - {{name: hard, path: {root}/hard, token_share: 1}}
    - {{name: noise, path: {root}/noise, token_share: 1}}
train: {{steps: 60, global_batch_size: 12, micro_batch_size: 6, precision: fp32}}
optim: {{lr: 1.0e-2, schedule: constant, weight_decay: 0.0}}
eval: {{at_start: false}}
checkpoint: {{every_steps: 30}}
runtime: {{device: cpu, threads_per_rank: 1, timeout_s: 240}}
"""


@dataclass(frozen=True)
class Chains:
    """Three sources, and a reference trained on them."""

    root: Path

    @property
    def reference(self) -> Path:
        """Its run."""
        return self.root / "reference"

    def train(self, run: Path, layout: Layout, *overrides: str) -> Path:
        """A run that must succeed."""
        words = [f"run.dir={run}", *layout.overrides, *overrides]
        outcomes = run_ranks(rank_calls.train, layout.world_size, str(self.root / "run.yaml"), words)
        errors = [outcome.error for outcome in outcomes if outcome.error]
        assert not errors, errors[0]
        return run

    def proxy(self, run: Path, layout: Layout = ONE, *overrides: str) -> Path:
        """What `cptron doremi` trains."""
        return self.train(run, layout, f"doremi.reference={self.reference}", *overrides)


def walks(successors: np.ndarray, first: int) -> list[list[int]]:
    """One from each state of a chain in which each has one successor."""
    states = np.arange(len(successors))
    steps = [states]
    for _ in range(SEQ):
        steps.append(successors[steps[-1]])
    return (first + np.stack(steps, 1)).tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Chains:
    """easy: 8 tokens in a circle. hard: 60 tokens, each with one successor. noise: any of 30 tokens, and never the same
    twice, so that it cannot be learned by heart."""
    root, draw = tmp_path_factory.mktemp("chains"), np.random.default_rng(0)
    write_known(root / "easy", walks(np.arange(1, 9) % 8, 0))
    write_known(root / "hard", walks(draw.permutation(60), 8))
    write_known(root / "noise", draw.integers(68, 98, (1500, SEQ + 1)).tolist())
    (root / "config.json").write_text(json.dumps({**ARCHITECTURE, "num_hidden_layers": 2}))
    (root / "run.yaml").write_text(CONFIG.format(root=root))
    made = Chains(root)
    made.train(made.reference, ONE, "train.steps=150", "checkpoint.every_steps=0")
    return made


@pytest.fixture(scope="module")
def whole(chains: Chains) -> Path:
    """A proxy's run on one rank."""
    return chains.proxy(chains.root / "whole")


def weights_of(run: Path) -> dict[str, Any]:
    """State of the last checkpoint."""
    path = run / "checkpoints" / "step_00000060" / "state.json"
    return json.loads(path.read_text())["doremi"]  # type: ignore[no-any-return]


def test_hard_rises_and_noise_does_not(whole: Path) -> None:
    """Above a third: what the reference has learned and the proxy has not. The reported losses are not weighted."""
    answer = weights_of(whole)
    print(answer)
    assert answer["average"]["hard"] > 0.5
    assert answer["average"]["noise"] < 0.3 and answer["average"]["easy"] < 0.3
    assert sum(answer["average"].values()) == pytest.approx(1)
    steps = records(whole, "step")
    assert [record["weight/hard"] for record in steps][-1] == answer["weights"]["hard"]
    mean = np.mean([record["weight/hard"] for record in steps])
    assert answer["average"]["hard"] == pytest.approx(mean)
    assert steps[0]["loss_nats_per_token"] == pytest.approx(np.log(100), abs=0.5)


def test_deterministic_and_resumable(chains: Chains, whole: Path, tmp_path: Path) -> None:
    """The second half after a cut is that of the uninterrupted run, to the bit."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step_00000060")
    chains.proxy(run)
    assert weights_of(run) == weights_of(whole)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(2, cp=2),
        *(pytest.param(cut, marks=pytest.mark.more) for cut in (Layout(2), Layout(4, tp=2, pp=2))),
    ],
    ids=str,
)
def test_every_layout_finds_the_same(chains: Chains, whole: Path, layout: Layout, tmp_path: Path) -> None:
    """From the checkpoint in the middle."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "step_00000060")
    chains.proxy(run, layout)
    for key in ("average", "weights", "scores"):
        assert weights_of(run)[key] == pytest.approx(weights_of(whole)[key], rel=1e-2, abs=1e-4)


@pytest.mark.more
def test_the_command_writes_what_to_paste(chains: Chains, whole: Path, tmp_path: Path) -> None:
    """Of a run that has come to its end nothing is trained; another vocabulary is refused."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    words = [chains.root / "run.yaml", "--reference", chains.reference, f"run.dir={run}"]
    done = call(cptron("doremi", *words), timeout_s=240)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "doremi.json").read_text())
    assert result["shares"] == weights_of(whole)["average"] and result["steps"] == 60
    assert f"hard: token_share: {result['shares']['hard']:.4f}" in done.stdout
    (tmp_path / "config.json").write_text(json.dumps({**ARCHITECTURE, "vocab_size": 120}))
    words = [f"run.dir={tmp_path / 'other'}", f"model.architecture={tmp_path / 'config.json'}"]
    words.append(f"doremi.reference={chains.reference}")
    (outcome,) = run_ranks(rank_calls.train, 1, str(chains.root / "run.yaml"), words)
    assert "has another vocabulary (100 ids)" in outcome.error
    assert error_lines(done.stderr) == []
