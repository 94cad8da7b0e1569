"""Records of a corpus between the readers and the pipeline: where reading stands, what was good, what was bad.

Place in the flow: `read_blocks` yields `RawBlock`s in order; `encode` has worker threads parse and encode them.
Invariant: every record of an input ends as exactly one good record or exactly one `Reject`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

MAX_RAW_BYTES = 64 << 10
"""How much of a damaged record a `Reject` keeps."""

Reason = Literal[
    "bad_json",
    "not_an_object",
    "missing_key",
    "not_a_string",
    "bad_utf8",
    "nul",
    "too_long",
    "bad_chat",
    "truncated",
    "step_failed",
]
Value = bytes | list[Any] | dict[str, Any]
"""UTF-8 text without a NUL, or what stands at a chat's key."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading goes on; `asdict` and `Position(**d)` take it through JSON."""

    file: int
    """Index into the list of inputs; the number of inputs once all is read."""
    record: int
    """Records of that input before it; of a split file, those of its part."""
    byte: int
    """Offset in the uncompressed file for lines; 0 for tables, which find a row by its number."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One damaged record."""

    path: str
    record: int
    """Line or row, from 1."""
    reason: Reason
    detail: str
    """One line for people."""
    raw: bytes
    """What was found, at most `MAX_RAW_BYTES`."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """One block, parsed."""

    values: list[tuple[Value, ...]]
    """Good records in order, with one value per key."""
    numbers: Sequence[int]
    """Line or row, from 1, of each good record. For part of a split file the first look counts the lines before it."""
    rejects: list[Reject]
    num_records: int
    """Good and rejected ones."""
    text_bytes: int
    """Size of the values that are text."""


class RawBlock(Protocol):
    """Some consecutive records: about 1 MiB of them (or one, if it is larger), not parsed yet."""

    @property
    def path(self) -> str:
        """File of the records."""

    @property
    def end(self) -> Position:
        """Where reading goes on after this block."""

    @property
    def num_bytes(self) -> int:
        """Memory that the records take."""

    @property
    def stored_bytes_read(self) -> int:
        """Bytes of the input as stored (of its part, if split) that have been read to get to `end`."""

    def parse(self, keys: Sequence[str], *, chat: bool) -> Parsed:
        """Values of `keys`; any thread may call it. With `chat` a value may also be a list or an object."""


class BadRecordError(Exception):
    """What is wrong with the record at hand; becomes a `Reject`, never leaves the readers."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = " ".join(detail.split())


CHAT_LISTS = ("messages", "conversations")
"""Keys under which an object holds its list of messages."""
CHAT_NOT_RENDERED = ("tools", "functions", "documents", "toolConfig")
"""Keys beside the messages that belong in the rendered text, which cptron cannot put there."""
CHAT_SIBLINGS = ("system", *CHAT_NOT_RENDERED)
"""Keys of a record that belong to the chat beside them."""


class Numbers(Sequence[int]):
    """Record numbers of part of a file whose number of records before it is dear to count, so counted once wanted."""

    def __init__(self, within_part: list[int], records_before: Callable[[], int]) -> None:
        self._within_part = within_part
        self._records_before = records_before

    def __len__(self) -> int:
        return len(self._within_part)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        before = self._records_before()
        if isinstance(index, slice):
            return [number + before for number in self._within_part[index]]
        return self._within_part[index] + before


def check_text(text: bytes) -> bytes:
    """`text`, which is valid UTF-8. Raises BadRecordError when it holds a NUL: text has none, binary data does."""
    position = text.find(b"\0")
    if position >= 0:
        raise BadRecordError("nul", f"the text has a NUL character at byte {position}")
    return text


def check_utf8(text: bytes) -> bytes:
    """`text`. Raises BadRecordError when it is not UTF-8 or holds a NUL."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise BadRecordError("bad_utf8", f"{error.reason} at byte {error.start} of the text") from None
    return check_text(text)


def chat_columns(keys: Sequence[str], names: Iterable[str]) -> list[str]:
    """What of `names` stands beside a list of messages and belongs to the chat."""
    if not any(key in CHAT_LISTS for key in keys):
        return []
    return [name for name in names if name in CHAT_SIBLINGS and name not in keys]


def whole_chat(key: str, value: list[Any] | dict[str, Any], beside: Mapping[str, Any]) -> Any:
    """`value`, or an object of it and what the record has beside it: a system text must not be lost."""
    siblings = {name: beside[name] for name in CHAT_SIBLINGS if beside.get(name) is not None}
    return {key: value, **siblings} if siblings and key in CHAT_LISTS and isinstance(value, list) else value


def check_chat(value: list[Any] | dict[str, Any]) -> list[Any] | dict[str, Any]:
    """`value`, whose strings are held to the same rules as texts."""
    for text in _strings(value, with_keys=True):
        check_text(encode_text(text))
    return value


def nested_bytes(value: Any) -> int:
    """Size in UTF-8 of a text, or of all strings in a chat; keys are a table's schema and do not count."""
    if isinstance(value, bytes):
        return len(value)
    texts = _strings(value, with_keys=False)
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


def _strings(value: Any, *, with_keys: bool) -> Iterator[str]:
    """Every string in lists and objects (and in the pairs of tables' maps)."""
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.keys() if with_keys else ())
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, str):
            yield item


def encode_text(text: str) -> bytes:
    """`text` in UTF-8. Raises BadRecordError on half of a surrogate pair, which JSON can spell."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRecordError("bad_utf8", f"{error.reason} at character {error.start} of the text") from None
