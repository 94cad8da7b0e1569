"""Records out of line files (JSONL), plain or compressed, in blocks and with bounded memory.

Place in the flow: `read_blocks` calls this for such inputs; `parse_json` reads the lines on worker threads.
Invariant: the records do not depend on where reading resumed or how the file was split; no line longer than
`max_record_bytes` is ever held.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cptron.tokens.inputs import Input
from cptron.tokens.parse_json import parse_line
from cptron.tokens.read_stored import CHUNK_BYTES, DamagedError, StoredStream
from cptron.tokens.records import (
    MAX_RAW_BYTES,
    BadRecordError,
    Numbers,
    Parsed,
    Position,
    Reason,
    Reject,
    Value,
)

_BLOCK_RECORDS = 4096
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_counting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Tail:
    """A record that was not held to be parsed, after the lines of a block."""

    reason: Reason
    detail: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Whole lines, and perhaps a `Tail`."""

    source: Input
    data: bytes
    tail: Tail | None
    records_before: int
    """In the input, or in its part."""
    end: Position
    stored_bytes_read: int
    max_record_bytes: int

    @property
    def path(self) -> str:
        """File of the lines."""
        return self.source.shown

    @property
    def num_bytes(self) -> int:
        """See `RawBlock`."""
        return len(self.data)

    def parse(self, keys: Sequence[str], *, chat: bool) -> Parsed:
        """See `RawBlock`."""
        lines = self.data.split(b"\n")
        if not lines[-1]:
            lines.pop()  # what follows the last line end is not a line
        values: list[tuple[Value, ...]] = []
        good: list[int] = []
        rejects: list[Reject] = []
        for number, line in enumerate(lines, start=self.records_before + 1):
            try:
                self.check_length(line)
                values.append(parse_line(line, keys, chat=chat))
                good.append(number)
            except BadRecordError as error:
                rejects.append(self._reject(number, error.reason, error.detail, line))
        if self.tail is not None:
            number = self.records_before + len(lines) + 1
            rejects.append(self._reject(number, self.tail.reason, self.tail.detail, self.tail.raw))
        numbers = Numbers(good, self._lines_before_part) if self.source.start_byte else good
        text_bytes = sum(len(value) for record in values for value in record if isinstance(value, bytes))
        return Parsed(values, numbers, rejects, len(values) + len(rejects), text_bytes)

    def check_length(self, line: bytes) -> None:
        """Raise BadRecordError where `line` is longer than a record may be."""
        if len(line) > self.max_record_bytes:
            raise BadRecordError("too_long", _too_long(len(line), self.max_record_bytes))

    def _reject(self, number: int, reason: Reason, detail: str, raw: bytes) -> Reject:
        return Reject(self.path, number + self._lines_before_part(), reason, detail, raw[:MAX_RAW_BYTES])

    def _lines_before_part(self) -> int:
        if not self.source.start_byte:
            return 0
        with _counting:  # one thread counts, the others wait for its result
            return _lines_before(self.source.path, self.source.start_byte)


def read_lines(source: Input, start: Position, max_record_bytes: int) -> Iterator[LineBlock]:
    """Blocks of a JSONL input from `start` on."""
    begin, stop = start.byte or source.start_byte, source.stop_byte
    if stop is not None and begin >= stop:
        return
    at_line_start = bool(start.byte) or begin == 0
    offset = begin if at_line_start else begin - 1
    with StoredStream(source.path, source.compression, offset, source.member) as stream:
        lines = _Lines(source, stream, start, max_record_bytes)
        try:
            chunks: Iterator[bytes] = iter(stream)
            if begin == 0:
                begin, chunks = _after_mark(chunks)
            elif not at_line_start:
                begin, chunks = _align(chunks, begin - 1, stop)
                if stop is not None and begin >= stop:
                    return
            if stop is not None:
                chunks = _lines_starting_before(chunks, stop - begin)
            lines.byte = begin
            for chunk in chunks:
                yield from lines.push(chunk)
            yield from lines.finish()
        except DamagedError as error:
            yield lines.damaged(str(error))


