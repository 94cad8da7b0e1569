"""What the end-to-end and fault tests run on warm ranks: the commands themselves, and a few ways to break things."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

from cptron.errors import CptronError


@dataclass(frozen=True)
class Outcome:
    """What a command came to on one rank."""

    error: str
    """`ErrorClass: message`, or empty."""
    stdout: str
    code: int = 0
    """What a run that had no error ended with."""


def train(config: str, overrides: list[str]) -> Outcome:
    """`cptron train` as this rank."""
    from cptron.config.load import load_config
    from cptron.runtime.launcher import launched_ranks
    from cptron.train.main import run

    ranks = launched_ranks()
    assert ranks is not None
    error, code, stdout = "", 0, io.StringIO()
    with contextlib.redirect_stdout(stdout):
        try:
            code = run(load_config(Path(config), overrides).config, ranks)
        except CptronError as caught:
            error = f"{type(caught).__name__}: {caught}"
    return Outcome(error, stdout.getvalue(), code)


def train_each(config: str, overrides_by_rank: list[list[str]]) -> Outcome:
    """`cptron train` with a configuration of its own on every rank, as when one node's disk differs."""
    from cptron.runtime.launcher import launched_ranks

    ranks = launched_ranks()
    assert ranks is not None
    return train(config, overrides_by_rank[ranks.rank])


def command(arguments: list[str]) -> Outcome:
    """Any other `cptron` command, on the one rank there is."""
    import importlib

    from cptron.cli import VERBS

    error, stdout = "", io.StringIO()
    with contextlib.redirect_stdout(stdout):
        try:
            assert importlib.import_module(VERBS[arguments[0]][0]).main(arguments[1:]) == 0
        except CptronError as caught:
            error = f"{type(caught).__name__}: {caught}"
    return Outcome(error, stdout.getvalue())


def train_with_nan(config: str, overrides: list[str], poisoned_rank: int) -> Outcome:
    """Train, after one weight of one rank has become NaN."""
    import torch

    from cptron.train import setup

    prepare = setup.prepare

    def prepare_and_poison(config: object, plan: object, session: object) -> object:
        run = prepare(config, plan, session)  # type: ignore[arg-type]
        if run.session.ranks.rank == poisoned_rank:
            with torch.no_grad():
                # a weight that every token uses; a row of the embedding might wait for its word
                fc2 = next(
                    weight for name, weight in run.chunks[0].named_parameters() if "linear_fc2" in name
                )
                fc2.view(-1)[0] = float("nan")
        return run

    setup.prepare = prepare_and_poison  # type: ignore[assignment]
    try:
        return train(config, overrides)
    finally:
        setup.prepare = prepare


def train_with_a_lost_file(config: str, overrides: list[str], rank: int) -> Outcome:
    """Train from a Hugging Face model whose file is gone on one rank's machine once the start was planned."""
    from cptron.convert.safetensors_io import ModelReader
    from cptron.errors import ConversionError
    from cptron.runtime.launcher import launched_ranks

    read = ModelReader.read_range

    def lost(self: ModelReader, *words: object) -> object:
        raise ConversionError(f"{self.files[0].name} cannot be read; download it again")

    ranks = launched_ranks()
    assert ranks is not None
    if ranks.rank == rank:
        ModelReader.read_range = lost  # type: ignore[assignment, method-assign]
    try:
        return train(config, overrides)
    finally:
        ModelReader.read_range = read  # type: ignore[method-assign]


def rewrite_shards(base: str, target: str, change: str, keep_checksums: bool = False) -> None:
    """Copy a checkpoint with wrong weights in it: whole files and sizes that agree, but not the same model.

    `swap` exchanges the MLP outputs of two layers, `nudge` scales one norm by 1.05, `drop` leaves one weight out.
    Without `keep_checksums` its manifest is that of a checkpoint from before there were any.
    """
    import torch
    from shard_files import save_shards

    from cptron.checkpoint import layout
    from cptron.checkpoint.sharded import load_shards
    from cptron.durable import begin_directory
    from cptron.model.build import build_model
    from cptron.runtime.session import open_session

    source, final = Path(base), Path(target)
    manifest = layout.read_manifest(source)
    working = begin_directory(final)
    for name in (layout.SHARDS, layout.HUGGING_FACE):
        (working / name).mkdir()
    for path in (source / layout.HUGGING_FACE).iterdir():
        (working / layout.HUGGING_FACE / path.name).write_bytes(path.read_bytes())
    with open_session(), torch.no_grad():
        model = build_model(manifest.arch)
        load_shards(source / layout.SHARDS, [model])
        layers = model.decoder.layers
        if change == "swap":
            first, second = layers[0].mlp.linear_fc2.weight, layers[1].mlp.linear_fc2.weight
            kept = first.clone()
            first.copy_(second)
            second.copy_(kept)
        if change == "nudge":
            model.decoder.final_layernorm.weight.mul_(1.05)
        dropped = "decoder.final_layernorm.weight" if change == "drop" else ""
        save_shards(working / layout.SHARDS, [model], holds=lambda name: name != dropped)
    layout.publish(final, replace(manifest, checksums=manifest.checksums if keep_checksums else {}))
