"""One process of the benchmark of checkpoints: a real run that saves, or the load of what one saved.

Usage: python -m benchmarks.checkpoint.one train|load RUN_DIR WORK [section.key=value ...]

Place in the flow: started by `run`, so that each measurement begins alike. Invariant: what is timed is the engine's own
code, as the trainer calls it; the answer is one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cptron.checkpoint import layout
from cptron.checkpoint.verify import damage
from cptron.checkpoint.weights import load_weights
from cptron.config.load import load_config
from cptron.optim.schedule import learning_rate
from cptron.runtime.launcher import Ranks, launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout
from cptron.tokens.indexed_writer import IndexedWriter
from cptron.train.preflight import preflight
from cptron.train.save import Saver
from cptron.train.setup import Run, prepare
from cptron.train.step import train_step

SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
"""SmolLM2-135M's."""
SAVES = 3
STEPS = 2
"""Between saves, and before the first."""


def make_inputs(work: Path) -> Path:
    """Shape of the model, random tokens and the configuration of the run; returns the configuration."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "shape.json").write_text(json.dumps(SHAPE))
    rng = np.random.default_rng(1)
    with IndexedWriter(work / "tokens", np.dtype(np.uint16)) as writer:
        for _ in range(64):
            writer.add(rng.integers(0, SHAPE["vocab_size"], 4096))
        writer.finish()
    values = {
        "run": {"dir": str(work / "run"), "seed": 1},
        "start": {"mode": "random"},
        "model": {"architecture": str(work / "shape.json")},
        "data": {
            "seq_length": 256,
            "sources": [{"name": "random", "path": str(work / "tokens"), "token_share": 1}],
        },
        "train": {"steps": 1000, "global_batch_size": 2, "micro_batch_size": 1, "precision": "fp32"},
        "optim": {"lr": 1e-5},
        "eval": {"at_start": False},
    }
    (work / "run.yaml").write_text(yaml.safe_dump(values))
    return work / "run.yaml"


def main(argv: Sequence[str]) -> None:
    """Do one measurement and print it from the first rank."""
    what, run_dir, work, *overrides = argv
    directory = f"{run_dir}_empty" if what == "load" else run_dir  # nothing is loaded from there
    Path(directory).mkdir(exist_ok=True)
    config = load_config(Path(work) / "run.yaml", [f"run.dir={directory}", *overrides]).config
    ranks = launched_ranks() or Ranks(0, 1, 0, 1, "single")
    plan = preflight(config, ranks.world_size)
    with open_session(ranks, Layout.of(config.parallel), device=config.runtime.device) as session:
        run = prepare(config, plan, session)
        if what == "load":
            newest, _ = layout.newest_complete(Path(run_dir) / "checkpoints")
            assert newest is not None
            answer = load(run, newest)
        else:
            answer = save(run)
        if ranks.is_main:
            print(json.dumps(answer))


def save(run: Run) -> dict[str, Any]:
    """Stalls, times until a checkpoint is published, and times of steps with and without a save behind them."""
    saver = Saver(run)
    stalls_s, published_s, quiet_s, busy_s = [], [], [], []
    try:
        _steps(run, 1, saver)  # the first one makes what later ones use again
        for _ in range(SAVES):
            quiet_s += _steps(run, STEPS, saver)
            started_s = time.perf_counter()
            done = saver.save()
            stalls_s.append(time.perf_counter() - started_s)
            while not done:
                (step_s,) = _steps(run, 1, saver)
                done = saver.published()
                if not done:  # a step during which the write ended is neither
                    busy_s.append(step_s)
            published_s.append(time.perf_counter() - started_s)
    finally:
        saver.close()
        run.loader.close()
    (directory,) = done
    return {
        "stall_s": stalls_s,
        "published_s": published_s,
        "quiet_step_s": quiet_s,
        "busy_step_s": busy_s,
        "checkpoint": str(directory),
        "bytes": sum(record.size for record in layout.read_manifest(directory).files.values()),
    }


def _steps(run: Run, count: int, saver: Saver) -> list[float]:
    times_s = []
    for _ in range(count):
        started_s = time.perf_counter()
        train_step(
            run.chunks,
            run.optimizer,
            run.loader.next_step(),
            lr=learning_rate(run.config.optim, run.state.step, run.config.train.steps),
            optim=run.config.optim,
            num_sources=1,
            device=run.session.device.torch_device,
            before_update=saver.before_update,
        )
        run.state.step += 1
        times_s.append(time.perf_counter() - started_s)
    return times_s


def load(run: Run, checkpoint: Path) -> dict[str, Any]:
    """Proof and load, with nothing of the files in memory before, where the machine allows that."""
    run.loader.close()
    for path in checkpoint.rglob("*.distcp"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    started_s = time.perf_counter()
    lines = damage(checkpoint)
    proven_s = time.perf_counter() - started_s
    assert not lines, lines
    load_weights(checkpoint, [chunk.module for chunk in run.chunks], run.optimizer)
    return {"proven_s": proven_s, "load_s": time.perf_counter() - started_s}


if __name__ == "__main__":
    main(sys.argv[1:])
