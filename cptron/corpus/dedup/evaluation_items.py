"""The texts of evaluation sets, each with a name.

Place in the flow: `contamination` looks for them in documents. Invariant: every string of every record is an item; a
record that cannot be read is an error, since contamination with it would go unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.read_lines import LineBlock
from cptron.tokens.read_tables import TableBlock
from cptron.tokens.records import Position, RawBlock

MAX_RECORD_BYTES = 64 << 20


def files_of(patterns: Sequence[str]) -> list[Path]:
    """Files that hold the evaluation sets, in order. Raises DataError where a pattern finds nothing."""
    return [source.path for source in expand_inputs(patterns)]


def read_items(patterns: Sequence[str], keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`FILE#RECORD KEY` and text of every item. With `keys` only what stands at those keys of a record is taken.

    Raises DataError for a record that cannot be read, or has none of `keys`.
    """
    inputs = expand_inputs(patterns)
    for block in read_blocks(inputs, Position(0, 0, 0), max_record_bytes=MAX_RECORD_BYTES):
        for number, record in _records(block):
            name = f"{Path(block.path).name}#{number}"
            chosen = {key: record[key] for key in keys if key in record} if keys else record
            if keys and not chosen:
                raise DataError(
                    f"{block.path}: record {number} has none of {', '.join(keys)}; correct the keys of evaluation_keys"
                )
            for key, value in chosen.items():
                yield from ((f"{name} {key}", text) for text in _strings(value))


def _records(block: RawBlock) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(block, LineBlock):
        if block.tail is not None:
            raise DataError(
                f"{block.path} has a record that cannot be read ({block.tail.detail}); correct the file"
            )
        for number, line in enumerate(block.data.splitlines(), start=block.records_before + 1):
            if line.strip():
                yield number, _object(block.path, number, line)
    elif isinstance(block, TableBlock):
        yield from enumerate(_rows(block), start=block.rows_before + 1)
    else:
        parsed = block.parse(("text",), chat=False)
        for reject in parsed.rejects:
            raise DataError(f"{reject.path} cannot be read ({reject.detail}); correct the file")
        for (value,) in parsed.values:
            assert isinstance(value, bytes)
            yield 1, {"text": value.decode()}


def _rows(block: TableBlock) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = block.rows.to_pylist()
    except (ValueError, LookupError, ArithmeticError, NotImplementedError) as error:
        raise DataError(
            f"{block.path}: a row after {block.rows_before} cannot be read ({error}); correct the file"
        ) from None
    return rows


def _object(path: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{path}: line {number} is no JSON ({error}); correct the file") from None
    if not isinstance(record, dict):
        raise DataError(
            f"{path}: line {number} is {type(record).__name__}, must be an object; correct the file"
        )
    return record


def _strings(value: Any) -> Iterator[str]:
    """All strings below a value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for below in value.values():
            yield from _strings(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _strings(below)
