"""The stream of training samples: nothing lost, nothing repeated, whatever the ranks, restarts and shares."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.data.blend import Blend
from cptron.data.ledger import Ledger
from cptron.data.loader import TrainLoader
from cptron.data.order import EpochOrder, samples_in
from cptron.data.source import TokenSource
from cptron.data.valid import ValidSet
from cptron.errors import CheckpointError, ConfigError, DataError
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.indexed_writer import IndexedWriter
from cptron.tokens.manifest import FileRecord, Manifest, TokenizerRecord, hash_file, write_manifest

SEQ = 8
SHARES = st.dictionaries(st.sampled_from("ab"), st.sampled_from([0.05, 0.3, 0.7, 1.0]), min_size=1)


def write_tokens(prefix: Path, lengths: list[int], first: int = 0) -> np.ndarray:
    """Token files whose tokens are all different; returns the stream in file order."""
    stream = np.arange(first, first + sum(lengths), dtype=np.int32)
    writer = IndexedWriter(str(prefix), np.dtype(np.int32))
    start = 0
    for length in lengths:
        writer.add(stream[start : start + length])
        start += length
    writer.finish()
    files: dict[str, FileRecord] = {kind: hash_file(Path(f"{prefix}.{kind}")) for kind in ("bin", "idx")}
    manifest = Manifest(
        format_version=1,
        documents=len(lengths),
        tokens=len(stream),
        dtype="int32",
        files=files,
        tokenizer=TokenizerRecord(name="t", fingerprint="f", vocab_size=10**6, eos_id=0, bos_id=None),
        append_eod=False,
        prepend_bos=False,
        key="text",
        sources=(),
        documents_empty_skipped=0,
        options={},
        cptron_version="test",
    )
    write_manifest(str(prefix), manifest)
    return stream


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two corpora with unlike documents; their tokens do not overlap."""
    directory = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(3)
    write_tokens(directory / "a", rng.integers(1, 40, 30).tolist())
    write_tokens(directory / "b", [1, 100, 3, 1, 57], first=10**5)
    return {name: str(directory / name) for name in ("a", "b")}


def make_blend(prefixes: dict[str, str], shares: dict[str, float], seed: int = 7) -> Blend:
    sources = [TokenSource(name, prefixes[name], SEQ, seed) for name in shares]
    return Blend(sources, list(shares.values()))


def samples(batches: list[list[object]]) -> list[tuple[int, ...]]:
    """Every row of every micro-batch, as a tuple of its tokens and labels."""
    rows = []
    for step in batches:
        for batch in step:
            for tokens, labels in zip(batch.tokens_BS, batch.labels_BS, strict=True):  # type: ignore[attr-defined]
                assert (tokens[1:] == labels[:-1]).all()
                rows.append((*tokens.tolist(), int(labels[-1])))
    return rows


@settings(deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 2**63))
def test_an_epoch_is_the_documents_in_some_order(lengths: list[int], seq_length: int, seed: int) -> None:
    """Samples overlap by one token; linked up they are whole documents, only the last one cut short.

    So every token but the first and the tail is a label exactly once.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    order = EpochOrder(np.array(lengths, np.int32), seq_length, seed, "identity", 0)
    assert order.num_samples == samples_in(sum(lengths), seq_length) == (sum(lengths) - 1) // seq_length
    drawn = []
    for number in range(order.num_samples):
        spans = [(starts[s.document] + s.offset, s.length) for s in order.locate(number)]
        drawn.append([int(start) + i for start, length in spans for i in range(length)])
    assert all(len(tokens) == seq_length + 1 for tokens in drawn)
    follower = {tokens[0]: tokens for tokens in drawn}
    firsts, lasts = {tokens[0] for tokens in drawn}, {tokens[-1] for tokens in drawn}
    if not drawn:
        return
    (token,) = firsts - lasts
    stream = [token]
    while stream[-1] in follower:
        stream += follower[stream[-1]][1:]
    assert len(stream) == len(set(stream)) == order.num_samples * seq_length + 1
    for token, following in itertools.pairwise(stream):
        assert following == token + 1 or (token + 1 in ends and following in starts)


def test_an_epoch_holds_every_sample_once(prefixes: dict[str, str]) -> None:
    """From the files: all labels of an epoch differ; the next epoch has another order."""
    source = TokenSource("a", prefixes["a"], SEQ, seed=1)
    n = source.samples_per_epoch
    epochs = [[source.sample(epoch * n + i) for i in range(n)] for epoch in range(3)]
    for epoch in epochs:
        labels = np.concatenate([sample[1:] for sample in epoch])
        assert len(labels) == len(set(labels.tolist())) == source.tokens_per_epoch
        assert source.tokens_dropped_per_epoch <= SEQ
    assert [s.tolist() for s in epochs[0]] != [s.tolist() for s in epochs[1]]
    other_seed = TokenSource("a", prefixes["a"], SEQ, seed=2)
    assert [s.tolist() for s in epochs[0]] != [other_seed.sample(i).tolist() for i in range(n)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=12))
def test_a_sample_does_not_depend_on_what_was_read_before(
    prefixes: dict[str, str], cursors: list[int]
) -> None:
    """Cursors in any order, over ten epochs of 20 samples; only two epochs' orders are kept."""
    one = TokenSource("b", prefixes["b"], SEQ, seed=1)
    for cursor in cursors:
        assert (one.sample(cursor) == TokenSource("b", prefixes["b"], SEQ, seed=1).sample(cursor)).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 3), (2, 2), (4, 3), (1, 12), (6, 2)]))
