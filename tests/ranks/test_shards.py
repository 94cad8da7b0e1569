"""Shards of every layout hold all of weights and optimizer, and megatron-core's own loader agrees with ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import shard_calls
from tiny_world import World

from cptron.config.schema import OptimConfig
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

ADAMW = OptimConfig(lr=1e-3)
SGD = OptimConfig(name="sgd", lr=1e-3, clip_grad_norm=1.0)
LAYOUTS = {
    "one": (1, Layout()),
    "dp2": (2, Layout()),
    "dp3": (3, Layout()),
    "tp2": (2, Layout(tp=2)),
    "tp2dp2": (4, Layout(tp=2, sequence_parallel=True)),
    "pp2": (2, Layout(pp=2)),
    "cp2": (2, Layout(cp=2)),
    "vpp2": (2, Layout(pp=2, virtual_stages=2)),
}


PAIRS = (("dp3", "tp2dp2"), ("tp2dp2", "pp2"), ("vpp2", "dp2"), ("cp2", "one"))
"""Layouts of which the first saves and the second loads by megatron-core's own loader."""


@pytest.mark.parametrize(
    ("precision", "pairs"),
    [
        pytest.param("fp32", PAIRS, id="fp32", marks=pytest.mark.more),
        pytest.param("bf16", PAIRS, id="bf16", marks=pytest.mark.more),
        pytest.param("bf16", PAIRS[1:3], id="bf16-some"),
    ],
)
def test_what_is_saved_is_loaded(
    precision: str, pairs: tuple[tuple[str, str], ...], world: World, tmp_path: Path
) -> None:
    """To the bit under every layout; and their weights, which one update made, are the same ones."""
    sums = {}
    for name in sorted({name for pair in pairs for name in pair}):
        world_size, layout = LAYOUTS[name]
        shards = tmp_path / name
        shards.mkdir()
        words = str(world.base), str(shards), layout, precision, ADAMW
        sums[name] = run_ranks(shard_calls.saved_and_loaded, world_size, *words)[0]
    assert len({tuple(sorted(found.items())) for found in sums.values()}) == 1
    for name, other in pairs:
        world_size, layout = LAYOUTS[other]
        words = str(world.base), str(tmp_path / name), layout, precision, ADAMW
        run_ranks(shard_calls.loaded_by_megatron, world_size, *words)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.more), "bf16"])
def test_other_optimizers(precision: str, world: World, tmp_path: Path) -> None:
    """One buffer instead of two moments; and state that every data parallel rank has whole."""
    for name, call, optim in (
        ("sgd", shard_calls.saved_and_loaded, SGD),
        ("whole", shard_calls.undivided, OptimConfig(name="muon", lr=1e-3)),
    ):
        for layout in (Layout(), Layout(tp=2)):
            shards = tmp_path / f"{name}{layout.tp}"
            shards.mkdir()
            run_ranks(call, 2, str(world.base), str(shards), layout, precision, optim)
