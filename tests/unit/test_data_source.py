"""One source: what its identity holds, which order its content has, and which files it takes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import kernels_reference as reference
import numpy as np
import pytest
from data_world import SEQ, numbered, sample_labels, within_documents, write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import manifest_of, write_by_megatron

from cptron.data.content import open_content
from cptron.data.order import Packing
from cptron.data.source import TokenSource
from cptron.errors import DataError
from cptron.tokens.index_layout import Index
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import hash_file, write_manifest

PACKINGS: list[Packing] = ["joined", "best_fit"]


@pytest.mark.parametrize("packing", PACKINGS)
def test_order_is_the_documented_one(tmp_path: Path, packing: Packing) -> None:
    """Three epochs by plain Python from SHA-256 keys: another order would break every run that is resumed."""
    lengths, seed = [3, 1, 30, 8, 8, 17, 2, 40], 11
    stream = write_tokens(tmp_path / "s", lengths)
    files = [hash_file(Path(f"{tmp_path / 's'}.{kind}")).sha256 for kind in ("bin", "idx")]
    identity = hashlib.sha256("|".join(files).encode()).hexdigest()
    source = TokenSource("s", str(tmp_path / "s"), SEQ, seed, packing=packing)
    assert source.identity == identity
    documents = [part.tolist() for part in np.split(stream, np.cumsum(lengths)[:-1])]
    expected = []
    for epoch in range(3):
        sample_key = reference.key(seed, identity, epoch, "samples")
        document_key = reference.key(seed, identity, epoch if packing == "joined" else 0, "documents")
        if packing == "joined":
            expected += [row[1:] for row in reference.joined(documents, SEQ, document_key, sample_key)]
        else:
            rows = reference.best_fit(documents, SEQ, document_key)
            order = reference.permutation(len(rows), sample_key)
            expected += [[documents[d][o + 1 + i] for d, o, n in rows[at] for i in range(n)] for at in order]
    assert [list(sample_labels(source, cursor)) for cursor in range(len(expected))] == expected


@pytest.mark.parametrize("packing", PACKINGS)
def test_given_order_is_that_of_the_files(tmp_path: Path, packing: Packing) -> None:
    """In every epoch: the stream cut into samples, or the rows of each window as they are put together."""
    lengths = [3, 1, 30, 8, 8, 17, 2, 40] * 9
    stream = write_tokens(tmp_path / "s", lengths)
    source = TokenSource("s", str(tmp_path / "s"), SEQ, seed=11, packing=packing, arrangement="given")
    documents = [part.tolist() for part in np.split(stream, np.cumsum(lengths)[:-1])]
    if packing == "joined":
        expected = [stream[at + 1 : at + 1 + SEQ].tolist() for at in range(0, len(stream) - 1, SEQ)]
    else:
        rows = reference.best_fit(documents, SEQ, None)
        expected = [[documents[d][o + 1 + i] for d, o, n in row for i in range(n)] for row in rows]
    assert [list(sample_labels(source, cursor)) for cursor in range(2 * len(expected))] == 2 * expected
    assert source.count(np.arange(len(expected)))[1] == sum(map(len, expected))


@pytest.mark.parametrize("packing", PACKINGS)
def test_epochs_differ_and_each_is_whole(tmp_path: Path, packing: Packing) -> None:
    """All labels of an epoch differ and are all there are; epochs and seeds have orders of their own."""
    write_tokens(tmp_path / "s", np.random.default_rng(2).integers(1, 40, 60).tolist())
    source = TokenSource("s", str(tmp_path / "s"), SEQ, seed=1, packing=packing)
    n = source.samples_per_epoch
    epochs = [[sample_labels(source, epoch * n + i) for i in range(n)] for epoch in range(3)]
    for epoch in epochs:
        seen = [token for row in epoch for token in row]
        assert len(seen) == len(set(seen)) == source.predictions_per_epoch
    assert epochs[0] != epochs[1] != epochs[2]
    other = TokenSource("s", str(tmp_path / "s"), SEQ, seed=2, packing=packing)
    assert epochs[0] != [sample_labels(other, i) for i in range(n)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_batch_across_epochs_in_any_order(tmp_path: Path, packing: Packing) -> None:
    """Rows of several epochs in one batch, forwards and backwards, are those read one by one."""
    write_tokens(tmp_path / "s", [50, 3, 20])
    source = TokenSource("s", str(tmp_path / "s"), SEQ, 1, packing=packing)
    cursors = [*range(25), *range(24, -1, -1), 90, 3, 1000]
    batch = source.empty_batch(len(cursors))
    source.read(np.array(cursors), batch)
    for row, cursor in enumerate(cursors):
        fresh = TokenSource("s", str(tmp_path / "s"), SEQ, 1, packing=packing)
        inputs, found, mask = fresh.sample(cursor)
        assert (batch.tokens_BS[row] == inputs).all()
        assert (batch.labels_BS[row] == found).all()
        assert (batch.loss_mask_BS[row] == mask).all()
        alone = fresh.empty_batch(1)
        fresh.read(np.array([cursor]), alone)
        assert (batch.documents_BS[row] == alone.documents_BS[0]).all()


@pytest.mark.parametrize("num_tokens", [2, 3, SEQ, SEQ + 1, SEQ + 2, 3 * SEQ + 1])
def test_small_sources(tmp_path: Path, num_tokens: int) -> None:
    """From two tokens on: a source smaller than a sample is one sample, in every epoch."""
    write_tokens(tmp_path / "s", [num_tokens])
    source = TokenSource("s", str(tmp_path / "s"), SEQ, seed=1)
    assert source.samples_per_epoch == -(-(num_tokens - 1) // SEQ)
    assert source.predictions_per_sample <= SEQ
    seen = [token for i in range(source.samples_per_epoch) for token in sample_labels(source, i)]
    assert sorted(seen) == list(range(1, num_tokens))


@pytest.mark.parametrize(
    ("lengths", "packing"), [([1], "joined"), ([1], "best_fit"), ([1, 1, 1], "best_fit")]
)
def test_nothing_to_predict_is_refused(tmp_path: Path, lengths: list[int], packing: Packing) -> None:
    """One token; or documents of one token each, which predict nothing of one another."""
    write_tokens(tmp_path / "s", lengths)
    with pytest.raises(DataError, match="nothing to predict"):
        TokenSource("s", str(tmp_path / "s"), SEQ, 1, packing=packing)


def test_identity_is_of_the_content(tmp_path: Path) -> None:
    """A copy elsewhere gives the same stream; shifted tokens have another identity."""
    write_tokens(tmp_path / "a", [20, 31, 7])
    for kind in ("bin", "idx", "manifest.json"):
        (tmp_path / f"copy.{kind}").write_bytes(Path(f"{tmp_path / 'a'}.{kind}").read_bytes())
    original = TokenSource("a", str(tmp_path / "a"), SEQ, 1)
    copy = TokenSource("other", str(tmp_path / "copy"), SEQ, 1)
    assert original.identity == copy.identity
    assert all(sample_labels(original, i) == sample_labels(copy, i) for i in range(20))
    write_tokens(tmp_path / "shifted", [20, 31, 7], first=1)
    assert TokenSource("a", str(tmp_path / "shifted"), SEQ, 1).identity != original.identity


def test_files_without_a_manifest(tmp_path: Path) -> None:
    """Megatron's files: the identity comes from sizes and samples of the content, not from the path."""
    write_tokens(tmp_path / "a", [20, 31, 7], manifest=False)
    content = open_content(str(tmp_path / "a"))
    assert content.manifest is None
    for kind in ("bin", "idx"):
        (tmp_path / f"copy.{kind}").write_bytes(Path(f"{tmp_path / 'a'}.{kind}").read_bytes())
    assert open_content(str(tmp_path / "copy")).identity == content.identity
    data = bytearray((tmp_path / "copy.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "copy.bin").write_bytes(data)
    assert open_content(str(tmp_path / "copy")).identity != content.identity
    write_tokens(tmp_path / "longer", [20, 31, 8], manifest=False)
    assert open_content(str(tmp_path / "longer")).identity != content.identity
    assert sample_labels(TokenSource("a", str(tmp_path / "a"), SEQ, 1), 0)


def test_files_with_a_manifest_are_not_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start must not read the whole index of a trillion tokens; a manifest that contradicts the files is found."""
    write_tokens(tmp_path / "a", [20, 31, 7])

    def scan(self: Index) -> int:
        raise AssertionError("scanned")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "check_sequences", scan)
        source = TokenSource("a", str(tmp_path / "a"), SEQ, 1)
        assert sample_labels(source, 0)
        with pytest.raises(AssertionError, match="scanned"):
            IndexedTokens(tmp_path / "a")
    files = {kind: hash_file(Path(f"{tmp_path / 'a'}.{kind}")) for kind in ("bin", "idx")}
    write_manifest(tmp_path / "a", replace(manifest_of(files, 3, 59), dtype="int32"))
    with pytest.raises(DataError, match="requires 236"):
        TokenSource("a", str(tmp_path / "a"), SEQ, 1)


def test_documents_of_several_sequences_and_of_none(tmp_path: Path) -> None:
    """megatron-core's writer makes them: joined, and left out."""
    documents = [[list(range(10)), list(range(10, 30))], [], [list(range(30, 37))]]
    write_by_megatron(tmp_path / "m", documents, "int32")
    source = TokenSource("m", str(tmp_path / "m"), SEQ, 1)
    seen = [token for i in range(source.samples_per_epoch) for token in sample_labels(source, i)]
    assert len(set(seen)) == 36
    assert source.count(np.arange(source.samples_per_epoch)) == (2, 36)


@pytest.mark.parametrize("packing", PACKINGS)
def test_loss_mask_of_the_files_counts(tmp_path: Path, packing: Packing) -> None:
    """Labels whose mask is 0 do not count, whichever sample they come in."""
    lengths = [20, 1, 31, 7, 50]
    learned = np.random.default_rng(0).integers(0, 2, sum(lengths))
    write_tokens(tmp_path / "s", lengths, learned=learned)
    source = TokenSource("s", str(tmp_path / "s"), SEQ, 1, packing=packing)
    seen = [token for i in range(source.samples_per_epoch) for token in sample_labels(source, i)]
    starts = {0, 20, 21, 52, 59}
    unpredicted = starts if packing == "best_fit" else set()
    expected = {token for token in range(sum(lengths)) if learned[token] and token not in unpredicted}
    assert expected - set(seen) <= starts and set(seen) <= expected
    assert source.count(np.arange(source.samples_per_epoch))[1] == source.predictions_per_epoch


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 5, SEQ, SEQ + 1, 30]), min_size=2, max_size=20),
    st.integers(1, 20),
    st.sampled_from(PACKINGS),
)
def test_documents_and_their_ends(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_length: int, packing: Packing
) -> None:
    """Three epochs, their last samples too, walked token by token; `eod_mask_loss` changes the mask alone."""
    if max(lengths) < 2:
        return
    prefix = tmp_path_factory.mktemp("tokens") / "s"
    learned = np.random.default_rng(0).integers(0, 2, sum(lengths))
    write_tokens(prefix, lengths, learned=None if 0 in lengths else learned)
    plain = TokenSource("s", str(prefix), seq_length, 1, packing=packing)
    masked = TokenSource("s", str(prefix), seq_length, 1, packing=packing, eod_mask_loss=True)
    cursors = np.arange(3 * plain.samples_per_epoch)
    batch, other = (source.empty_batch(len(cursors)) for source in (plain, masked))
    batch.documents_BS[:] = 99  # page-locked arrays are used again
    plain.read(cursors, batch)
    masked.read(cursors, other)
    for row, cursor in enumerate(cursors):
        _, count = plain.count(cursors[row : row + 1])
        spans = plain.spans(int(cursor))
        inputs, found = batch.tokens_BS[row].tolist(), batch.labels_BS[row].tolist()
        if packing == "joined":
            ids = numbered(lengths, inputs[:count], seq_length)
        else:
            ids = [at for at, span in enumerate(spans) for _ in range(span.length - 1)]
            ids += [len(spans)] * (seq_length - count)
        assert batch.documents_BS[row].tolist() == ids
        mask = batch.loss_mask_BS[row].tolist()
        assert not any(mask[count:])
        assert other.loss_mask_BS[row].tolist() == within_documents(lengths, found, mask)
    assert (batch.tokens_BS == other.tokens_BS).all() and (batch.labels_BS == other.labels_BS).all()
    assert (batch.documents_BS == other.documents_BS).all()
    assert plain.count(cursors) == masked.count(cursors)