def test_global_batches_do_not_depend_on_ranks(prefixes: dict[str, str], cut: tuple[int, int]) -> None:
    """The same samples in each global batch of 12, and the same ledger on every rank."""
    dp_size, micro = cut

    def run(dp: int, mbs: int) -> tuple[list[list[tuple[int, ...]]], list[dict[str, object]]]:
        batches: list[list[tuple[int, ...]]] = [[] for _ in range(9)]
        ledgers = []
        for rank in range(dp):
            blend = make_blend(prefixes, {"a": 0.7, "b": 0.3})
            ledger = Ledger.start(blend)
            loader = TrainLoader(blend, ledger, 12, mbs, rank, dp)
            for step in range(9):
                batches[step] += samples([loader.next_step()])
            ledgers.append(ledger.to_dict())
        return [sorted(batch) for batch in batches], ledgers

    expected, (ledger,) = run(1, 1)
    found, ledgers = run(dp_size, micro)
    assert found == expected
    assert all(other == ledger for other in ledgers)


def test_restart_and_new_shares_neither_repeat_nor_skip(prefixes: dict[str, str]) -> None:
    """Restarts after any step continue the stream; after a change of shares each source goes on where it was."""
    whole_blend = make_blend(prefixes, {"a": 0.5, "b": 0.5})
    whole = TrainLoader(whole_blend, Ledger.start(whole_blend), 4, 1, 0, 1)
    expected = [samples([whole.next_step()]) for _ in range(12)]
    blend = make_blend(prefixes, {"a": 0.5, "b": 0.5})
    ledger = Ledger.start(blend)
    found = []
    for _ in range(12):
        found.append(samples([TrainLoader(blend, ledger, 4, 1, 0, 1).next_step()]))
        ledger = Ledger.resume(json.loads(json.dumps(ledger.to_dict())), blend)
    assert found == expected

    changed = make_blend(prefixes, {"a": 0.9, "b": 0.1})
    ledger = Ledger.resume(json.loads(json.dumps(ledger.to_dict())), changed)
    before = {name: entry.cursor for name, entry in ledger.entries.items()}
    loader = TrainLoader(changed, ledger, 10, 1, 0, 1)
    rows = samples([loader.next_step()])
    for name in ("a", "b"):
        source = TokenSource(name, prefixes[name], SEQ, seed=7)
        drawn = range(before[name], ledger.entries[name].cursor)
        for cursor in drawn:
            assert tuple(source.sample(cursor).tolist()) in rows
        assert ledger.tokens(name) == ledger.entries[name].cursor * SEQ
    assert sum(ledger.entries[n].cursor - before[n] for n in before) == 10
    assert ledger.entries["a"].cursor - before["a"] == 9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SHARES, st.sampled_from([1, 2, 4]), st.integers(0, 4)), min_size=1, max_size=6))
