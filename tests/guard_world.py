"""A tiny run whose data has one bad batch: a line learned by heart, and among its copies one document of noise.

Every document is one sample, so that the noise is in one global batch, and the seed is chosen so that this batch is
`BAD`. In each copy another token is wrong, so that the loss tells which batch it is of. Checkpoints are saved after
every 24 steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rank_calls
from tiny_world import Layout
from tokens_world import write_known

from cptron.config.load import load_config
from cptron.data.open import open_sources
from cptron.testing import run_ranks

SEQ = 16
BAD = 40
"""The batch that holds the noise; also the step it is tried for."""
DOCUMENTS = 120
ARCHITECTURE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
CONFIG = """\
run: {{dir: {root}/unset, seed: {seed}}}
start: {{mode: random}}
model: {{architecture: {root}/config.json}}
data:
  seq_length: 16
  packing: best_fit
  sources: [{{name: lines, path: {root}/lines, token_share: 1.0}}]
train: {{steps: 48, global_batch_size: 2, micro_batch_size: 1, precision: fp32}}
optim: {{lr: 5.0e-3, schedule: constant}}
guards: {{spike_window: 16, spike_min_history: 12, skip_batches: 2}}
eval: {{at_start: false}}
checkpoint: {{every_steps: 24}}
runtime: {{device: cpu, threads_per_rank: 1, timeout_s: 240}}
"""


@dataclass(frozen=True)
class GuardWorld:
    """Where it is, and how to train on it."""

    root: Path
    sample: int
    """Number of the bad sample."""

    def words(self, run_dir: Path, layout: Layout, *overrides: str) -> list[str]:
        """Overrides of one run."""
        return [f"run.dir={run_dir}", *layout.overrides, *overrides]

    @property
    def config(self) -> Path:
        """YAML file; `run.dir` is set by an override."""
        return self.root / "run.yaml"

    def train(self, run_dir: Path, layout: Layout, *overrides: str) -> list[rank_calls.Outcome]:
        """`cptron train` on warm ranks; what it came to on every rank."""
        words = self.words(run_dir, layout, *overrides)
        return run_ranks(rank_calls.train, layout.world_size, str(self.config), words)

    def trained(self, run_dir: Path, layout: Layout, *overrides: str) -> Path:
        """`train` that must succeed on every rank; returns the run directory."""
        errors = [outcome.error for outcome in self.train(run_dir, layout, *overrides) if outcome.error]
        assert not errors, errors[0]
        return run_dir


def make_guard_world(root: Path) -> GuardWorld:
    """Write it below `root`."""
    draw = np.random.default_rng(0)
    line = draw.integers(1, 20, SEQ + 1)
    documents_NT = np.tile(line, (DOCUMENTS, 1))
    documents_NT[np.arange(DOCUMENTS), draw.integers(0, SEQ + 1, DOCUMENTS)] = np.arange(DOCUMENTS) % 20
    documents_NT[DOCUMENTS // 2] = draw.integers(20, 99, SEQ + 1)
    write_known(root / "lines", documents_NT.tolist())
    (root / "config.json").write_text(json.dumps(ARCHITECTURE))
    for seed in range(1000):
        (root / "run.yaml").write_text(CONFIG.format(root=root, seed=seed))
        (source,) = open_sources(load_config(root / "run.yaml").config)
        for sample in (2 * BAD - 2, 2 * BAD - 1):
            if source.sample(sample)[0][0] >= 20:
                return GuardWorld(root, sample)
    raise AssertionError("no seed puts the noise there")
