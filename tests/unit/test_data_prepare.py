"""`cptron data prepare`: the index of every epoch that the run enters, and damage found ahead of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_world import SEQ, write_tokens

from cptron.config.schema import (
    Config,
    DataConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from cptron.data.ledger import Ledger
from cptron.data.open import mix_of, open_sources
from cptron.data.prepare import prepare
from cptron.data.stream import OnMaxEpochs, SampleStream
from cptron.errors import ConfigError, DataError


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Two corpora of 10 and of 13 samples."""
    write_tokens(tmp_path / "a", [40, 41])
    write_tokens(tmp_path / "b", [1, 100], first=1000)
    return tmp_path


def config_of(
    tokens: Path,
    steps: int = 20,
    *,
    limits: dict[str, float] | None = None,
    policy: OnMaxEpochs = "warn",
    cache: str = "cache",
) -> Config:
    """a : b = 9 : 1 in batches of 5."""
    sources = tuple(
        SourceConfig(
            name=name, path=str(tokens / name), token_share=share, max_epochs=(limits or {}).get(name, 0.0)
        )
        for name, share in (("a", 0.9), ("b", 0.1))
    )
    return Config(
        run=RunConfig(dir=str(tokens / "run")),
        data=DataConfig(
            seq_length=SEQ,
            sources=sources,
            on_max_epochs=policy,
            cache_dir=str(tokens / cache) if cache else "",
        ),
        train=TrainConfig(steps=steps, global_batch_size=5),
        optim=OptimConfig(lr=1e-3),
    )


def drawn(config: Config) -> tuple[dict[str, int], set[str]]:
    """Epochs of each source that a run has entered, and the index files it has made."""
    stream = SampleStream(open_sources(config), mix_of(config), Ledger())
    for _ in range(config.train.steps):
        stream.draw(config.train.global_batch_size)
    epochs = {
        source.name: -(-stream.ledger.entries[source.name].cursor // source.samples_per_epoch)
        for source in stream.sources
    }
    return epochs, {path.name for path in Path(config.data.cache_dir).glob("*.index")}


@pytest.mark.parametrize(
    ("limits", "policy", "epochs"),
    [
        ({}, "warn", {"a": 10, "b": 1}),
        ({"a": 1.0}, "redistribute", {"a": 1, "b": 7}),
        ({"a": 1.0}, "warn", {"a": 10, "b": 1}),
        ({"a": 2.5}, "stop", {"a": 3, "b": 1}),
        ({"a": 1.0, "b": 2.0}, "redistribute", {"a": 1, "b": 2}),
    ],
)
def test_every_epoch_of_the_run_is_prepared(
    tokens: Path, limits: dict[str, float], policy: OnMaxEpochs, epochs: dict[str, int]
) -> None:
    """With a limit too, where another source takes over; the run finds every index it asks for."""
    config = config_of(tokens, limits=limits, policy=policy)
    found = {prepared.name: prepared.epochs for prepared in prepare(config, check_hashes=False)}
    assert found == epochs
    files = {path.name for path in (tokens / "cache").glob("*.index")}
    assert len(files) == sum(found.values())
    entered, made = drawn(config)
    assert made == files
    assert all(entered[name] <= epochs[name] for name in "ab")


def test_stages_have_their_own_indexes(tokens: Path) -> None:
    """For each length of samples, and as far as its stages go; epochs of both lengths count for a limit."""
    base = config_of(tokens, limits={"a": 6.0}, policy="redistribute")
    stages = (
        StageConfig(until_tokens=240),
        StageConfig(until_tokens=480, shares={"a": 1.0}, seq_length=2 * SEQ),
        StageConfig(shares={"a": 1.0, "b": 1.0}),
    )
    config = replace(base, data=replace(base.data, stages=stages))
    found = {prepared.name: prepared.epochs for prepared in prepare(config, check_hashes=False)}
    files = {path.name for path in (tokens / "cache").glob("*.index")}
    stream = SampleStream(open_sources(config), mix_of(config), Ledger())
    for _ in range(config.train.steps):
        stream.draw(stream.batch_size(0))
    assert {path.name for path in (tokens / "cache").glob("*.index")} == files
    entries = stream.ledger.entries
    assert set(entries) <= set(found) == {"a", "b", "a.length_16"}
    assert all(math.ceil(entry.epochs) <= found[name] <= entry.epochs + 2 for name, entry in entries.items())


def test_a_second_run_of_it_makes_nothing(tokens: Path) -> None:
    """A longer run only adds."""
    config = config_of(tokens)
    prepare(config, check_hashes=False)
    before = {path: path.stat().st_mtime_ns for path in (tokens / "cache").glob("*.index")}
    prepare(config, check_hashes=False)
    prepare(config_of(tokens, steps=30), check_hashes=False)
    after = {path: path.stat().st_mtime_ns for path in (tokens / "cache").glob("*.index")}
    assert before.items() < after.items()


def test_damage_is_found(tokens: Path) -> None:
    """By the hashes where they are asked for, else by the sizes; without a cache there is nothing to make."""
    path = tokens / "b.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\x01" + whole[9:])
    prepare(config_of(tokens), check_hashes=False)
    with pytest.raises(DataError, match=r"b\.bin has SHA-256"):
        prepare(config_of(tokens), check_hashes=True)
    path.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=r"b\.bin"):
        prepare(config_of(tokens), check_hashes=False)
    with pytest.raises(ConfigError, match="cache_dir"):
        prepare(config_of(tokens, cache=""), check_hashes=False)


@pytest.mark.parametrize("eod_mask_loss", [False, True])
def test_the_ends_of_documents_are_masked_where_it_is_asked_for(tokens: Path, eod_mask_loss: bool) -> None:
    """The first token of the one document of each corpus that can come after another."""
    config = config_of(tokens)
    for source in open_sources(replace(config, data=replace(config.data, eod_mask_loss=eod_mask_loss))):
        batch = source.empty_batch(source.samples_per_epoch)
        source.read(np.arange(source.samples_per_epoch), batch)
        assert batch.loss_mask_BS.sum() == source.predictions_per_epoch - eod_mask_loss
