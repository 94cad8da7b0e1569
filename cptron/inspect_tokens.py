"""What token files hold: header, statistics of lengths, origin, and single documents.

Place in the flow: `cptron inspect` calls it for a token file prefix. Invariant: memory does not grow with the
number of documents, and files that Megatron made, without a manifest, are described as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from cptron.errors import DataError
from cptron.tokens.index_layout import CODE_OF_DTYPE, MAGIC, VERSION, Int64Array, bin_path, idx_path
from cptron.tokens.lengths import LengthCounts, log2_bins, quantile, share_longer
from cptron.tokens.manifest import Manifest, check_tokenizer, manifest_path, verify
from cptron.tokens.token_files import TokenFiles
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9, "q99": 0.99, "max": 1.0}
SEQ_LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 131072)
"""Common lengths of training sequences."""
NUM_SAMPLES, SAMPLE_TOKENS, SAMPLE_CHARACTERS = 3, 24, 80
"""Beginnings of documents that `--tokenizer` shows."""
BAR_CHARACTERS = 40

Facts = dict[str, Any]


def describe_tokens(
    prefix: str, *, tokenizer: str = "", check_hashes: bool = False, document: int | None = None
) -> Facts:
    """Counts, lengths and origin; with `document`, that one instead of the documents' beginnings.

    Raises DataError when the files are damaged, hold no tokens (which only a manifest can vouch for), or were made
    with another tokenizer.
    """
    prefix = _prefix_of(prefix)
    files = TokenFiles(prefix)
    if files.num_tokens == 0 and files.manifest is None:
        raise DataError(f"{bin_path(prefix)} holds 0 tokens, at least 1 is needed; run preprocess again")
    if document is not None and files.num_documents == 0:
        raise DataError(f"document {document} of {prefix} does not exist, it holds 0; leave --document out")
    facts: Facts = {"kind": "token files", **_statistics(files), "header": _header(files)}
    if files.manifest is None and not check_hashes:
        facts["manifest"] = (
            "missing: not made, or not finished, by cptron preprocess; its tokenizer is not proven"
        )
    else:
        manifest = verify(prefix) if check_hashes else files.manifest
        facts |= (
            _origin(manifest, "verified" if check_hashes else "not read; see --verify") if manifest else {}
        )
    decoder = _proven_tokenizer(files, tokenizer) if tokenizer else None
    if decoder:
        facts["made_with_this_tokenizer"] = files.manifest is not None or "unknown: no manifest"
    if document is not None:
        return facts | {"document": _document(files, document, decoder)}
    return facts | ({"begin_with": _beginnings(files, decoder)} if decoder else {})


def _header(files: TokenFiles) -> Facts:
    return {
        "magic": MAGIC.rstrip(b"\0").decode(),
        "version": VERSION,
        "dtype_code": CODE_OF_DTYPE[files.dtype.name],
        "sequences": files.num_sequences,
        "document_index_entries": files.num_documents + 1,
    }


def _statistics(files: TokenFiles) -> Facts:
    """Documents are those with tokens; Megatron's empty ones are counted apart. Of no tokens (an empty part of a
    corpus) there are no statistics of lengths."""
    counter = LengthCounts()
    num_empty = 0
    for piece in files.pieces():
        with_tokens = piece.lengths[piece.lengths > 0]
        num_empty += len(piece.lengths) - len(with_tokens)
        counter.add(with_tokens)
    lengths, counts = counter.distinct()
    return {
        "documents": int(counts.sum()),
        "empty_documents": num_empty,
        "tokens": files.num_tokens,
        **(_length_statistics(files.num_tokens, lengths, counts) if files.num_tokens else {}),
        "dtype": files.dtype.name,
        "bytes": bin_path(files.prefix).stat().st_size + idx_path(files.prefix).stat().st_size,
    }


def _length_statistics(num_tokens: int, lengths: Int64Array, counts: Int64Array) -> Facts:
    return {
        "document_length_tokens": {
            **{name: quantile(lengths, counts, share) for name, share in QUANTILES.items()},
            "mean": num_tokens / int(counts.sum()),
        },
        "share_of_documents_longer_than": {
            str(limit): share_longer(lengths, counts, limit) for limit in SEQ_LENGTHS
        },
        "length_histogram": log2_bins(lengths, counts),
    }


def _origin(manifest: Manifest, hashes: str) -> Facts:
    return {
        "tokenizer": asdict(manifest.tokenizer),
        "engine": manifest.engine,
        "append_eod": manifest.append_eod,
        "prepend_bos": manifest.prepend_bos,
        "json_key": manifest.key,
        "partition": manifest.partition or "whole corpus",
        "loss_mask": "loss_mask" in manifest.files,
        "inputs": [source.path for source in manifest.sources],
        "records_read": manifest.records_read,
        "documents_empty_skipped": manifest.documents_empty_skipped,
        "documents_rejected": dict(manifest.documents_rejected),
        "options": dict(manifest.options),
        "cptron_version": manifest.cptron_version,
        "hashes": hashes,
    }


def _proven_tokenizer(files: TokenFiles, path: str) -> Tokenizer:
    """The tokenizer at `path`, once it is proven (where that can be) that it made the files."""
    tokenizer = load_tokenizer(path)
    if files.manifest is not None:
        check_tokenizer(files.prefix, files.manifest, tokenizer.fingerprint)
    return tokenizer


def _beginnings(files: TokenFiles, tokenizer: Tokenizer) -> list[str]:
    texts: list[str] = []
    for number in range(min(NUM_SAMPLES, files.num_documents)):
        start, length = files.document_span(number)
        ids = files.tokens(start, start + min(SAMPLE_TOKENS, length))
        texts.append(tokenizer.decode(ids.tolist())[:SAMPLE_CHARACTERS])
    return texts


def _document(files: TokenFiles, number: int, tokenizer: Tokenizer | None) -> Facts:
    """One document, by its place in Megatron's index: its text, or its ids where there is no tokenizer."""
    start, length = files.document_span(number)
    facts: Facts = {"number": number, "tokens": length}
    mask = files.mask(start, start + length)
    if mask is not None:
        facts["learned_tokens"] = int(np.count_nonzero(mask))
    ids = files.tokens(start, start + length).tolist()
    return facts | ({"text": tokenizer.decode(ids)} if tokenizer else {"ids": ids})


