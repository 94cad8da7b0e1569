"""Token files are Megatron's, byte for byte, and a damaged one cannot be opened."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import write_by_megatron

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from cptron.errors import DataError
from cptron.tokens import index_layout, indexed_writer, publish
from cptron.tokens.index_layout import HEADER, idx_path
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.indexed_writer import IndexedWriter, best_dtype, publish_partials
from cptron.tokens.manifest import hash_file

DTYPES = ["uint16", "int32"]
Documents = list[list[int]]
DOCUMENTS = st.lists(st.lists(st.integers(0, 65499), min_size=1, max_size=20), min_size=1, max_size=12)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three entries at once, so that a dozen documents cross several chunk borders."""
    monkeypatch.setattr(index_layout, "CHUNK", 3)
    monkeypatch.setattr(indexed_writer, "CHUNK", 3)
    monkeypatch.setattr(publish, "CHUNK", 3)


def write(prefix: str | Path, documents: Documents, dtype: str) -> None:
    """Token files by cptron."""
    with IndexedWriter(prefix, dtype) as writer:
        for ids in documents:
            writer.add(np.array(ids))
        writer.finish()


def contents(tokens: IndexedTokens) -> Documents:
    """Every document, read whole."""
    return [tokens.read(number).tolist() for number in range(tokens.num_documents)]


def contents_by_megatron(prefix: str | Path) -> Documents:
    """Every sequence, as megatron-core reads it."""
    dataset = IndexedDataset(str(prefix))
    assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
    return [dataset[number].tolist() for number in range(len(dataset))]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(documents=DOCUMENTS)
def test_files_are_megatrons_bytes_and_each_side_reads_the_other(documents: Documents, dtype: str) -> None:
    """Equal bytes, and equal documents whichever side reads."""
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory, "a.ours"), Path(directory, "theirs")
        write(ours, documents, dtype)
        write_by_megatron(theirs, [[ids] for ids in documents], dtype)
        for kind in ("bin", "idx"):
            assert Path(f"{ours}.{kind}").read_bytes() == Path(f"{theirs}.{kind}").read_bytes()
        assert contents_by_megatron(ours) == documents
        tokens = IndexedTokens(theirs)
        assert contents(tokens) == documents
        assert tokens.lengths_tokens.dtype == np.int32
        assert tokens.lengths_tokens.tolist() == [len(ids) for ids in documents]
        assert (tokens.num_tokens, tokens.dtype) == (sum(map(len, documents)), np.dtype(dtype))
        assert sorted(path.name for path in Path(directory).iterdir()) == [
            "a.ours.bin", "a.ours.idx", "theirs.bin", "theirs.idx"
        ]  # fmt: skip


@pytest.mark.usefixtures("small_chunks")
@settings(deadline=None, max_examples=50)
@given(documents=st.lists(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=4), max_size=8))
def test_documents_of_several_sequences_are_joined_and_empty_ones_left_out(
    documents: list[Documents],
) -> None:
    """Megatron's sentence splitting and its empty documents; a file without tokens is refused."""
    expected = [[token for sequence in sequences for token in sequence] for sequences in documents]
    expected = [ids for ids in expected if ids]
    with tempfile.TemporaryDirectory() as directory:
        prefix = f"{directory}/t"
        write_by_megatron(prefix, documents, "uint16")
        if expected:
            tokens = IndexedTokens(prefix)
            assert contents(tokens) == expected
            assert tokens.lengths_tokens.tolist() == [len(ids) for ids in expected]
        else:
            with pytest.raises(DataError, match="holds 0 tokens"):
                IndexedTokens(prefix)


