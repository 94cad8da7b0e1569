"""Values that came from JSON, held against the types that a record declares.

Place in the flow: where a manifest becomes a record. Invariant: what passes can be used without a further look at its
type; a number that JSON wrote as 1 is a float where one is asked for.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require_types(record: Any) -> None:
    """Raise TypeError, naming the field, unless all fields of the dataclass `record` are of their types."""
    hints = get_type_hints(type(record))
    for field in fields(record):
        value = getattr(record, field.name)
        if not is_of(value, hints[field.name]):
            raise TypeError(f"{field.name} is {value!r:.80}, must be {_named(hints[field.name])}")


def is_of(value: Any, kind: Any) -> bool:
    """Whether `value` is of the annotated type `kind`; a bool is no number."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (Union, types.UnionType):
        return any(is_of(value, argument) for argument in arguments)
    if origin in (list, tuple):
        return type(value) is origin and all(is_of(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(
            is_of(key, arguments[0]) and is_of(item, arguments[1]) for key, item in value.items()
        )
    if kind is float:
        return type(value) in (int, float)
    if kind is type(None):
        return value is None
    if is_dataclass(kind):
        if type(value) is not kind:
            return False
        hints = get_type_hints(kind)
        return all(is_of(getattr(value, field.name), hints[field.name]) for field in fields(kind))
    return type(value) is kind


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
