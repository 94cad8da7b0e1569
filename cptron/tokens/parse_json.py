"""One JSONL line to the values of its keys.

Place in the flow: blocks of lines are parsed with this on worker threads.
Invariant: what Python's `json` accepts as UTF-8 is accepted, and gives the same texts and chats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import orjson

from cptron.tokens.records import BadRecordError, Value, check_chat, check_text, encode_text, whole_chat

_MISSING = object()


def parse_line(line: bytes, keys: Sequence[str], *, chat: bool) -> tuple[Value, ...]:
    """Values of `keys`; with `chat` also lists and objects. Raises BadRecordError."""
    content = _loads(line) if chat else _texts(line)
    if type(content) is not dict:
        raise BadRecordError("not_an_object", f"the line holds a {_name(content)}, must be a JSON object")
    return tuple([_value(content, key, chat) for key in keys])


def parse_object(line: bytes) -> dict[str, Any]:
    """The whole record, in which numbers may have lost what a float does not hold. Raises BadRecordError."""
    content = _texts(line)
    if type(content) is not dict:
        raise BadRecordError("not_an_object", f"the line holds a {_name(content)}, must be a JSON object")
    return content


def text_at(content: dict[str, Any], key: str) -> bytes:
    """The text at `key` of a record, in UTF-8. Raises BadRecordError."""
    value = _value(content, key, False)
    assert isinstance(value, bytes)
    return value


def _texts(line: bytes) -> Any:
    """The line where only its texts count: orjson is fast, but makes floats of integers beyond 64 bits."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return _loads(line)


def _value(content: dict[str, Any], key: str, chat: bool) -> Value:
    value = content.get(key, _MISSING)
    if type(value) is str:
        return check_text(encode_text(value))
    if value is _MISSING:
        names = ", ".join(sorted(content))[:200]
        raise BadRecordError("missing_key", f"there is no key {key!r}, only: {names}")
    if chat and isinstance(value, list | dict):
        return check_chat(whole_chat(key, value, content))
    wanted = "a string, a list or an object" if chat else "a string"
    raise BadRecordError("not_a_string", f"key {key!r} holds a {_name(value)}, must be {wanted}")


def _loads(line: bytes) -> Any:
    """All that Python reads: NaN and lone surrogates in other keys, which orjson refuses, are no reason to lose a
    document, and what a chat holds is kept as it is."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRecordError("bad_utf8", f"{error.reason} at byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:
        raise BadRecordError("bad_json", str(error)) from None


def _name(value: object) -> str:
    """JSON's word for the type."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    names = {str: "string", int: "number", float: "number", list: "list", dict: "object"}
    return names[type(value)]
