"""The output of the last stage under its final names, with manifest and report.

Place in the flow: the end of `run.curate`. Invariant: the manifest is removed first and written last, so whatever the
moment of a kill, what has a manifest is whole; publishing again gives the same, and so does publishing twice at once:
what is to be there is only ever replaced by the same, never missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from cptron import __version__
from cptron.config.load import plain_values
from cptron.corpus.load import settings_of
from cptron.corpus.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    CorpusManifest,
    InputFile,
    OutputFile,
    StepRecord,
    fingerprint,
    write_manifest,
)
from cptron.corpus.quarantine import publish_quarantine
from cptron.corpus.report import write_reports
from cptron.corpus.sealed import RESTART, read_record
from cptron.corpus.shard_file import SUFFIX
from cptron.corpus.stages import identities
from cptron.corpus.summary import Summary, summarise
from cptron.corpus.token_counter import tokenizer_record
from cptron.corpus.work import Unit, Work, shard_path
from cptron.durable import fsync_path
from cptron.errors import DataError
from cptron.partials import own_partial, remove_partials
from cptron.tokens.source_hash import file_identity


def publish(work: Work) -> CorpusManifest:
    """Everything that is missing must have been done. Raises DataError where inputs have changed meanwhile."""
    _require_unchanged(work)
    summary = summarise(work)
    output = work.directory.parent
    try:
        (output / MANIFEST).unlink(missing_ok=True)
        fsync_path(output)
        files = _publish_files(work, summary, output)
        _remove_old(output, {file.name for file in files})
        directories = [work.directory / stage.name for stage in work.stages]
        publish_quarantine(directories, work.corpus.shards, summary.inputs, output)
        manifest = _manifest(work, summary, files)
        write_reports(output, manifest, summary)
        fsync_path(output)
        write_manifest(output, manifest)
        _tidy(work)
    except OSError as error:
        raise DataError(
            f"{error.filename or output} cannot be written ({error.strerror}); mend that and run the same command again"
        ) from error
    return manifest


def _require_unchanged(work: Work) -> None:
    for _, path, size, changed in work.files:
        if file_identity(path) != (size, changed):
            raise DataError(f"input {path} has changed since the start, must not; run the same command again")


def _remove_old(output: Path, wanted: AbstractSet[str]) -> None:
    for path in output.glob(f"*{SUFFIX}"):
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def _publish_files(work: Work, summary: Summary, output: Path) -> list[OutputFile]:
    """One file for each shard that has documents, numbered within its source."""
    files: list[OutputFile] = []
    numbers: dict[str, int] = {}
    last = work.directory / work.stages[-1].name
    for shard, record in zip(work.corpus.shards, summary.outputs, strict=True):
        source = record["source"]
        if not record["documents"]:
            continue
        number = numbers[source] = numbers.get(source, -1) + 1
        name = f"{source}-{number:05d}{SUFFIX}"
        made = shard_path(last, shard.number)
        if made.stat().st_size != record["file"]["bytes"]:
            raise DataError(
                f"{made} has {made.stat().st_size} bytes, must have {record['file']['bytes']}; {RESTART}"
            )
        _place(made, output / name)
        files.append(
            OutputFile(
                name=name,
                source=source,
                documents=record["documents"],
                text_bytes=record["text_bytes"],
                tokens=record["tokens"],
                **record["file"],
            )
        )
    return files


def _place(made: Path, final: Path) -> None:
    """Give `made` a second name, or copy it where the file system has no second names."""
    partial = own_partial(final)
    try:
        try:
            os.link(made, partial)
        except OSError:
            shutil.copyfile(made, partial)
            fsync_path(partial)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)  # it stays where `final` is a name of the same file already


def _manifest(work: Work, summary: Summary, files: list[OutputFile]) -> CorpusManifest:
    config = work.config.corpus
    steps = identities(work.config)
    inputs = tuple(InputFile(**_content(work, number)) for number in range(len(work.files)))
    tokenizer = tokenizer_record(config.tokenizer) if config.tokenizer else None
    counted = config.tokenizer != ""
    settings = _settings(plain_values(config), "output", "keep_intermediate")
    named = [_settings(given, "paths") for given in settings["inputs"]]
    decides = [
        _settings(settings, "inputs", "tokenizer"),
        named,
        steps,
        tokenizer.fingerprint if tokenizer else "",
    ]
    return CorpusManifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint(inputs, decides),
        documents=sum(file.documents for file in files),
        text_bytes=sum(file.text_bytes for file in files),
        tokens=sum(file.tokens or 0 for file in files) if counted else None,
        tokenizer=tokenizer,
        files=tuple(files),
        inputs=inputs,
        records_read=summary.records,
        records_rejected=dict(sorted(summary.rejected.items())),
        steps=tuple(
            StepRecord(
                name=step.name,
                documents_in=step.came.documents,
                documents_out=step.left.documents,
                documents_made=step.made,
                documents_changed=step.changed,
                bytes_in=step.came.bytes,
                bytes_out=step.left.bytes,
                dropped={reason: amount.documents for reason, amount in sorted(step.dropped.items())},
                counted=dict(sorted(step.tally.items())),
            )
            for step in summary.steps.values()
        ),
        config={**settings, "steps": [settings_of(step) for step in work.config.steps]},
        versions={name: version for identity in steps for name, version in identity["packages"].items()},
        cptron_version=__version__,
    )


def _settings(values: dict[str, Any], *without: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in without}


def _content(work: Work, number: int) -> dict[str, Any]:
    return read_record(work.record_path(Unit("hash", 0, number, 0)))


def _tidy(work: Work) -> None:
    """Remove what other settings left, and all that was intermediate if it is not to be kept."""
    wanted = {"inputs"}
    for stage in work.stages:
        if work.config.corpus.keep_intermediate or stage.tail is None:
            wanted |= {stage.name, stage.decided}
    for path in work.directory.iterdir():
        if path.is_dir() and path.name not in wanted:
            shutil.rmtree(path)
    remove_partials(work.places(), only_stale=False)  # all is done: who is still at it is so in vain