def test_ids_beyond_the_vocabulary_and_damage_are_refused(tmp_path: Path) -> None:
    """With the name of the source; a pointer beyond the file is an error and not a crash."""
    write_tokens(tmp_path / "s", [40], first=90)
    source = TokenSource("s", str(tmp_path / "s"), SEQ, 1, vocab_size=100)
    with pytest.raises(DataError, match=r"source s .* token id \d+ is outside the vocabulary of 100"):
        for cursor in range(source.samples_per_epoch):
            source.sample(cursor)
    assert TokenSource("s", str(tmp_path / "s"), SEQ, 1, vocab_size=130).sample(0)
    index = bytearray((tmp_path / "s.idx").read_bytes())
    index[34 + 4 : 34 + 12] = (2**40).to_bytes(8, "little")
    (tmp_path / "s.idx").write_bytes(index)
    with pytest.raises(DataError, match=r"source s .* outside the \.bin"):
        TokenSource("s", str(tmp_path / "s"), SEQ, 1).sample(0)


def test_missing_kernels_are_one_clear_error() -> None:
    """No slow substitute: the import names the remedy."""
    program = (
        "import sys; sys.modules['cptron._kernels'] = None\n"
        "from cptron.errors import DataError\n"
        "try:\n    import cptron.data.kernels\n"
        "except DataError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert "pip install ." in line and "_kernels" in line
