"""Stages: whatever they are, wherever a run is cut and taken up again, each sample is drawn once and in its stage."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_world import SEQ, labels, write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_audit import make_run

from cptron.config.schema import OptimConfig, StageConfig
from cptron.data.audit import audit
from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.mix import Mix, OnMaxEpochs
from cptron.data.source import TokenSource
from cptron.data.stages import Stage, stage_at, stage_steps, token_bounds
from cptron.data.stream import SampleStream
from cptron.errors import ConfigError
from cptron.optim.rate_reached import step_reached
from cptron.optim.schedule import learning_rate

NAMES = "abc"
SHARE = st.sampled_from([0.0, 0.05, 0.3, 1.0])
STAGE = st.tuples(
    st.tuples(SHARE, SHARE, SHARE).filter(any),
    st.sampled_from([0, 5, SEQ, 2 * SEQ]),
    st.sampled_from([4, 8]),
    st.integers(1, 400),
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora of unlike documents."""
    directory = tmp_path_factory.mktemp("tokens")
    write_tokens(directory / "a", [3, 1, 30, 8, 8, 17, 2, 40])
    write_tokens(directory / "b", [1, 100, 3, 1, 57], first=1000)
    write_tokens(directory / "c", [5, 5, 60], first=2000)
    return directory


def stages_of(drawn: Sequence[tuple[tuple[float, ...], int, int, int]]) -> tuple[Stage, ...]:
    """Each lasts for so many tokens more; the last one has no end."""
    until, made = 0, []
    for number, (shares, seq_length, batch, length) in enumerate(drawn):
        until += length
        last = number == len(drawn) - 1
        made.append(Stage(shares, seq_length, batch, until_tokens=0 if last else until))
    return tuple(made)


def stream_of(
    tokens: Path,
    stages: tuple[Stage, ...],
    ledger: Ledger,
    max_epochs: float = 0.0,
    policy: OnMaxEpochs = "warn",
) -> SampleStream:
    """A stream over the three corpora."""
    sources = [TokenSource(name, str(tokens / name), SEQ, seed=7) for name in NAMES]
    return SampleStream(sources, Mix((1.0,) * 3, (max_epochs,) * 3, policy, stages), ledger)


def through_json(ledger: Ledger) -> Ledger:
    """As a checkpoint keeps it."""
    return Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))


Taken = list[tuple[int, list[tuple[str, int]]]]
"""Of each global batch: number of the stage, and account and number of every sample."""


def taken(stream: SampleStream, num_batches: int) -> Taken:
    """The next global batches."""
    found: Taken = []
    for _ in range(num_batches):
        drawn = stream.draw(stream.batch_size(99))
        found.append(
            (stream.stage_number, [(stream.sources[draw.source].account, draw.cursor) for draw in drawn])
        )
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(STAGE, min_size=1, max_size=4), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_any_stages_any_restarts(tokens: Path, drawn: list[Any], sessions: list[int]) -> None:
    """The uninterrupted batches; of each account the first samples, each once; in the stage that the tokens drawn
    before the batch say; and each source within one sample of its share after every sample of a stage."""
    stages = stages_of(drawn)
    whole = stream_of(tokens, stages, Ledger())
    expected = taken(whole, sum(sessions))
    ledger, found = Ledger(), []
    for num_batches in sessions:
        stream = stream_of(tokens, stages, through_json(ledger))
        found += taken(stream, num_batches)
        ledger = stream.ledger if num_batches else ledger
    assert found == expected
    assert ledger.entries == (whole.ledger.entries if sum(sessions) else {})
    cursors = Counter[str]()
    sources = {
        (name, length): TokenSource(name, str(tokens / name), SEQ, seed=7).at_length(length)
        for name in NAMES
        for length in {SEQ, *(stage.seq_length or SEQ for stage in stages)}
    }
    passed, since, before = 0, Counter[str](), {}
    for number, samples in found:
        stage = stages[number - 1]
        assert number == 1 + sum(s.until_tokens <= passed for s in stages[:-1])
        assert len(samples) == stage.global_batch_size
        used = {name: sources[name, stage.seq_length or SEQ] for name in NAMES}
        weights = {
            used[name].account: share / math.fsum(stage.token_shares) / used[name].predictions_per_sample
            for name, share in zip(NAMES, stage.token_shares, strict=True)
        }
        if weights != before:  # a stage with the blend of the one before goes on with it
            since, before = Counter(), weights
        per_sample = math.fsum(weights.values())
        for account, cursor in samples:
            assert weights[account] and cursor == cursors[account]
            cursors[account] += 1
            since[account] += 1
            (source,) = (source for source in used.values() if source.account == account)
            passed += source.count(np.array([cursor]))[1]
            for each, weight in weights.items():
                assert abs(since[each] - since.total() * weight / per_sample) < 1