class _Lines:
    """Cuts chunks into blocks. Holds the line that has begun, or only its head once it is too long."""

    def __init__(self, source: Input, stream: StoredStream, start: Position, max_record_bytes: int) -> None:
        self._source = source
        self._stream = stream
        self._file = start.file
        self._num_records = start.record
        self.byte = start.byte
        """Where the held line starts."""
        self._held: list[bytes] = []
        self._held_bytes = 0
        """Length of the held line so far, of which only the head may be held."""
        self._max_record_bytes = max_record_bytes

    def push(self, chunk: bytes) -> Iterator[LineBlock]:
        """Blocks that `chunk` completes."""
        if self._held_bytes > self._max_record_bytes:
            newline = chunk.find(b"\n")
            if newline < 0:
                self._held_bytes += len(chunk)
                return
            self._held_bytes += newline
            yield self._too_long(1)
            chunk = chunk[newline + 1 :]
        cut = chunk.rfind(b"\n") + 1
        if cut:
            data = b"".join([*self._held, chunk[:cut]])
            self._drop_held()
            yield from self._blocks(data)
        self._held.append(chunk[cut:])
        self._held_bytes += len(chunk) - cut
        if self._held_bytes > self._max_record_bytes:
            self._held = [b"".join(self._held)[:MAX_RAW_BYTES]]

    def finish(self) -> Iterator[LineBlock]:
        """The last line, if nothing ended it."""
        if self._held_bytes > self._max_record_bytes:
            yield self._too_long(0)
        elif self._held_bytes:
            data = b"".join(self._held)
            self._drop_held()
            yield from self._blocks(data)

    def damaged(self, message: str) -> LineBlock:
        """The record at which the file is damaged; nothing can be read after it."""
        tail = Tail("truncated", message, b"".join(self._held)[:MAX_RAW_BYTES])
        return self._block(b"", tail, Position(self._file + 1, 0, 0), self._num_records)

    def _too_long(self, line_end_bytes: int) -> LineBlock:
        detail = _too_long(self._held_bytes, self._max_record_bytes)
        tail = Tail("too_long", detail, b"".join(self._held)[:MAX_RAW_BYTES])
        self.byte += self._held_bytes + line_end_bytes
        self._drop_held()
        self._num_records += 1
        end = Position(self._file, self._num_records, self.byte)
        return self._block(b"", tail, end, self._num_records - 1)

    def _blocks(self, data: bytes) -> Iterator[LineBlock]:
        for piece, num_lines in _pieces(data):
            before = self._num_records
            self._num_records += num_lines
            self.byte += len(piece)
            end = Position(self._file, self._num_records, self.byte)
            yield self._block(piece, None, end, before)

    def _block(self, data: bytes, tail: Tail | None, end: Position, records_before: int) -> LineBlock:
        read = self._stream.stored_bytes_read - self._source.start_byte
        read = min(max(read, 0), self._source.stored_bytes)
        return LineBlock(self._source, data, tail, records_before, end, read, self._max_record_bytes)

    def _drop_held(self) -> None:
        self._held, self._held_bytes = [], 0


def _pieces(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Whole lines in pieces of about 1 MiB and at most `_BLOCK_RECORDS` lines, with their numbers of lines."""
    num_lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if num_lines <= _BLOCK_RECORDS:
        yield data, num_lines
        return
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    begin = done = 0
    for end in ends[_BLOCK_RECORDS - 1 :: _BLOCK_RECORDS].tolist():
        yield data[begin:end], _BLOCK_RECORDS
        begin, done = end, done + _BLOCK_RECORDS
    if begin < len(data):
        yield data[begin:], num_lines - done


def _after_mark(chunks: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
    """Length of the byte order mark that starts the file, 0 without one, and the chunks after it."""
    first = next(chunks, b"")
    text = first.removeprefix(BYTE_ORDER_MARK)
    return len(first) - len(text), _chain(text, chunks)


def _align(chunks: Iterator[bytes], byte: int, stop: int | None) -> tuple[int, Iterator[bytes]]:
    """The first line start after the byte at `byte`, where `chunks` begin, and the chunks from there on; not looked for
    beyond `stop`, or every part of a file that is one line would read all of it."""
    for chunk in chunks:
        newline = chunk.find(b"\n")
        if newline >= 0:
            return byte + newline + 1, _chain(chunk[newline + 1 :], chunks)
        byte += len(chunk)
        if stop is not None and byte >= stop:
            break
    return byte, iter(())


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _lines_starting_before(chunks: Iterator[bytes], stop: int) -> Iterator[bytes]:
    """`chunks`, which begin at a line, up to the end of the last line that starts before byte `stop` of them."""
    begin = 0
    for chunk in chunks:
        newline = chunk.find(b"\n", max(0, stop - 1 - begin))
        if newline >= 0:
            yield chunk[: newline + 1]
            return
        yield chunk
        begin += len(chunk)


def _too_long(num_bytes: int, max_record_bytes: int) -> str:
    return f"the line has {num_bytes} bytes, more than the {max_record_bytes} a record may have"


@functools.lru_cache(maxsize=64)
def _lines_before(path: Path, start_byte: int) -> int:
    """Lines of `path` that start before `start_byte`."""
    num_lines = 1  # the line at `start_byte - 1`, wherever it ends
    left = start_byte - 1
    with path.open("rb", buffering=0) as file:
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            num_lines += chunk.count(b"\n")
            left -= len(chunk)
    return num_lines
