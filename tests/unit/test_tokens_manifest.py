"""A manifest says exactly what is there, and anything else is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import DataError
from cptron.tokens.indexed_writer import IndexedWriter
from cptron.tokens.manifest import (
    FORMAT_VERSION,
    FileRecord,
    Manifest,
    SourceRecord,
    TokenizerRecord,
    check_tokenizer,
    hash_file,
    load_manifest,
    manifest_path,
    verify,
    write_manifest,
)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Token files with their manifest."""
    prefix = tmp_path / "corpus.v1"
    with IndexedWriter(prefix, "uint16") as writer:
        writer.add([1, 2, 3])
        writer.finish()
    write_manifest(prefix, manifest_of(prefix))
    return prefix


def manifest_of(prefix: Path) -> Manifest:
    """A manifest whose hashes are computed by hashlib alone."""
    contents = {kind: Path(f"{prefix}.{kind}").read_bytes() for kind in ("bin", "idx")}
    return Manifest(
        format_version=FORMAT_VERSION,
        documents=1,
        tokens=3,
        dtype="uint16",
        files={
            k: FileRecord(bytes=len(c), sha256=hashlib.sha256(c).hexdigest()) for k, c in contents.items()
        },
        tokenizer=TokenizerRecord(name="tok", fingerprint="ab" * 32, vocab_size=9, eos_id=None, bos_id=1),
        append_eod=False,
        prepend_bos=False,
        key="text",
        sources=(SourceRecord(path="a.jsonl", bytes=7, sha256="cd" * 32),),
        records_read=6,
        documents_empty_skipped=2,
        documents_rejected={"bad_json": 3},
        engine="reference",
        partition="2/8",
        options={"tokenizer": "tok"},
        cptron_version="0",
    )


def test_what_was_written_is_read(prefix: Path) -> None:
    """Every field, through JSON and back; nothing but the manifest is left behind."""
    assert load_manifest(prefix) == verify(prefix) == manifest_of(prefix)
    assert sorted(path.suffix for path in prefix.parent.iterdir()) == [".bin", ".idx", ".json"]


@settings(deadline=None, max_examples=30)
@given(content=st.binary(max_size=300_000))
def test_hash_is_that_of_hashlib(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Size and SHA-256 of any content."""
    path = tmp_path_factory.mktemp("hash") / "f"
    path.write_bytes(content)
    assert hash_file(path) == FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_every_flipped_bit_of_the_files_is_found_by_verify(kind: str, prefix: Path) -> None:
    """Those that still open as token files too."""
    path = Path(f"{prefix}.{kind}")
    whole = path.read_bytes()
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="has SHA-256"):
            verify(prefix)


@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_a_wrong_size_or_a_missing_file_is_found_without_reading_it(kind: str, prefix: Path) -> None:
    """`load_manifest` compares sizes only."""
    path = Path(f"{prefix}.{kind}")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"\.{kind} has \d+ bytes, its manifest requires \d+"):
        load_manifest(prefix)
    path.unlink()
    with pytest.raises(DataError, match=rf"\.{kind} has None bytes"):
        load_manifest(prefix)


def test_without_a_manifest_files_are_not_known_to_be_complete(prefix: Path) -> None:
    """Its presence is the proof."""
    manifest_path(prefix).unlink()
    with pytest.raises(DataError, match=r"corpus\.v1\.manifest\.json does not exist"):
        load_manifest(prefix)


def test_every_truncation_of_a_manifest_is_refused(prefix: Path) -> None:
    """Damaged JSON never gives half a record."""
    path = manifest_path(prefix)
    whole = path.read_bytes().rstrip()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"manifest\.json"):
            load_manifest(prefix)


FIELDS = [*Manifest.__slots__]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_or_misshapen_field_is_refused(field: str, prefix: Path) -> None:
    """Each field is needed, and each has its own JSON type."""
    path = manifest_path(prefix)
    content: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key != field}))
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_manifest(prefix)
    path.write_text(json.dumps(content | {field: [None]}))
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_manifest(prefix)


@pytest.mark.parametrize("content", ["[]", "3", '{"format_version": 1}', "\xff"])
def test_another_format_is_refused(content: str, prefix: Path) -> None:
    """By its version, with the remedy."""
    manifest_path(prefix).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match="run preprocess again"):
        load_manifest(prefix)


def test_an_unknown_field_is_refused(prefix: Path) -> None:
    """A field that this version does not know may change what the files mean."""
    content = json.loads(manifest_path(prefix).read_text())
    manifest_path(prefix).write_text(json.dumps(content | {"packed": True}))
    with pytest.raises(DataError, match="packed"):
        load_manifest(prefix)


def test_another_tokenizer_is_refused_with_both_fingerprints(prefix: Path) -> None:
    """One line that names the corpus, both identities and the remedy."""
    manifest = load_manifest(prefix)
    check_tokenizer(prefix, manifest, "ab" * 32)
    with pytest.raises(DataError) as caught:
        check_tokenizer(prefix, manifest, "cd" * 32)
    for part in (str(prefix), "abababababab", "cdcdcdcdcdcd", "preprocess the corpus again"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_writing_replaces_the_manifest_in_one_step(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop before the rename leaves the old one whole."""
    old = load_manifest(prefix)

    def stop(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(prefix, replace(old, key="other"))
    assert load_manifest(prefix) == old