@settings(max_examples=12, deadline=None)
@given(st.lists(STAGE, min_size=2, max_size=3), st.sampled_from([(1, 4), (2, 2), (4, 1)]), st.integers(0, 3))
def test_ranks_and_reading_ahead(tokens: Path, drawn: list[Any], cut: tuple[int, int], ahead: int) -> None:
    """Rows, ledger and stage of every batch do not depend on ranks, micro-batches and prefetching."""
    dp_size, micro = cut
    stages = stages_of(drawn)

    def run(dp: int, mbs: int, ahead: int) -> list[tuple[list[Any], int, dict[str, Any]]]:
        seen: list[tuple[list[Any], int, dict[str, Any]]] = [([], 0, {}) for _ in range(12)]
        for rank in range(dp):
            ledger = Ledger()
            loader = TrainLoader(
                stream_of(tokens, stages, ledger), ledger, Cut(4, mbs, rank, dp), prefetch_steps=ahead
            )
            for step in range(12):
                rows = seen[step][0] + labels(loader.next_step())
                seen[step] = sorted(rows), loader.stage_number, ledger.to_dict()
            loader.close()
        return seen

    assert run(dp_size, micro, ahead) == run(1, 4, 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(STAGE, min_size=1, max_size=4), st.sampled_from([0.5, 1.0, 1.3]), st.booleans())
def test_limits_hold_over_all_stages(tokens: Path, drawn: list[Any], limit: float, stop: bool) -> None:
    """Epochs of a source in samples of all lengths add up, and pass the limit by less than a sample."""
    stages = stages_of(drawn)
    stream = stream_of(tokens, stages, Ledger(), limit, "stop" if stop else "redistribute")
    longest = [TokenSource(name, str(tokens / name), 2 * SEQ, seed=7).samples_per_epoch for name in NAMES]
    for _ in range(200):
        if not stream.draw(stream.batch_size(0)):
            break
        for name, samples_per_epoch in zip(NAMES, longest, strict=True):
            epochs = sum(entry.epochs for entry in stream.ledger.accounts(name))
            assert epochs < limit + 1 / samples_per_epoch
    else:
        raise AssertionError("the limits must end the run")
    saved = stream.ledger.to_dict()
    for again in (
        stream,
        stream_of(tokens, stages, stream.ledger, limit, "stop" if stop else "redistribute"),
    ):
        assert again.draw(again.batch_size(0)) == []
    assert stream.ledger.to_dict() == saved


@settings(max_examples=15, deadline=None)
@given(
    st.lists(STAGE, min_size=2, max_size=3),
    st.lists(st.integers(1, 8), min_size=1, max_size=3),
    st.sampled_from([0.0, 1.0]),
)
def test_the_audit_understands_stages(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: Path,
    drawn: list[Any],
    sessions: list[int],
    max_epochs: float,
) -> None:
    """Every account is recomputed and equal to the ledger of each checkpoint; seen ranges are of the account."""
    stages = tuple(
        StageConfig(
            shares=dict(zip(NAMES, stage.token_shares, strict=True)),
            seq_length=stage.seq_length,
            global_batch_size=stage.global_batch_size,
            until_tokens=stage.until_tokens,
        )
        for stage in stages_of(drawn)
    )
    run = make_run(tmp_path_factory.getbasetemp() / "staged", tokens, stages=stages, max_epochs=max_epochs)
    for num_batches in sessions:
        run.train(dict.fromkeys(NAMES, 1.0), num_batches)
    if not run.step:
        return
    found = audit(run.directory)
    assert len(found.compared_with) == len(list(run.directory.glob("checkpoints/*")))
    drawn_of = Counter(account for account, _ in run.drawn)
    assert {account.name: account.samples for account in found.accounts if account.samples} == drawn_of
    assert {account.name: account.tokens for account in found.accounts} == {
        name: entry.tokens for name, entry in run.ledger.entries.items()
    }
    assert all(account.largest_deviation_samples < 1 for account in found.accounts)
    for account in found.accounts:
        assert all(seen.source == account.name for seen in found.seen(account.name))


def test_a_step_is_found_and_not_moved_by_the_tail_of_an_epoch(tokens: Path) -> None:
    """A stage until the rate has fallen to a fifth ends at that very step, although batches do not hold the mean."""
    optim = OptimConfig(lr=1e-3, warmup_steps=3)
    step = step_reached(optim, 40, 0.2)
    assert step is not None
    assert learning_rate(optim, step, 40) <= 2e-4 < learning_rate(optim, step - 1, 40)
    assert step_reached(OptimConfig(lr=1e-3, schedule="constant"), 40, 0.2) is None
    stages = (
        Stage((1.0, 1.0, 0.0), 0, 4, until_tokens=100),
        Stage((1.0, 0.5, 0.2), 5, 8, until_step=step),
        Stage((0.0, 0.0, 1.0), 0, 4),
    )
    numbers = [number for number, _ in taken(stream_of(tokens, stages, Ledger()), 40)]
    assert numbers == sorted(numbers) and numbers.index(3) == step
    assert numbers.count(1) == math.ceil(100 / (4 * SEQ))


def test_ends_are_in_order() -> None:
    """Bounds, batches of each stage, and the refusal of a stage that would end before it begins."""
    stages = (Stage((1.0,), until_tokens=95), Stage((1.0,), until_step=15), Stage((1.0,)))
    assert token_bounds(stages, [10.0, 20.0, 1.0]) == [95, 100 + 4.5 * 20, math.inf]
    assert stage_steps(stages, [10.0, 20.0, 1.0]) == [10, 5, math.inf]
    assert [stage_at([95, 190, math.inf], tokens) for tokens in (0, 94, 95, 189, 190, 10**9)] == [
        0, 0, 1, 1, 2, 2
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.stages\.1 would end"):
        token_bounds((stages[0], Stage((1.0,), until_step=9), stages[2]), [10.0, 20.0, 1.0])
