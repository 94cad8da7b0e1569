"""What a pickle would make the unpickler do, found out without doing it.

Place in the flow: `untrusted` scans an index of torch before it reads it. Invariant: a pickle that passes takes memory
and time in proportion to its own size; which classes it may name is `untrusted`'s to say.

Python's unpickler reserves room up to the highest place that a pickle writes in its memo, and a key of a dictionary is
hashed with all that is in it: sixty pairs, each of the one before twice, take it for ever.
"""

from __future__ import annotations

import pickletools
from typing import Any

MOST_DEPTH = 24
"""Objects within objects; an index of tensors has a third of it."""
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_NAMES = ("GLOBAL", "STACK_GLOBAL")
_MARK = pickletools.markobject


def require_bounded(content: bytes) -> None:
    """Raise ValueError unless `content` is a pickle that can be read in memory and time in proportion to its size."""
    depths = _Depths(len(content))
    for operation, argument, _ in pickletools.genops(content):
        depths.follow(operation, argument)


class _Named(list[int]):
    """How deep a class or function is that a pickle names."""


class _Depths:
    """The unpickler's stack, with how deep each object is instead of the objects; the same object is the same list of
    one number, wherever it stands."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._stack: list[list[int] | None] = []
        """None is a mark."""
        self._memo: dict[int, list[int]] = {}

    def follow(self, operation: Any, argument: Any) -> None:
        """Do to the depths what `operation` does to the objects."""
        name = operation.name
        if name == "DUP":
            raise ValueError("it doubles an object, which no writer does")
        if "PUT" in name or name == "MEMOIZE":
            self._remember(len(self._memo) if name == "MEMOIZE" else int(argument))
        elif "GET" in name:
            if int(argument) not in self._memo:
                raise ValueError(f"it refers to object {argument}, which is not there")
            self._stack.append(self._memo[int(argument)])
        else:
            self._change(name, operation)

    def _remember(self, place: int) -> None:
        if not 0 <= place <= self._num_bytes:
            raise ValueError(f"it numbers an object {place}, more than it has bytes")
        self._memo[place] = self._top()

    def _top(self) -> list[int]:
        if not self._stack or self._stack[-1] is None:
            raise ValueError("it uses an object that is not there")
        return self._stack[-1]

    def _change(self, name: str, operation: Any) -> None:
        before, after = operation.stack_before, operation.stack_after
        taken: list[list[int]] = []
        fixed = len(before)
        if _MARK in before:
            while (item := self._pop()) is not None:
                taken.append(item)
            fixed = before.index(_MARK)
        for _ in range(fixed):
            item = self._pop()
            if item is None:
                raise ValueError("it takes a mark for an object")
            taken.append(item)
        if name == "BUILD" and isinstance(taken[-1], _Named):
            raise ValueError("it changes a class, which would stay changed for all that comes after")
        deepest = 1 + max((item[0] for item in (taken[:-1] if name in _FILLS else taken)), default=-1)
        if deepest > MOST_DEPTH:
            raise ValueError(f"it holds objects within objects, more than {MOST_DEPTH} deep")
        if name in _FILLS:  # what is filled lies below what fills it
            taken[-1][0] = max(taken[-1][0], deepest)
            self._stack.append(taken[-1])
        elif name != "STOP":
            found = _Named if name in _NAMES else list
            self._stack += [None if kind is _MARK else found([deepest]) for kind in after]

    def _pop(self) -> list[int] | None:
        if not self._stack:
            raise ValueError("it uses an object that is not there")
        return self._stack.pop()