@given(data=st.data())
def test_a_part_of_a_document_is_a_slice_of_it(data: st.DataObject) -> None:
    """`read` agrees with slicing inside a document and refuses everything outside it."""
    with tempfile.TemporaryDirectory() as directory:
        documents = data.draw(DOCUMENTS)
        write(f"{directory}/t", documents, "int32")
        tokens = IndexedTokens(f"{directory}/t")
        number = data.draw(st.integers(0, len(documents) - 1))
        size = len(documents[number])
        offset, length = data.draw(st.integers(-2, size + 2)), data.draw(st.integers(-2, size + 2))
        if offset >= 0 and length >= 0 and offset + length <= size:
            assert tokens.read(number, offset, length).tolist() == documents[number][offset : offset + length]
            assert tokens.read(number, offset).tolist() == documents[number][offset:]
        else:
            with pytest.raises(IndexError, match=f"document {number}"):
                tokens.read(number, offset, length)
    for outside in (-1, len(documents)):
        with pytest.raises(IndexError, match=f"document {outside}"):
            tokens.read(outside)


def test_what_is_read_cannot_be_changed(tmp_path: Path) -> None:
    """Ids are a view of the file and lengths are shared: both are read-only."""
    write(tmp_path / "t", [[1, 2], [3]], "uint16")
    tokens = IndexedTokens(tmp_path / "t")
    for array in (tokens.read(0), tokens.lengths_tokens):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9


def test_a_reader_travels_to_another_process_as_its_prefix(tmp_path: Path) -> None:
    """Workers open the file themselves; the tokens are not copied through a pipe."""
    write(tmp_path / "t", [list(range(5000))], "uint16")
    sent = pickle.dumps(IndexedTokens(tmp_path / "t"))
    assert len(sent) < 500
    assert pickle.loads(sent).read(0, 7, 2).tolist() == [7, 8]


@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_any_wrong_size_is_refused_with_the_file_and_both_sizes(kind: str, tmp_path: Path) -> None:
    """Every truncation, and a byte too many."""
    write(tmp_path / "t", [[1, 2, 3], [4], [5, 6]], "uint16")
    path = tmp_path / f"t.{kind}"
    whole = path.read_bytes()
    for damaged in [whole[:size] for size in range(len(whole))] + [whole + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            IndexedTokens(tmp_path / "t")
        message = str(caught.value)
        assert str(path) in message
        assert f"has {len(damaged)} bytes" in message
        assert "run preprocess again" in message and "\n" not in message


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_of_header_lengths_and_offsets_is_refused(dtype: str, tmp_path: Path) -> None:
    """They are redundant, so each bit is checked; document indices have another legal reading."""
    documents = [[1, 2, 3], [4], [5, 6]]
    write(tmp_path / "t", documents, dtype)
    path = tmp_path / "t.idx"
    whole = path.read_bytes()
    for bit in range(8 * (34 + 12 * len(documents))):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"t\.(idx|bin)"):
            IndexedTokens(tmp_path / "t")


@pytest.mark.parametrize("bounds", [[0, 1, 1, 2], [1, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 4]])
def test_document_indices_that_do_not_cover_the_sequences_are_refused(
    bounds: list[int], tmp_path: Path
) -> None:
    """They must rise from 0 to the number of sequences."""
    write(tmp_path / "t", [[1, 2, 3], [4], [5, 6]], "uint16")
    path = tmp_path / "t.idx"
    path.write_bytes(path.read_bytes()[:-32] + np.array(bounds, "<i8").tobytes())
    with pytest.raises(DataError, match="must rise from 0 to 3"):
        IndexedTokens(tmp_path / "t")


@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_a_missing_half_is_named(kind: str, tmp_path: Path) -> None:
    """Both files are needed."""
    write(tmp_path / "t", [[1]], "uint16")
    (tmp_path / f"t.{kind}").unlink()
    with pytest.raises(DataError, match=f"t.{kind} does not exist"):
        IndexedTokens(tmp_path / "t")


def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path: Path) -> None:
    """An error, or leaving the block early, removes everything that was written."""
    with pytest.raises(ZeroDivisionError), IndexedWriter(tmp_path / "t", "uint16") as writer:
        writer.add([1])
        raise ZeroDivisionError
    with IndexedWriter(tmp_path / "t", "uint16") as writer:
        writer.add([1])
    with pytest.raises(DataError, match="0 documents"), IndexedWriter(tmp_path / "t", "uint16") as writer:
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_stop_between_the_two_renames_leaves_no_pair_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New ids of the same size under an old index would be read as documents."""
    write(tmp_path / "t", [[1, 2], [3]], "uint16")
    replace = Path.replace

    def stop_at_index(self: Path, target: Path) -> Path:
        if target.suffix == ".idx":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_index)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "t", [[7], [8, 9]], "uint16")
    with pytest.raises(DataError, match=r"t\.idx does not exist"):
        IndexedTokens(tmp_path / "t")


@pytest.mark.parametrize("ids", [[65536], [-1], [], [[1]], [1.5]])
def test_ids_that_the_file_cannot_hold_are_refused(ids: list[object], tmp_path: Path) -> None:
    """An id must never wrap around, and a document is one non-empty row of integers."""
    with IndexedWriter(tmp_path / "t", "uint16") as writer, pytest.raises(DataError):
        writer.add(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("pointer", [-6, 6, 16, 1000])
def test_a_pointer_out_of_the_file_is_an_error(pointer: int, tmp_path: Path) -> None:
    """Files whose counts a manifest has are not scanned when they are opened; they never give fewer tokens."""
    write(tmp_path / "t", [[1, 2], [3, 4]], "uint16")
    content = bytearray(idx_path(tmp_path / "t").read_bytes())
    content[HEADER.size + 16 : HEADER.size + 24] = pointer.to_bytes(8, "little", signed=True)
    idx_path(tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match=r"document 1 outside its \.bin"):
        IndexedTokens.recorded(tmp_path / "t", 2, 4).read(1)


def test_the_dtype_is_the_one_megatron_chooses() -> None:
    """Its rule decides whether files are byte-identical."""
    for vocab_size in (1, 32000, 65499, 65500, 65536, 151936):
        assert best_dtype(vocab_size) == np.dtype(DType.optimal_dtype(vocab_size))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=20)
@given(documents=DOCUMENTS, stops=st.sets(st.integers(0, 12)), garbage=st.binary(max_size=9))
def test_a_writer_goes_on_after_a_stop(
    dtype: str,
    documents: Documents,
    stops: set[int],
    garbage: bytes,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whole blocks, any stops between them with bytes after the state: the files and hashes of a writer that went
    through."""
    root = tmp_path_factory.mktemp("resume")
    write(root / "whole", documents, dtype)
    writer = IndexedWriter(root / "t", dtype, with_mask=True)
    for number, ids in enumerate(documents):
        if number in stops:
            state = writer.state
            writer.sync()
            writer.close()
            for path in root.glob("t.*.partial"):
                path.write_bytes(path.read_bytes() + garbage)
            writer = IndexedWriter(root / "t", dtype, with_mask=True, resume=state)
        mask = np.full(len(ids), number % 2, np.uint8)
        writer.add_block(np.array(ids, dtype), np.array([len(ids)], np.int32), mask)
    files = writer.seal()
    writer.close()
    publish_partials(str(root / "t"), ["bin", "idx", "loss_mask"])
    publish_partials(str(root / "t"), ["bin", "idx", "loss_mask"])
    names = {"bin": "t.bin", "idx": "t.idx", "loss_mask": "t.loss_mask.bin"}
    assert files == {kind: hash_file(root / name) for kind, name in names.items()}
    assert [(root / f"t.{kind}").read_bytes() for kind in ("bin", "idx")] == [
        (root / f"whole.{kind}").read_bytes() for kind in ("bin", "idx")
    ]
    expected = [number % 2 for number, ids in enumerate(documents) for _ in ids]
    assert list((root / "t.loss_mask.bin").read_bytes()) == expected
    assert not list(root.glob("*.partial"))


def test_a_mask_of_older_files_does_not_outlive_them(tmp_path: Path) -> None:
    """It would be taken for that of the new tokens."""
    (tmp_path / "t.loss_mask.bin").write_bytes(b"\1")
    write(tmp_path / "t", [[1]], "uint16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.bin", "t.idx"]
