"""Merged token files are Megatron's, byte for byte, and their manifest says no more than is known."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import Document, write_by_megatron, write_known

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from cptron.cli import main
from cptron.errors import DataError
from cptron.tokens import merge as merge_module
from cptron.tokens import publish, token_files
from cptron.tokens.index_layout import bin_path, idx_path, loss_mask_path
from cptron.tokens.manifest import (
    SourceRecord,
    load_manifest,
    manifest_path,
    verify,
)
from cptron.tokens.merge import merge, prefixes_in

FILES = st.lists(
    st.lists(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=4), max_size=7),
    min_size=1,
    max_size=4,
)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces, copies and index chunks of a few entries, so that small files cross many borders."""
    monkeypatch.setattr(token_files, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(merge_module, "COPY_BYTES", 7)
    monkeypatch.setattr(publish, "CHUNK", 8)
    # `add_index` calls it each time, which takes a second where torch is loaded.
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@settings(deadline=None, max_examples=40)
@given(contents=FILES)
def test_bytes_are_those_of_megatrons_builder(contents: list[list[Document]], dtype: str) -> None:
    """Documents of several sequences, of none, and files without documents among them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prefixes = [folder / f"in{number}" for number in range(len(contents))]
        builder = IndexedDatasetBuilder(f"{folder}/theirs.bin", dtype=np.dtype(dtype).type)
        for prefix, documents in zip(prefixes, contents, strict=True):
            write_by_megatron(prefix, documents, dtype)
            builder.add_index(str(prefix))
        builder.finalize(f"{folder}/theirs.idx")
        num_tokens = sum(len(ids) for documents in contents for sequences in documents for ids in sequences)
        inputs = [str(prefix) for prefix in prefixes]
        if num_tokens == 0:
            with pytest.raises(DataError, match="would hold 0 tokens"):
                merge(inputs, f"{folder}/ours")
            assert not list(folder.glob("ours*"))
            return
        merged = merge(inputs, f"{folder}/ours")
        for kind in ("bin", "idx"):
            assert Path(f"{folder}/ours.{kind}").read_bytes() == Path(f"{folder}/theirs.{kind}").read_bytes()
        assert (merged.documents, merged.tokens, merged.manifest) == (
            sum(map(len, contents)),
            num_tokens,
            None,
        )
        assert len(IndexedDataset(f"{folder}/ours").document_indices) == merged.documents + 1
        assert not manifest_path(f"{folder}/ours").exists()
        assert not list(folder.glob("*.partial"))


@pytest.mark.usefixtures("small_pieces")
@settings(deadline=None, max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_partitions_give_what_a_single_run_gives(lengths: list[int], cuts: list[int]) -> None:
    """All four files, byte for byte, the manifest included."""
    documents = [[number] * length for number, length in enumerate(lengths)]
    bounds = sorted({0, len(documents), *(cut for cut in cuts if cut < len(documents))})
    count = len(bounds) - 1
    mask = [token % 2 for ids in documents for token in ids]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = (SourceRecord(path="c.jsonl", bytes=7, sha256="cd" * 32),)
        counts = {"records_read": len(documents) + 3 * count, "documents_empty_skipped": 2 * count}
        rejected = {"bad_json": count, "nul": count}
        single = write_known(
            folder / "single", documents, mask, sources=sources, documents_rejected=rejected, **counts
        )
        parts = [
            write_known(
                folder / f"m_part-{i:05d}-of-{count:05d}_text_document",
                documents[bounds[i] : bounds[i + 1]],
                [token % 2 for ids in documents[bounds[i] : bounds[i + 1]] for token in ids],
                sources=sources,
                partition=f"{i}/{count}",
                documents_rejected={"nul": 1, "bad_json": 1},
            )
            for i in range(count)
        ]
        merge([str(part) for part in parts], f"{folder}/merged")
        for path in (bin_path, idx_path, loss_mask_path, manifest_path):
            assert path(folder / "merged").read_bytes() == path(single).read_bytes()


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        (["0/3", "1/3"], "2 of 3 partitions are given, without 2/3"),
        (["0/3", "2/3"], "without 1/3"),
        (["1/2", "0/2"], "'0/2'"),
        (["0/2", "0/2"], "'1/2'"),
        (["0/2", ""], "p1 is no partition of a run"),
        (["", "0/2"], "p0 is no partition of a run"),
        (["0/2", "1/2", ""], "p2 is no partition of a run"),
        (["0/2", "1/2", "0/2"], "must be '0/3'"),
    ],
)
def test_partitions_must_be_all_of_one_run_in_order(
    partitions: list[str], message: str, tmp_path: Path
) -> None:
    """A missing, repeated, foreign or misplaced one is named, and nothing is written."""
    prefixes = [
        str(write_known(tmp_path / f"p{number}", [[1, 2]], partition=partition))
        for number, partition in enumerate(partitions)
    ]
    with pytest.raises(DataError, match=message):
        merge(prefixes, f"{tmp_path}/out")
    assert not list(tmp_path.glob("out*"))


def test_partitions_of_other_options_or_keys_are_refused(tmp_path: Path) -> None:
    """They cannot be of one run."""
    a = write_known(tmp_path / "a", [[1]], partition="0/2")
    b = write_known(tmp_path / "b", [[1]], partition="1/2", options={"tokenizer": "tok", "max": "3"})
    c = write_known(tmp_path / "c", [[1]], partition="0/2", key="title")
    for other, message in ((b, "was made with options"), (c, "was made with key title")):
        with pytest.raises(DataError, match=message):
            merge([str(a), str(other)], f"{tmp_path}/out")


def test_manifest_of_several_corpora(tmp_path: Path) -> None:
    """Counts are summed, sources joined, shared options kept, the parts named with their hashes."""
    a = write_known(tmp_path / "a", [[1, 2], [3]], options={"tokenizer": "tok", "x": "1"})
    b = write_known(
        tmp_path / "b",
        [[4]],
        options={"tokenizer": "tok", "x": "2"},
        engine="e 2",
        documents_rejected={"nul": 1},
    )
    manifest = merge([str(a), str(b)], f"{tmp_path}/new/out").manifest
    assert manifest is not None
    assert manifest == verify(tmp_path / "new" / "out")
    assert (manifest.documents, manifest.tokens, manifest.records_read) == (3, 4, 9)
    assert manifest.documents_empty_skipped == 4
    assert manifest.documents_rejected == {"bad_json": 1, "nul": 1}
    assert [source.path for source in manifest.sources] == ["a.jsonl", "b.jsonl"]
    assert manifest.engine == "tokenizers; e 2"
    hashes = [hashlib.sha256(bin_path(prefix).read_bytes()).hexdigest() for prefix in (a, b)]
    assert manifest.options == {"tokenizer": "tok", "merged_from": f"a {hashes[0]}, b {hashes[1]}"}


def test_missing_masks_count_as_learned(tmp_path: Path) -> None:
    """A corpus of plain text beside one of chats."""
    a = write_known(tmp_path / "a", [[1, 2], [3]], [0, 1, 0])
    b = write_known(tmp_path / "b", [[4, 5]])
    merged = merge([str(a), str(b)], f"{tmp_path}/out")
    assert loss_mask_path(tmp_path / "out").read_bytes() == bytes([0, 1, 0, 1, 1])
    assert merged.manifest is not None and merged.manifest.files["loss_mask"].bytes == 5
    assert "no loss mask" in merged.notes[0]


def test_other_tokenizers_flags_and_dtypes_are_refused(tmp_path: Path) -> None:
    """Also where another input has no manifest."""
    a = write_known(tmp_path / "a", [[1]])
    other = replace(load_manifest(a).tokenizer, fingerprint="ef" * 32)
    b = write_known(tmp_path / "b", [[1]], tokenizer=other)
    c = write_known(tmp_path / "c", [[1]], append_eod=True)
    write_by_megatron(tmp_path / "m", [[[1]]], "uint16")
    write_by_megatron(tmp_path / "wide", [[[1]]], "int32")
    for names, message in (
        ([a, b], "tokenizer 'tok' efefefefefef"),
        ([a, tmp_path / "m", b], "tokenizer 'tok' efefefefefef"),
        ([a, c], "append_eod True"),
        ([a, tmp_path / "wide"], "holds int32"),
    ):
        with pytest.raises(DataError, match=message):
            merge([str(name) for name in names], f"{tmp_path}/out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("kind", ["bin", "idx", "loss_mask.bin"])
def test_damaged_input_gets_no_new_manifest(kind: str, tmp_path: Path) -> None:
    """A changed byte that no size tells: the last token, the last mask byte, or a document border."""
    a = write_known(tmp_path / "a", [[1, 2], [3]], [1, 1, 1])
    path = Path(f"{a}.{kind}")
    content = bytearray(path.read_bytes())
    content[-16 if kind == "idx" else -1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"SHA-256|must rise"):
        merge([str(a)], f"{tmp_path}/out")
    assert not list(tmp_path.glob("out*"))


def test_megatrons_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--input DIR` takes all pairs sorted by prefix; the result has no manifest, and that is said."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, token in (("b", 2), ("a", 1), ("a.b", 3)):
        write_by_megatron(folder / name, [[[token]]], "uint16")
    write_known(folder / "c", [[4]], [1])
    (folder / "notes.txt").write_text("beside")
    out = tmp_path / "out"
    assert main(["merge", "--input", str(folder), "--output-prefix", str(out)]) == 0
    assert np.fromfile(bin_path(out), np.uint16).tolist() == [1, 3, 2, 4]
    shown = capsys.readouterr()
    assert "3 of 4 inputs have no manifest" in shown.err and "loss masks are left out" in shown.err
    assert "4 documents  4 tokens" in shown.out
    words = ["merge", "--input", str(folder), "--output-prefix", str(out), "--overwrite"]
    assert main([*words, "--require-manifest"]) == 2
    assert "has no manifest, 3 of 4" in capsys.readouterr().err
    bin_path(folder / "b").unlink()
    with pytest.raises(DataError, match=r"b\.bin does not exist"):
        prefixes_in(str(folder))


def test_inputs_by_a_shells_glob(tmp_path: Path) -> None:
    """The order given counts, `.bin` and `.idx` are taken off."""
    a, b = write_known(tmp_path / "a", [[1]]), write_known(tmp_path / "b", [[2]])
    out = tmp_path / "out"
    assert main(["merge", "--inputs", f"{b}.idx", str(a), "--output-prefix", str(out)]) == 0
    assert np.fromfile(bin_path(out), np.uint16).tolist() == [2, 1]


def test_existing_output_is_kept_or_replaced_whole(tmp_path: Path) -> None:
    """Without `--overwrite` nothing changes; with it no file of the old output stays; an input never goes."""
    a, b = write_known(tmp_path / "a", [[1, 2]]), write_known(tmp_path / "b", [[3]], [0])
    write_by_megatron(tmp_path / "m", [[[7]]], "uint16")
    out = str(tmp_path / "out")
    merge([str(b)], out)
    with pytest.raises(DataError, match="exists and must not be lost"):
        merge([str(a)], out)
    merge([str(tmp_path / "m")], out, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.bin", "out.idx"]
    with pytest.raises(DataError, match="is an input"):
        merge([str(a), str(b)], str(a), overwrite=True)


def test_a_stop_before_the_index_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New ids under an old index or an old manifest would be read as documents."""
    a, out = write_known(tmp_path / "a", [[1, 2]]), tmp_path / "out"
    merge([str(a)], str(out))
    rename = Path.replace

    def stop_at_index(self: Path, target: Path) -> Path:
        if target.suffix == ".idx":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_index)
    with pytest.raises(KeyboardInterrupt):
        merge([str(a)], str(out), overwrite=True)
    assert not idx_path(out).exists() and not manifest_path(out).exists()
    assert not list(tmp_path.glob("*.partial"))


def test_more_inputs_than_open_files(tmp_path: Path) -> None:
    """Each mapped index holds a descriptor for as long as it is used."""
    prefix = write_known(tmp_path / "a", [[1, 2]])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        merged = merge([str(prefix)] * 60, f"{tmp_path}/out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (merged.documents, merged.tokens) == (60, 120)
