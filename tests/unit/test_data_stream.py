"""The stream of training samples: nothing lost, nothing repeated, whatever the ranks, restarts and shares."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron import _kernels
from cptron.data.blend import Blend
from cptron.data.ledger import Ledger
from cptron.data.loader import TrainLoader
from cptron.data.source import TokenSource
from cptron.data.valid import ValidSet
from cptron.errors import DataError
from cptron.tokens.indexed import IndexedWriter
from cptron.tokens.manifest import FileRecord, Manifest, TokenizerRecord, hash_file, write_manifest

SEQ = 8
MASK = 2**64 - 1


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


def python_shuffle(n: int, key: int) -> list[int]:
    """Twin of the kernel: Fisher-Yates on splitmix64 with Lemire's bounded draws."""
    state = key

    def draw() -> int:
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    order = list(range(n))
    for i in range(n - 1, 0, -1):
        bound = i + 1
        product = draw() * bound
        while product & MASK < (2**64 - bound) % bound:
            product = draw() * bound
        j = product >> 64
        order[i], order[j] = order[j], order[i]
    return order


@given(st.integers(0, 200), st.integers(0, MASK))
def test_shuffle_equals_its_twin(n: int, key: int) -> None:
    assert _kernels.shuffle(n, key).tolist() == python_shuffle(n, key)


def test_shuffle_is_uniform() -> None:
    """All 24 orders of 4 things, over 24,000 keys: chi-square (23 degrees of freedom) below its 99.99 % point."""
    counts = Counter(tuple(_kernels.shuffle(4, key).tolist()) for key in range(24_000))
    assert len(counts) == 24
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 56


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 9), st.randoms())
def test_sample_index_equals_brute_force(lengths: list[int], seq_length: int, random: object) -> None:
    """Sample i starts at token i * seq_length of the concatenation."""
    order = list(range(len(lengths)))
    random.shuffle(order)  # type: ignore[attr-defined]
    where = [
        (position, offset) for position, document in enumerate(order) for offset in range(lengths[document])
    ]
    num_samples = max(0, len(where) - 1) // seq_length
    index = _kernels.build_sample_index(np.array(lengths, np.int32), np.array(order, np.int64), seq_length)
    assert len(index) == num_samples + 1
    for sample in range(num_samples + (1 if where else 0)):
        assert tuple(index[sample]) == where[sample * seq_length]


@given(
    st.lists(st.integers(1, 2**32), min_size=1, max_size=20),
    st.integers(0, 10**12),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_blend_equals_its_twin_and_resumes(weights: list[int], drawn: int, first: int, second: int) -> None:
    """Greedy by deficit in exact integers, from any counts; two calls give what one gives."""
    total = sum(weights)
    start = [weight * drawn // total for weight in weights]
    counts = list(start)
    expected = []
    for _ in range(first + second):
        n = sum(counts) + 1
        source = max(range(len(weights)), key=lambda s: (weights[s] * n - counts[s] * total, -s))
        counts[source] += 1
        expected.append(source)
    state = np.array(start, np.int64)
    array = np.array(weights, np.uint64)
    found = [
        *_kernels.draw_blend(array, state, first).tolist(),
        *_kernels.draw_blend(array, state, second).tolist(),
    ]
    assert found == expected
    assert state.tolist() == counts


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12))
def test_no_source_strays_from_its_share(shares: list[float]) -> None:
    """At any prefix of 2,000 draws every source is within 3 samples of its share."""
    weights = np.array([round(share * 2**32) for share in shares], np.uint64)
    drawn = _kernels.draw_blend(weights, np.zeros(len(shares), np.int64), 2000)
    counts = (drawn[:, None] == np.arange(len(shares))).cumsum(0)
    ideal = np.arange(1, 2001)[:, None] * (weights / weights.sum())
    assert np.abs(counts - ideal).max() < 3


def test_an_epoch_holds_every_sample_once(prefixes: dict[str, str]) -> None:
    """Every token but the first and the tail is a label exactly once; the next epoch has another order."""
    source = TokenSource("a", prefixes["a"], SEQ, seed=1)
    n = source.samples_per_epoch
    epochs = [[source.sample(epoch * n + i) for i in range(n)] for epoch in range(3)]
    for epoch in epochs:
        labels = np.concatenate([sample[1:] for sample in epoch])
        assert len(labels) == len(set(labels.tolist())) == source.tokens_per_epoch
        assert source.tokens_dropped_per_epoch <= SEQ
    assert [s.tolist() for s in epochs[0]] != [s.tolist() for s in epochs[1]]
    again = TokenSource("a", prefixes["a"], SEQ, seed=1)
    assert (again.sample(2 * n + 3) == epochs[2][3]).all(), "a sample does not depend on what was read before"


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
