"""Text to token files: reads a corpus, encodes it on several threads, writes `.bin`/`.idx` and a manifest.

Place in the flow: clean text -> here -> `data`. Also the program behind `tools/preprocess_data.py`.
Invariant: the output depends on the inputs, the tokenizer and the options only, never on `workers` nor on how often
the run was cut off; and nothing is published under its final name unless every input was read to its end.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cptron import __version__
from cptron.errors import DataError
from cptron.interrupts import terminated_like_interrupted
from cptron.report.console import table
from cptron.tokens.checkpointer import Checkpointer
from cptron.tokens.curated import require_sources
from cptron.tokens.encode import Encoded, encode_blocks
from cptron.tokens.journal import Checkpoint, Entry, Journal, locked
from cptron.tokens.manifest import (
    FORMAT_VERSION,
    PARTITION_OF,
    FileRecord,
    Manifest,
    SourceRecord,
    TokenizerRecord,
    parse_manifest,
)
from cptron.tokens.outputs import Outputs, discard_outputs, publish_outputs, refuse_existing_outputs
from cptron.tokens.preprocess_options import PreprocessOptions, parse_options
from cptron.tokens.preprocess_plan import Plan, make_plan, output_names, require_space
from cptron.tokens.progress import Progress
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import Position
from cptron.tokens.source_hash import SourceHasher

__all__ = ["PreprocessOptions", "main", "output_prefixes", "preprocess"]


def output_prefixes(options: PreprocessOptions) -> tuple[str, ...]:
    """Prefix of the token files of each key, in Megatron's naming."""
    return tuple(output_names(options).prefixes)


def preprocess(options: PreprocessOptions, progress: bool = True) -> list[Manifest]:
    """Encode the corpus; returns one manifest for each of `options.json_keys`, in that order.

    Goes on where the same call was cut off before. Raises DataError (and publishes nothing) on a damaged record under
    `on_error` stop, an empty corpus, an unusable tokenizer, existing output without `overwrite`, the leftovers of
    another unfinished run, or a file system that refuses.
    """
    names = output_names(options)
    journal = Journal(names.run)
    if not options.overwrite and not journal.path.exists():
        refuse_existing_outputs(names)
    plan = make_plan(options)
    _note(plan.notes)
    try:
        Path(names.run).parent.mkdir(parents=True, exist_ok=True)
        with locked(names.run) as journal.hold:
            return _run(plan, journal, progress)
    except OSError as error:
        where = error.filename or options.output_prefix
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{where} cannot be written ({error.strerror}); free some space and run the same command again, "
                "it goes on from here"
            ) from error
        raise DataError(f"{where} cannot be used ({error.strerror}); fix that and run again") from error


def _run(plan: Plan, journal: Journal, progress: bool) -> list[Manifest]:
    entry = _unfinished(plan, journal)
    if entry and entry.publishing:
        manifests = [parse_manifest(journal.path, content) for content in entry.publishing]
    else:
        if not plan.options.overwrite:
            refuse_existing_outputs(plan.names)
        manifests = _encode_all(plan, journal, entry.checkpoint if entry else None, progress)
    journal.require_ours()
    publish_outputs(plan.names, manifests, [curated.manifest for curated in plan.corpora])
    journal.remove()
    return manifests


def _unfinished(plan: Plan, journal: Journal) -> Entry | None:
    """What a run that was cut off left to go on from."""
    if plan.options.restart:
        journal.remove()
        discard_outputs(plan.names)
    entry = journal.load()
    if entry:
        journal.require_identity(entry, plan.identity)
        at = entry.checkpoint
        _note([f"{journal.path} is of an unfinished run; going on after {at.records_read:,} records"])
    return entry


def _encode_all(plan: Plan, journal: Journal, resume: Checkpoint | None, progress: bool) -> list[Manifest]:
    """Encode what is missing; leaves partial files that are whole and durable, and a journal that says so."""
    require_space(plan, sum(sum(state.sizes.values()) for state in resume.writers) if resume else 0)
    outputs = Outputs(
        plan.names,
        plan.encoder.dtype,
        plan.options.on_error,
        with_mask=plan.options.loss_mask != "none",
        resume=resume,
    )
    checkpointer = Checkpointer(journal, plan.identity, outputs, saved=resume is not None)
    try:
        sources = _stream(plan, outputs, checkpointer, progress)
        _require_documents(plan, outputs)
        journal.require_ours()
        manifests = _manifests(plan, outputs, sources, outputs.seal())
    except BaseException as error:
        checkpointer.close()
        if not journal.is_ours:
            outputs.close()  # the files are those of the process that has begun since
            journal.require_ours()
        _leave(plan, outputs, checkpointer, keep=checkpointer.saved or not isinstance(error, DataError))
        raise
    checkpointer.close()
    outputs.close()
    publishing = [asdict(manifest) for manifest in manifests]
    journal.save(Entry(plan.identity, outputs.checkpoint, publishing))
    return manifests


def _leave(plan: Plan, outputs: Outputs, checkpointer: Checkpointer, *, keep: bool) -> None:
    """After an error: save how far the run has come, or, if it is no loss, remove all of it."""
    try:
        if keep:
            checkpointer.save_now()
    except OSError:
        pass  # on a full disk; the checkpoint before is still there
    outputs.close()
    if not keep:
        discard_outputs(plan.names)


