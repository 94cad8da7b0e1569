"""Checkpoints of runs that were never trained: a manifest with a configuration, for what reads no tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shard_files import sign
from test_checkpoint_layout import save

from cptron.checkpoint.layout import STATE
from cptron.config.load import config_to_dict, load_config, resolved_yaml
from cptron.config.schema import Config

RUN = """\
start: {checkpoint: base}
data: {seq_length: 32, sources: [{name: a, path: a, token_share: 1}]}
train: {steps: 1000, global_batch_size: 8}
optim: {lr: 3.0e-4, lr_min: 3.0e-5, schedule: infinite, warmup_steps: 10, cooldown_steps: 600, lr_constant: 1.65e-4}
eval: {at_start: false}
"""


def make_run(directory: Path, steps: list[int], *overrides: str) -> Config:
    """A run directory with checkpoints of these steps, and its configuration."""
    directory.mkdir()
    written = directory.with_suffix(".written.yaml")
    written.write_text(RUN)
    config = load_config(written, [f"run.dir={directory}", *overrides]).config
    (directory / "config.yaml").write_text(resolved_yaml(config))
    for step in steps:
        store(directory, step, config)
    return config


def store(directory: Path, step: int, config: Config, **changes: Any) -> Path:
    """One more checkpoint of the run."""
    made = save(directory / "checkpoints", step)
    (made / STATE).write_text('{"ledger": {"entries": {}}}')
    sign(made, config=config_to_dict(config), ledger={"entries": {}}, **changes)
    return made
