"""A shard of the input as documents and rejects.

Place in the flow: `shards` cut the input, `work` reads a shard here for the first stage.
Invariant: every record of the shard comes out once, as a document or as a reject with its file and line; a record of
more than `max_document_bytes` is never held, and none stops the reading of what follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cptron.corpus.document import Document
from cptron.corpus.shard_file import to_line
from cptron.corpus.shards import Piece, Shard, Source
from cptron.tokens.parse_json import parse_object, text_at
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.read_lines import LineBlock
from cptron.tokens.read_tables import TableBlock, check_columns, plain_rows
from cptron.tokens.records import MAX_RAW_BYTES, BadRecordError, Position, RawBlock, Reject

_PLAIN_DEPTH = 64
"""Brackets in a line from which its metadata is tried before it is believed: it may be too deep to be written."""


def read_documents(
    shard: Shard, source: Source, max_document_bytes: int, records: list[int]
) -> Iterator[Document | Reject]:
    """Records in order, counted by piece in `records`. Rejects of line files have their line in the piece, not in the
    file: whoever knows the pieces before can add their lines, and nobody has to count them again.

    Raises DataError where a table is damaged or lacks the text's column.
    """
    wanted = source.config.meta_keys
    for piece in shard.pieces:
        records.append(0)
        columns = None if "*" in wanted else list(dict.fromkeys((source.text_key, *wanted)))
        start = Position(0, piece.first_row, 0)
        for block in read_blocks([piece.input], start, max_record_bytes=max_document_bytes, keys=columns):
            if (
                isinstance(block, TableBlock)
                and piece.stop_row is not None
                and block.rows_before >= piece.stop_row
            ):
                break
            for found in _of_block(block, piece, source):
                records[-1] += 1
                yield found


def _of_block(block: RawBlock, piece: Piece, source: Source) -> Iterator[Document | Reject]:
    if isinstance(block, LineBlock):
        return _of_lines(block, piece, source)
    if isinstance(block, TableBlock):
        return _of_rows(_until(block, piece.stop_row), piece, source)
    return _of_text(block, piece, source)


def _until(block: TableBlock, stop_row: int | None) -> TableBlock:
    left = None if stop_row is None else stop_row - block.rows_before
    return (
        block
        if left is None or left >= block.rows.num_rows
        else replace(block, rows=block.rows.slice(0, left))
    )


def _of_lines(block: LineBlock, piece: Piece, source: Source) -> Iterator[Document | Reject]:
    place = block.end.byte - len(block.data)
    lines = block.data.split(b"\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line end is not a line
    for number, line in enumerate(lines, start=block.records_before + 1):
        try:
            block.check_length(line)
            yield _from_object(line, f"{piece.name}#{place}", source)
        except BadRecordError as error:
            yield Reject(block.path, number, error.reason, error.detail, line[:MAX_RAW_BYTES])
        place += len(line) + 1
    if (tail := block.tail) is not None:
        number = block.records_before + len(lines) + 1
        yield Reject(block.path, number, tail.reason, tail.detail, tail.raw[:MAX_RAW_BYTES])


def _from_object(line: bytes, name: str, source: Source) -> Document:
    record = parse_object(line)
    text = text_at(record, source.text_key).decode()
    document = Document(text, name, source.config.name, _meta(record, source))
    if line.count(b"[") + line.count(b"{") > _PLAIN_DEPTH:
        try:
            to_line(document)
        except (RecursionError, ValueError):
            raise BadRecordError("bad_json", "its metadata is nested too deeply") from None
    return document


def _meta(record: dict[str, Any], source: Source) -> dict[str, Any]:
    wanted: Sequence[str] = source.config.meta_keys
    every = "*" in wanted
    return {
        key: value for key, value in record.items() if key != source.text_key and (every or key in wanted)
    }


def _of_rows(block: TableBlock, piece: Piece, source: Source) -> Iterator[Document | Reject]:
    check_columns(block.path, [source.text_key], block.rows.schema.names)
    parsed = block.parse((source.text_key,), chat=False)
    names = [name for name in block.rows.schema.names if name != source.text_key]
    meta = plain_rows(block.rows, names)
    rejects = iter(parsed.rejects)
    waiting = next(rejects, None)
    for (value,), row in zip(parsed.values, parsed.numbers, strict=True):
        while waiting is not None and waiting.record < row:
            yield waiting
            waiting = next(rejects, None)
        assert isinstance(value, bytes)
        kept = _meta(meta[row - 1 - block.rows_before], source)
        yield Document(value.decode(), f"{piece.name}#{row}", source.config.name, kept)
    if waiting is not None:
        yield waiting
    yield from rejects


def _of_text(block: RawBlock, piece: Piece, source: Source) -> Iterator[Document | Reject]:
    parsed = block.parse(("text",), chat=False)
    for (value,) in parsed.values:
        assert isinstance(value, bytes)
        yield Document(value.decode(), f"{piece.name}#0", source.config.name)
    yield from parsed.rejects


def raw_of(document: Document) -> bytes:
    """What of a document goes into the quarantine."""
    return document.text.encode()[:MAX_RAW_BYTES]