def for_people(facts: Mapping[str, Any]) -> Facts:
    """The same facts with bars in the histogram, shares in percent and ids on one line; a text is left out."""
    shown = dict(facts)
    shown["share_of_documents_longer_than"] = {
        f"{limit} tokens": f"{share:.2%}" for limit, share in facts["share_of_documents_longer_than"].items()
    }
    bins = facts["length_histogram"]
    most = max(row["documents"] for row in bins)
    shown["length_histogram"] = [
        {
            "tokens": f"{row['from']}-{row['to']}",
            "documents": row["documents"],
            "of documents": f"{row['documents'] / facts['documents']:.2%}",
            "of tokens": f"{row['tokens'] / facts['tokens']:.2%}",
            "bar": "#" * -(-row["documents"] * BAR_CHARACTERS // most),
        }
        for row in bins
    ]
    if "document" in facts:
        shown["document"] = {name: value for name, value in facts["document"].items() if name != "text"}
        if "ids" in shown["document"]:
            shown["document"]["ids"] = " ".join(str(token) for token in shown["document"]["ids"])
    return shown


def printable(text: str) -> str:
    """A document's text as a terminal may show it: control characters other than line ends and tabs are escaped."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1]
        for character in text
    )


def is_prefix(path: str) -> bool:
    """Whether `path` names token files, or what is left of them, by their prefix or as `PREFIX.bin`, `PREFIX.idx`."""
    return _has_files(_prefix_of(path))


def _prefix_of(path: str) -> str:
    if not _has_files(path) and path.endswith((".bin", ".idx")) and _has_files(path[:-4]):
        return path[:-4]
    return path


def _has_files(prefix: str) -> bool:
    return idx_path(prefix).is_file() or bin_path(prefix).is_file() or manifest_path(prefix).is_file()
