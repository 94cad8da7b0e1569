"""All inputs of a corpus as one sequence of blocks, from any position on.

Place in the flow: `inputs` -> here -> `encode`, whose threads parse the blocks.
Invariant: the records after a block are the same whether reading went on or resumed at the block's `end`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from cptron.errors import DataError
from cptron.tokens.inputs import Input
from cptron.tokens.read_lines import read_lines
from cptron.tokens.read_tables import read_arrow, read_parquet
from cptron.tokens.read_text import read_text
from cptron.tokens.records import Position, RawBlock


def read_blocks(
    inputs: Sequence[Input], start: Position, *, max_record_bytes: int, keys: Sequence[str] | None = None
) -> Generator[RawBlock, None, None]:
    """Blocks of `inputs` in order, from `start` on (`Position(0, 0, 0)`, or some block's `end`).

    A record of more than `max_record_bytes` becomes a reject and is not held in memory. `keys` are the columns of
    tables to read; None reads all, which is slow. Raises DataError when a file cannot be read or lacks a column.
    """
    for file in range(start.file, len(inputs)):
        at = start if file == start.file else Position(file, 0, 0)
        try:
            yield from _read(inputs[file], at, max_record_bytes, keys)
        except OSError as error:
            raise DataError(
                f"input {inputs[file].path} cannot be read ({error.strerror}); check the file"
            ) from error


def _read(
    source: Input, start: Position, max_record_bytes: int, keys: Sequence[str] | None
) -> Iterator[RawBlock]:
    if source.kind == "jsonl":
        return read_lines(source, start, max_record_bytes)
    if source.kind == "text":
        return read_text(source, start, max_record_bytes)
    read_table = read_parquet if source.kind == "parquet" else read_arrow
    return read_table(source, start, max_record_bytes, keys)
