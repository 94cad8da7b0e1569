"""The inputs of a curation, cut into shards: the units of work.

Place in the flow: first look at the inputs; `read` reads a shard, everything after it is by shard number.
Invariant: the cut depends on the names and sizes of the files and on `shard_bytes` alone. A shard is of one source, and
the shards in order hold every record once, in the order of the inputs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cptron.corpus.detect import find_text_key
from cptron.corpus.schema import CorpusConfig, InputConfig
from cptron.errors import DataError
from cptron.tokens.inputs import Input, expand_inputs
from cptron.tokens.read_tables import check_table, parquet_groups
from cptron.tokens.source_hash import file_identity


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a part of one."""

    input: Input
    name: str
    """Of the file: source, then the path below what all files of the source have in common; in a ZIP file, the member
    too."""
    first_row: int = 0
    stop_row: int | None = None
    """Rows [first_row, stop_row) of a table; None for the end. The part of a line file is in `input`."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input of the configuration, looked up."""

    config: InputConfig
    text_key: str
    files: tuple[tuple[str, Path, int, int], ...]
    """Name, path, bytes and time of the last change (ns) of each stored file, in order, once."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Pieces that are worked on as one."""

    number: int
    """In the order of the inputs."""
    source: int
    """Index into the sources."""
    pieces: tuple[Piece, ...]
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """All that there is to curate."""

    sources: tuple[Source, ...]
    shards: tuple[Shard, ...]


def look_up(config: CorpusConfig, *, check: bool = True) -> Corpus:
    """Find the files, their text keys, and cut them; `check` all tables, which else end the work when their turn comes.
    Raises DataError where an input is missing or unusable."""
    sources: list[Source] = []
    shards: list[Shard] = []
    for number, source in enumerate(config.inputs):
        try:
            inputs = expand_inputs(source.paths, archives=True)
            _require_files(inputs)
            pieces = _pieces(source.name, inputs)
            key = find_text_key(source, inputs, config)
            sources.append(Source(source, key, _files(source.name, inputs)))
            others = [name for name in source.meta_keys if name != "*"]
            for item in inputs if check else ():
                if item.kind in ("parquet", "arrow"):
                    check_table(item, key, () if "*" in source.meta_keys else others)
            for group in _groups(pieces, config.shard_bytes):
                stored = sum(num_bytes for _, num_bytes in group)
                shards.append(Shard(len(shards), number, tuple(piece for piece, _ in group), stored))
        except OSError as error:
            raise DataError(
                f"input {error.filename} cannot be read ({error.strerror}); check the file"
            ) from error
    _require_new(sources)
    return Corpus(tuple(sources), tuple(shards))


def _require_files(inputs: Sequence[Input]) -> None:
    """What is read is read again after a kill, and hashed: a pipe gives its content once, to whoever waits for it."""
    for path in dict.fromkeys(item.path for item in inputs):
        if not path.is_file():
            raise DataError(f"input {path} is a pipe or a device, must be a file; write its content to one")


def _require_new(sources: Sequence[Source]) -> None:
    """Sources may not share a file: its documents would be counted, and kept, twice."""
    seen: dict[Path, str] = {}
    for source in sources:
        for _, path, _, _ in source.files:
            other = seen.setdefault(path.resolve(), source.config.name)
            if other != source.config.name:
                raise DataError(
                    f"{path} is in the inputs {other} and {source.config.name}, must be in one; narrow one of them"
                )


def _common(inputs: Sequence[Input]) -> Path:
    parents = [str(source.path.absolute().parent) for source in inputs]
    return Path(os.path.commonpath(parents)) if parents else Path()


def _file_name(source: str, path: Path, common: Path) -> str:
    return f"{source}/{path.absolute().relative_to(common).as_posix()}"


def _files(source: str, inputs: Sequence[Input]) -> tuple[tuple[str, Path, int, int], ...]:
    common = _common(inputs)
    paths = dict.fromkeys(item.path for item in inputs)
    return tuple((_file_name(source, path, common), path, *file_identity(path)) for path in paths)


def _pieces(source: str, inputs: Sequence[Input]) -> list[Piece]:
    common = _common(inputs)
    return [
        Piece(item, _file_name(source, item.path, common) + (f"/{item.member}" if item.member else ""))
        for item in inputs
    ]


def _groups(pieces: Sequence[Piece], shard_bytes: int) -> Iterator[list[tuple[Piece, int]]]:
    """Pieces of about `shard_bytes` together: large files are cut where they can be, small ones joined."""
    group: list[tuple[Piece, int]] = []
    group_bytes = 0
    for piece, num_bytes in itertools.chain.from_iterable(_cut(whole, shard_bytes) for whole in pieces):
        if group and group_bytes + num_bytes > shard_bytes:
            yield group
            group, group_bytes = [], 0
        group.append((piece, num_bytes))
        group_bytes += num_bytes
    if group:
        yield group


def _cut(piece: Piece, shard_bytes: int) -> Iterator[tuple[Piece, int]]:
    source, size = piece.input, piece.input.stored_bytes
    parts = max(1, round(size / shard_bytes))
    if source.splits and parts > 1:
        edges = [size * part // parts for part in range(parts + 1)]
        for start, stop in itertools.pairwise(edges):
            yield replace(piece, input=replace(source, start_byte=start, stop_byte=stop)), stop - start
    elif source.kind == "parquet" and parts > 1:
        yield from _cut_rows(piece, shard_bytes)
    else:
        yield piece, size


def _cut_rows(piece: Piece, shard_bytes: int) -> Iterator[tuple[Piece, int]]:
    """Between row groups: one is decoded at a time, and cannot be entered in its middle without reading its start."""
    first = stop = num_bytes = 0
    for rows, group_bytes in parquet_groups(piece.input):
        if stop > first and num_bytes + group_bytes > shard_bytes:
            yield replace(piece, first_row=first, stop_row=stop), num_bytes
            first, num_bytes = stop, 0
        stop, num_bytes = stop + rows, num_bytes + group_bytes
    yield replace(piece, first_row=first), num_bytes