def _stream(
    plan: Plan, outputs: Outputs, checkpointer: Checkpointer, progress: bool
) -> tuple[SourceRecord, ...]:
    """Read, encode and write from the checkpoint of `outputs` to the end of the corpus."""
    options, inputs = plan.options, plan.inputs
    start = outputs.checkpoint.position
    blocks = read_blocks(inputs, start, max_record_bytes=options.max_document_bytes, keys=options.json_keys)
    with (
        SourceHasher([source.path for source in inputs]) as hasher,
        Progress(inputs, options.log_interval, enabled=progress) as bar,
    ):
        if start.file < len(inputs):
            bar.resume(start.file, 0)
        for block in encode_blocks(blocks, plan.encoder, plan.workers):
            outputs.add(block)
            checkpointer.block_done(block.text_bytes)
            file, read = _reading(block)
            if file < len(inputs):
                hasher.allow(file, inputs[file].start_byte + read)
            num_tokens = sum(len(documents.tokens) for documents in block.outputs)
            bar.update(file, read, block.text_bytes, block.num_records, num_tokens)
        bar.done()
        sources = hasher.result()
    require_sources(plan.corpora, sources)
    return sources


def _reading(block: Encoded) -> tuple[int, int]:
    """Input that reading has come to, and the stored bytes read of it."""
    begins_next = block.end == Position(block.end.file, 0, 0)
    return block.end.file, 0 if begins_next else block.stored_bytes_read


def _manifests(
    plan: Plan,
    outputs: Outputs,
    sources: tuple[SourceRecord, ...],
    files: Sequence[dict[str, FileRecord]],
) -> list[Manifest]:
    options, tokenizer = plan.options, plan.tokenizer
    made_with = TokenizerRecord(
        name=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        bos_id=tokenizer.bos_id,
    )
    return [
        Manifest(
            format_version=FORMAT_VERSION,
            documents=outputs.writers[number].num_documents,
            tokens=outputs.writers[number].num_tokens,
            dtype=plan.encoder.dtype.name,
            files=files[number],
            tokenizer=made_with,
            append_eod=plan.encoder.eos_id is not None,
            prepend_bos=plan.encoder.bos_id is not None,
            key=key,
            sources=sources,
            records_read=outputs.checkpoint.records_read,
            documents_empty_skipped=outputs.checkpoint.empty[number],
            documents_rejected=outputs.checkpoint.rejected,
            engine=plan.engine,
            partition=plan.partition,
            options={
                "tokenizer": options.tokenizer,
                "tokenizer_kind": options.tokenizer_kind,
                "on_error": options.on_error,
                "max_document_bytes": str(options.max_document_bytes),
                **({PARTITION_OF: plan.partition_of} if plan.partition else {}),
                **(
                    {
                        "chat_template": plan.chat_template.sha256,
                        "chat_template_source": plan.chat_template.source_sha256,
                        "loss_mask": options.loss_mask,
                    }
                    if plan.chat_template
                    else {}
                ),
                **(
                    {"corpus": ", ".join(curated.manifest.fingerprint for curated in plan.corpora)}
                    if plan.corpora
                    else {}
                ),
                **({"chat_and_text": "true"} if options.chat_and_text else {}),
            },
            cptron_version=__version__,
        )
        for number, key in enumerate(options.json_keys)
    ]


def _require_documents(plan: Plan, outputs: Outputs) -> None:
    """A part of a corpus may have none: it can be smaller than a record."""
    for prefix, writer, num_empty in zip(
        plan.names.prefixes, outputs.writers, outputs.checkpoint.empty, strict=True
    ):
        if writer.num_documents == 0 and not plan.partition:
            rejected = sum(outputs.checkpoint.rejected.values())
            raise DataError(
                f"{prefix} would hold 0 documents ({len(plan.inputs)} input files, {num_empty} empty texts, "
                f"{rejected} damaged records), at least 1 is needed; check the input and --json-keys"
            )


def _note(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cptron preprocess`; returns the exit status, that of a shell where a signal ended it."""
    started_s = time.perf_counter()
    try:
        options, notes = parse_options(argv)
        _note(["; ".join(notes)] if notes else [])
        with terminated_like_interrupted():
            manifests = preprocess(options)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        print("stopped: run the same command again to go on", file=sys.stderr)
        return 128 + int(number)
    print(_table(manifests, output_prefixes(options), time.perf_counter() - started_s))
    return 0


def _table(manifests: Sequence[Manifest], prefixes: Sequence[str], elapsed_s: float) -> str:
    headers = ("documents", "empty", "rejected", "tokens", "bin bytes", "tokens/s", "prefix")
    rows = []
    for manifest, prefix in zip(manifests, prefixes, strict=True):
        counts = (
            manifest.documents,
            manifest.documents_empty_skipped,
            sum(manifest.documents_rejected.values()),
            manifest.tokens,
            manifest.files["bin"].bytes,
            round(manifest.tokens / elapsed_s),
        )
        rows.append((*(f"{count:,}" for count in counts), prefix))
    lines = [table(headers, rows)]
    if rejected := manifests[0].documents_rejected:
        lines.append("rejected: " + ", ".join(f"{count:,} {reason}" for reason, count in rejected.items()))
    return "\n".join(lines)
