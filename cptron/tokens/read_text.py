"""Text files: each one document, plain or compressed.

Place in the flow: `read_blocks` calls this for such inputs.
Invariant: a file is exactly one record, empty or not; no more than `max_record_bytes` and a chunk of it is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cptron.errors import DataError
from cptron.tokens.inputs import Input
from cptron.tokens.read_lines import BYTE_ORDER_MARK, Tail
from cptron.tokens.read_stored import DamagedError, StoredStream
from cptron.tokens.records import MAX_RAW_BYTES, BadRecordError, Parsed, Position, Reason, Reject, check_utf8


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A text file: one record, whatever the one key is called."""

    path: str
    data: bytes
    tail: Tail | None
    end: Position
    stored_bytes_read: int

    @property
    def num_bytes(self) -> int:
        """See `RawBlock`."""
        return len(self.data)

    def parse(self, keys: Sequence[str], *, chat: bool) -> Parsed:
        """See `RawBlock`. Raises DataError for several keys."""
        if len(keys) != 1:
            raise DataError(f"{self.path} is one text, cannot have the keys {', '.join(keys)}; name one key")
        if self.tail is not None:
            return self._rejected(self.tail.reason, self.tail.detail, self.tail.raw)
        try:
            return Parsed([(check_utf8(self.data),)], [1], [], 1, len(self.data))
        except BadRecordError as error:
            return self._rejected(error.reason, error.detail, self.data)

    def _rejected(self, reason: Reason, detail: str, raw: bytes) -> Parsed:
        return Parsed([], [], [Reject(self.path, 1, reason, detail, raw[:MAX_RAW_BYTES])], 1, 0)


def read_text(source: Input, start: Position, max_record_bytes: int) -> Iterator[TextBlock]:
    """The one record of a text file."""
    if start.record:
        return
    held: list[bytes] = []
    num_bytes = 0
    tail: Tail | None = None
    with StoredStream(source.path, source.compression, 0, source.member) as stream:
        try:
            for chunk in stream:
                held.append(chunk)
                num_bytes += len(chunk)
                if num_bytes > max_record_bytes:
                    detail = f"the text has more than the {max_record_bytes} bytes a record may have"
                    tail = Tail("too_long", detail, b"")
                    break
        except DamagedError as error:
            tail = Tail("truncated", str(error), b"")
    data = b"".join(held).removeprefix(BYTE_ORDER_MARK)
    if tail is not None:
        tail = Tail(tail.reason, tail.detail, data[:MAX_RAW_BYTES])
        data = b""
    yield TextBlock(source.shown, data, tail, Position(start.file + 1, 0, 0), source.stored_bytes)
