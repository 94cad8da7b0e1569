"""Text to token files: reads JSONL, encodes it on several threads, writes `.bin`/`.idx` and a manifest.

Place in the flow: clean text -> here -> `data`. Also the program behind `tools/preprocess_data.py`.
Invariant: the output depends on the inputs, the tokenizer and the options only, never on `workers`; and
nothing is published under its final name unless every line of every input was encoded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from cptron import __version__
from cptron.errors import EXIT_CODE, CptronError, DataError
from cptron.tokens.encode import encode_file
from cptron.tokens.indexed import IndexedWriter, TokenArray, best_dtype, bin_path, idx_path
from cptron.tokens.jsonl import expand_inputs
from cptron.tokens.manifest import (
    FORMAT_VERSION,
    Manifest,
    SourceRecord,
    TokenizerRecord,
    hash_file,
    manifest_path,
    write_manifest,
)
from cptron.tokens.preprocess_options import PreprocessOptions, parse_options
from cptron.tokens.progress import Progress
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer

__all__ = ["PreprocessOptions", "main", "output_prefixes", "preprocess"]


def output_prefixes(options: PreprocessOptions) -> tuple[str, ...]:
    """Prefix of the token files of each key, in Megatron's naming."""
    return tuple(f"{options.output_prefix}_{key}_document" for key in options.json_keys)


def preprocess(options: PreprocessOptions, progress: bool = True) -> list[Manifest]:
    """Encode the corpus; returns one manifest for each of `options.json_keys`, in that order.

    Raises DataError (and publishes nothing) on a bad line, an empty corpus, an unusable tokenizer, existing
    output without `overwrite`, or a file system that refuses.
    """
    prefixes = output_prefixes(options)
    if len(set(prefixes)) != len(prefixes):
        raise DataError(
            f"json keys {options.json_keys} must differ, each names an output; remove the repeated one"
        )
    _refuse_existing(prefixes, options.overwrite)
    inputs = expand_inputs(options.inputs)
    tokenizer = load_tokenizer(options.tokenizer, options.tokenizer_kind)
    _require_special_ids(tokenizer, options)
    try:
        Path(options.output_prefix).parent.mkdir(parents=True, exist_ok=True)
        return _run(options, inputs, tokenizer, prefixes, progress)
    except OSError as error:
        where = error.filename or options.output_prefix
        raise DataError(f"{where} cannot be used ({error.strerror}); fix that and run again") from error


def _run(
    options: PreprocessOptions,
    inputs: Sequence[Path],
    tokenizer: Tokenizer,
    prefixes: Sequence[str],
    progress: bool,
) -> list[Manifest]:
    empty = [0] * len(prefixes)
    with ExitStack() as stack:
        dtype = best_dtype(tokenizer.vocab_size)
        writers = [stack.enter_context(IndexedWriter(prefix, dtype)) for prefix in prefixes]
        bar = stack.enter_context(Progress(inputs, options.log_interval, enabled=progress))
        for path in inputs:
            for batch in encode_file(path, tokenizer, options):
                for number, documents in enumerate(batch.documents):
                    empty[number] += _write(writers[number], documents)
                bar.update(
                    batch.stored_bytes_read,
                    batch.num_bytes,
                    len(batch.documents[0]),
                    sum(ids.size for documents in batch.documents for ids in documents),
                )
            bar.file_done(path)
        _require_documents(writers, prefixes, inputs, empty)
        sources = tuple(_source(path) for path in inputs)
        for prefix, writer in zip(prefixes, writers, strict=True):
            manifest_path(prefix).unlink(missing_ok=True)
            writer.finish()
    manifests = [
        _manifest(options, tokenizer, sources, number, writers[number], empty[number])
        for number in range(len(prefixes))
    ]
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        write_manifest(prefix, manifest)
    return manifests


def _write(writer: IndexedWriter, documents: Iterable[TokenArray]) -> int:
    """Append the documents that have tokens; return how many had none."""
    num_empty = 0
    for ids in documents:
        if ids.size:
            writer.add(ids)
        else:
            num_empty += 1
    return num_empty


def _manifest(
    options: PreprocessOptions,
    tokenizer: Tokenizer,
    sources: tuple[SourceRecord, ...],
    number: int,
    writer: IndexedWriter,
    num_empty: int,
) -> Manifest:
    prefix = output_prefixes(options)[number]
    return Manifest(
        format_version=FORMAT_VERSION,
        documents=writer.num_documents,
        tokens=writer.num_tokens,
        dtype=best_dtype(tokenizer.vocab_size).name,
        files={"bin": hash_file(bin_path(prefix)), "idx": hash_file(idx_path(prefix))},
        tokenizer=TokenizerRecord(
            name=tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id,
        ),
        append_eod=options.append_eod,
        prepend_bos=options.prepend_bos,
        key=options.json_keys[number],
        sources=sources,
        documents_empty_skipped=num_empty,
        options={"tokenizer": options.tokenizer, "tokenizer_kind": options.tokenizer_kind},
        cptron_version=__version__,
    )


def _source(path: Path) -> SourceRecord:
    record = hash_file(path)
    return SourceRecord(path=str(path), bytes=record.bytes, sha256=record.sha256)


def _refuse_existing(prefixes: Iterable[str], overwrite: bool) -> None:
    for prefix in prefixes:
        for path in (bin_path(prefix), idx_path(prefix), manifest_path(prefix)):
            if path.exists() and not overwrite:
                raise DataError(
                    f"{path} exists and must not be lost; use --overwrite or another --output-prefix"
                )


def _require_special_ids(tokenizer: Tokenizer, options: PreprocessOptions) -> None:
    for wanted, token_id, flag, role in (
        (options.append_eod, tokenizer.eos_id, "--append-eod", "EOS"),
        (options.prepend_bos, tokenizer.bos_id, "--prepend-bos", "BOS"),
    ):
        if wanted and token_id is None:
            raise DataError(
                f"{flag} needs an {role} token, tokenizer {options.tokenizer} names none; "
                f"state it in its tokenizer_config.json or leave {flag} out"
            )


def _require_documents(
    writers: Sequence[IndexedWriter], prefixes: Sequence[str], inputs: Sequence[Path], empty: Sequence[int]
) -> None:
    for prefix, writer, num_empty in zip(prefixes, writers, empty, strict=True):
        if writer.num_documents == 0:
            raise DataError(
                f"{prefix} would hold 0 documents ({len(inputs)} input files, {num_empty} empty texts), "
                "at least 1 is needed; check the input and --json-keys"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors a user can act on are one line on stderr."""
    started_s = time.perf_counter()
    try:
        options, notes = parse_options(argv)
        if notes:
            print(f"note: {'; '.join(notes)}", file=sys.stderr)
        manifests = preprocess(options)
    except CptronError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    print(_table(manifests, output_prefixes(options), time.perf_counter() - started_s))
    return 0


def _table(manifests: Sequence[Manifest], prefixes: Sequence[str], elapsed_s: float) -> str:
    rows: list[tuple[str, ...]] = [("documents", "empty", "tokens", "bin bytes", "tokens/s", "prefix")]
    for manifest, prefix in zip(manifests, prefixes, strict=True):
        counts = (
            manifest.documents,
            manifest.documents_empty_skipped,
            manifest.tokens,
            manifest.files["bin"].bytes,
            round(manifest.tokens / elapsed_s),
        )
        rows.append((*(f"{count:,}" for count in counts), prefix))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )
