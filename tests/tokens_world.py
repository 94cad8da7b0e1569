"""Tokenizers, and token files of known tokens, for the tests of the token room and of the data room."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cptron.tokens.index_layout import bin_path, idx_path, loss_mask_path
from cptron.tokens.indexed_writer import IndexedWriter
from cptron.tokens.manifest import (
    FORMAT_VERSION,
    FileRecord,
    Manifest,
    SourceRecord,
    TokenizerRecord,
    hash_file,
    write_manifest,
)

Document = list[list[int]]
"""Token ids of each sequence."""


def save_byte_tokenizer(directory: Path, special: Sequence[str] = (), **config: str) -> Path:
    """A `tokenizer.json` of single bytes and `special` tokens; returns its directory."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def write_by_megatron(prefix: str | Path, documents: list[Document], dtype: str = "uint16") -> None:
    """Token files by megatron-core, of documents of any number of sequences."""
    import cptron.runtime.megatron_ready  # noqa: F401

    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type)
    for sequences in documents:
        ids = [token for sequence in sequences for token in sequence]
        builder.add_document(np.array(ids, dtype=np.int64), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")


def write_known(
    prefix: Path,
    documents: Sequence[Sequence[int]],
    mask: Sequence[int] | None = None,
    *,
    dtype: str = "uint16",
    **fields: Any,
) -> Path:
    """Token files with a manifest, as `cptron preprocess` leaves them; `fields` replace some of it."""
    with IndexedWriter(prefix, dtype) as writer:
        for ids in documents:
            writer.add(ids)
        writer.finish()
    files = {"bin": hash_file(bin_path(prefix)), "idx": hash_file(idx_path(prefix))}
    if mask is not None:
        loss_mask_path(prefix).write_bytes(bytes(mask))
        files["loss_mask"] = hash_file(loss_mask_path(prefix))
    known = manifest_of(files, len(documents), sum(map(len, documents)))
    source = SourceRecord(path=f"{prefix.name}.jsonl", bytes=7, sha256="cd" * 32)
    write_manifest(prefix, replace(known, **{"dtype": dtype, "sources": (source,), **fields}))
    return prefix


def manifest_of(files: Mapping[str, FileRecord], documents: int, tokens: int) -> Manifest:
    """What `cptron preprocess` would have written."""
    return Manifest(
        format_version=FORMAT_VERSION,
        documents=documents,
        tokens=tokens,
        dtype="uint16",
        files=dict(files),
        tokenizer=TokenizerRecord(name="tok", fingerprint="ab" * 32, vocab_size=99, eos_id=None, bos_id=1),
        append_eod=False,
        prepend_bos=False,
        key="text",
        sources=(),
        records_read=documents + 3,
        documents_empty_skipped=2,
        documents_rejected={"bad_json": 1},
        engine="tokenizers",
        partition="",
        options={"tokenizer": "tok"},
        cptron_version="0",
    )
