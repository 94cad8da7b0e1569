"""Which key of the records is their text.

Place in the flow: `shards` asks once for each source; `read` takes the answer.
Invariant: the answer depends on the first records of the files alone, and where it is not clear there is none: a wrong
guess would lose a corpus without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from cptron.corpus.schema import CorpusConfig, InputConfig
from cptron.errors import DataError
from cptron.tokens.inputs import Input
from cptron.tokens.parse_json import parse_object
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.read_lines import LineBlock
from cptron.tokens.read_tables import TableBlock, plain_rows
from cptron.tokens.records import BadRecordError, Position

USUAL_KEYS = ("text", "content", "raw_content", "body", "document", "article", "page_content")
"""In this order: the first that is there in most records is the text."""
_FILES = 8
_RECORDS = 100
_MOST = 0.9
_LONGER = 3.0
"""A key is the text if its values are this many times as long as those of any other."""


def find_text_key(source: InputConfig, inputs: Sequence[Input], config: CorpusConfig) -> str:
    """The key, as given or as found. Raises DataError where none is clearly the text."""
    if source.text_key:
        return source.text_key
    if config.strict or all(item.kind == "text" for item in inputs):
        return "text"
    files = {item.shown: list(_first_records(item, config.max_document_bytes)) for item in _spread(inputs)}
    records = [record for found in files.values() for record in found]
    if not records:  # nothing but damage, which is reported where it is read
        return "text"
    if key := _clear_key(records):
        return key
    at = {file: key for file, found in files.items() if (key := _clear_key(found))}
    if len(set(at.values())) > 1:
        shown = ", ".join(f"{key} in {file}" for file, key in at.items())
        raise DataError(
            f"input {source.name} has its text at several keys ({shown}), must have it at one; make each kind of file "
            "an input of its own"
        )
    raise DataError(
        f"input {source.name} has the keys {', '.join(sorted({key for one in records for key in one})) or 'none'}, "
        "none of which is clearly the text; name it with text_key"
    )


def _clear_key(records: Sequence[Mapping[str, Any]]) -> str:
    """Where the text is, if that is clear; else empty."""
    texts = {key: [record.get(key) for record in records] for key in {key for one in records for key in one}}
    lengths = {
        key: sum(len(value) for value in values if isinstance(value, str)) / len(values)
        for key, values in texts.items()
        if sum(isinstance(value, str) for value in values) >= _MOST * len(records)
    }
    for key in USUAL_KEYS:
        if key in lengths:
            return key
    longest = sorted(lengths, key=lambda key: (-lengths[key], key))
    if longest and (len(longest) == 1 or lengths[longest[0]] >= _LONGER * lengths[longest[1]]):
        return longest[0]
    return ""


def _spread(inputs: Sequence[Input]) -> list[Input]:
    """Some of the files, from the first to the last; text files have no keys."""
    keyed = [item for item in inputs if item.kind != "text"]
    step = max(1, -(-len(keyed) // _FILES))
    return keyed[::step]


def _first_records(source: Input, max_bytes: int) -> Iterator[Mapping[str, Any]]:
    blocks = read_blocks([source], Position(0, 0, 0), max_record_bytes=max_bytes)
    with closing(blocks):
        block = next(blocks, None)
    if isinstance(block, LineBlock):
        for line in block.data.split(b"\n")[:_RECORDS]:
            try:
                yield parse_object(line)
            except BadRecordError:
                continue
    elif isinstance(block, TableBlock):
        yield from plain_rows(block.rows.slice(0, _RECORDS), block.rows.schema.names)
