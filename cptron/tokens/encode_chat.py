"""Chats of a block, rendered; what cannot be rendered becomes a reject.

Place in the flow: `encode` has its threads render what the readers found at a chat's key.
Invariant: a record is rendered for all of its keys or rejected once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cptron.tokens.chat import ChatEncoder
from cptron.tokens.chat_formats import ChatError
from cptron.tokens.records import MAX_RAW_BYTES, Parsed, Reject, Value

Ids = npt.NDArray[np.integer[Any]]
_NO_IDS = np.empty(0, np.uint32)


class Rendered(NamedTuple):
    """One chat, or a text among chats: its text, or its ids with a mask."""

    text: bytes = b""
    ids: Ids = _NO_IDS
    mask: Ids = _NO_IDS
    """1 for each token that is learned."""
    eod_mask: int = 0
    """What an EOD after it gets."""
    is_text: bool = False
    """It is a plain document among chats."""


@dataclass(frozen=True, slots=True)
class ChatBlocks:
    """Renders the chats of blocks; any thread may call it."""

    encoder: ChatEncoder
    with_mask: bool
    with_texts: bool = False
    """A value that is a text is a document as it is, not a reject."""

    def render(self, path: str, parsed: Parsed) -> tuple[list[list[Rendered]], list[Reject]]:
        """The chats of every good record, one per key, and all rejects of the block in order."""
        records: list[list[Rendered]] = []
        rejects = list(parsed.rejects)
        for number, values in enumerate(parsed.values):
            try:
                records.append([self._render(value) for value in values])
            except ChatError as error:
                raw = _raw(values)[:MAX_RAW_BYTES]
                rejects.append(Reject(path, parsed.numbers[number], "bad_chat", str(error), raw))
        return records, sorted(rejects, key=lambda reject: reject.record)

    def texts(self, parsed: Parsed) -> Sequence[tuple[bytes, ...]]:
        """Texts of the chats that can be rendered, for a sample."""
        return [tuple(chat.text for chat in record) for record in self.render("", parsed)[0]]

    def _render(self, value: Value) -> Rendered:
        if isinstance(value, bytes):
            if self.with_texts:
                return self._plain(value)
            raise ChatError("the value is a text, must be a list of messages or an object with one")
        if not self.with_mask:
            return Rendered(text=self.encoder.render(value))
        encoded = self.encoder.encode(value)
        assert encoded.mask is not None
        return Rendered(ids=encoded.ids, mask=encoded.mask, eod_mask=encoded.eod_mask)

    def _plain(self, text: bytes) -> Rendered:
        if not self.with_mask:
            return Rendered(text=text, is_text=True)
        encoded = self.encoder.encode_text(text.decode())
        assert encoded.mask is not None
        return Rendered(ids=encoded.ids, mask=encoded.mask, eod_mask=encoded.eod_mask, is_text=True)


def _raw(values: Sequence[Value]) -> bytes:
    """For people, as JSON; tables hold values that JSON has no form for."""
    plain = [value.decode() if isinstance(value, bytes) else value for value in values]
    try:
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), default=repr)
    except RecursionError:
        text = "nested too deeply to be shown"
    return text.encode("utf-8", "backslashreplace")