def test_any_history_of_shares_ranks_and_restarts(
    prefixes: dict[str, str], history: list[tuple[dict[str, float], int, int]]
) -> None:
    """Sources come, go and come back, with a restart at every change: what was drawn of a source is always its
    first `cursor` samples, each once, and its account says how many tokens that was."""
    saved: dict[str, Any] = {"entries": {}}
    drawn: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in prefixes}
    for shares, dp_size, steps in history:
        ledgers = []
        for rank in range(dp_size):
            blend = make_blend(prefixes, shares)
            ledger = Ledger.resume(json.loads(json.dumps(saved)), blend)
            loader = TrainLoader(blend, ledger, 8, 8 // dp_size // (steps % 2 + 1), rank, dp_size)
            for batch in itertools.chain.from_iterable(loader.next_step() for _ in range(steps)):
                for row, source in zip(samples([[batch]]), batch.source_B, strict=True):
                    drawn[blend.sources[source].name][row] += 1
            ledgers.append(ledger.to_dict())
        assert all(ledger == ledgers[0] for ledger in ledgers)
        saved = ledgers[0]
        assert {name for name, entry in saved["entries"].items() if entry["share"]} == set(shares)
    for name, entry in saved["entries"].items():
        source = TokenSource(name, prefixes[name], SEQ, seed=7)
        expected = Counter(tuple(source.sample(cursor).tolist()) for cursor in range(entry["cursor"]))
        assert drawn[name] == expected
        assert entry["tokens"] == entry["cursor"] * SEQ
        assert entry["epochs"] == entry["cursor"] / source.samples_per_epoch
    assert sum(rows.total() for rows in drawn.values()) == 8 * sum(steps for _, _, steps in history)


def test_shares_hold_from_the_change_on(prefixes: dict[str, str]) -> None:
    """What was drawn before a change is not made up for; the same shares in other words are no change."""
    ledger = Ledger.start(make_blend(prefixes, {"a": 0.5, "b": 0.5}))
    for shares, expected in (({"a": 0.5, "b": 0.5}, 50), ({"a": 9, "b": 1}, 90), ({"b": 0.1, "a": 0.9}, 90)):
        blend = make_blend(prefixes, shares)
        ledger = Ledger.resume(ledger.to_dict(), blend)
        before = ledger.entries["a"].cursor
        TrainLoader(blend, ledger, 100, 1, 0, 1).next_step()
        assert ledger.entries["a"].cursor - before == expected
    assert ledger.entries["a"].since_mix == 180


@pytest.mark.parametrize(
    "saved", [{}, {"entries": []}, {"entries": {"a": {"cursor": 1}}}, {"entries": {"a": 3}}]
)
def test_damaged_ledger_is_refused(saved: dict[str, Any], prefixes: dict[str, str]) -> None:
    """A position that cannot be read must not become zero."""
    with pytest.raises(CheckpointError, match="ledger is damaged"):
        Ledger.resume(saved, make_blend(prefixes, {"a": 1.0}))


@pytest.mark.parametrize("shares", [{"a": 0.0}, {"a": 1.0, "b": -0.5}])
def test_shares_must_be_positive(shares: dict[str, float], prefixes: dict[str, str]) -> None:
    """A source that is never drawn is left out, not given zero."""
    with pytest.raises(ConfigError, match="must all be positive"):
        make_blend(prefixes, shares)


def test_changed_content_is_refused(prefixes: dict[str, str], tmp_path: Path) -> None:
    """The cursor counts in one content only."""
    ledger = Ledger.start(make_blend(prefixes, {"a": 1.0}))
    write_tokens(tmp_path / "a", [50, 50], first=3)
    with pytest.raises(DataError, match="source a has changed"):
        Ledger.resume(ledger.to_dict(), make_blend({"a": str(tmp_path / "a")}, {"a": 1.0}))


def test_identity_is_of_the_content(prefixes: dict[str, str], tmp_path: Path) -> None:
    """A copy elsewhere gives the same stream; a source too small is refused."""
    for kind in ("bin", "idx", "manifest.json"):
        (tmp_path / f"copy.{kind}").write_bytes(Path(f"{prefixes['a']}.{kind}").read_bytes())
    original = TokenSource("a", prefixes["a"], SEQ, 1)
    copy = TokenSource("other", str(tmp_path / "copy"), SEQ, 1)
    assert all((original.sample(i) == copy.sample(i)).all() for i in range(20))
    lengths = IndexedTokens(prefixes["a"]).lengths_tokens.tolist()
    write_tokens(tmp_path / "shifted", lengths, first=1)
    shifted = TokenSource("a", str(tmp_path / "shifted"), SEQ, 1)
    assert any((original.sample(i) + 1 != shifted.sample(i)).any() for i in range(20)), (
        "other content, same order"
    )
    write_tokens(tmp_path / "small", [SEQ])
    with pytest.raises(DataError, match="fewer than one sample"):
        TokenSource("small", str(tmp_path / "small"), SEQ, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 300), st.integers(1, 70))
def test_validation_predicts_every_token_once(
    prefixes: dict[str, str], dp_size: int, micro: int, max_tokens: int, seq_length: int
) -> None:
    """Over all ranks, in order, the counted labels are the stream from its second token on."""
    sets = [
        ValidSet("b", prefixes["b"], seq_length, max_tokens, micro, rank, dp_size) for rank in range(dp_size)
    ]
    ranks = [list(valid) for valid in sets]
    assert len({len(batches) for batches in ranks}) == 1
    labels, tokens = [], []
    for round_of_batches in zip(*ranks, strict=True):
        for batch in round_of_batches:
            labels += batch.labels_BS[batch.loss_mask_BS == 1].tolist()
            tokens += batch.tokens_BS[batch.loss_mask_BS == 1].tolist()
    stream = np.arange(10**5, 10**5 + 162).tolist()
    count = min(max_tokens, 161) if max_tokens else 161
    assert labels == stream[1 : 1 + count]
    assert tokens == stream[:count]
    assert sets[0].num_predicted_tokens == count


def test_an_empty_validation_set_is_refused(tmp_path: Path) -> None:
    """One token leaves nothing to predict."""
    write_tokens(tmp_path / "one", [1])
    with pytest.raises(DataError, match=r"validation set v .* is empty"):
        ValidSet("v", str(tmp_path / "one"), SEQ, 0, 1, 0, 1)
