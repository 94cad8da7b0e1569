"""Damage to JSON that keeps it JSON, or nearly: other types, missing and doubled keys, depth, huge numbers, bad text.

Place in the flow: mutator of all formats that are JSON or hold JSON.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

from fuzz_bytes import mutate_bytes


class Pairs(list):  # type: ignore[type-arg]
    """An object as its (key, value) pairs, so that a key can stand in it twice."""


class Raw(str):
    """Text that is written as it is."""

    __slots__ = ()


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        7,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**62,
        2**63 - 1,
        2**63,
        2**64,
        10**30,
    ),
    *(
        -(2**31),
        -(2**63),
        0.5,
        -0.0,
        1.0,
        1e-320,
        1e300,
        "",
        "0",
        "1",
        "a",
        "\0",
        "é",
        "..",
        "../x",
        "/dev/zero",
        "NaN",
    ),
    *("-1", "x" * 5000, [], [[]], [None], [0], [""], {}, {"": 0}, {"a": {"a": {}}}, [1, 2, 3, 4, 5, 6, 7, 8]),
    *(
        Raw("NaN"),
        Raw("Infinity"),
        Raw("-Infinity"),
        Raw("1e999"),
        Raw("-1e999"),
        Raw("1E5"),
        Raw("01"),
        Raw("nul"),
    ),
    *(
        Raw("9" * 4000),
        Raw("9" * 5000),
        Raw("-" + "8" * 400),
        Raw("0." + "1" * 4000),
        Raw('"\\ud800"'),
        Raw('"\\u0000"'),
    ),
    *(
        Raw('"\\udc00\\ud800"'),
        Raw('"\x01"'),
        Raw('"a'),
        Raw("'a'"),
        Raw("{}{}"),
        Raw(""),
        Raw("// c"),
        Raw("[1,]"),
    ),
)


def deep(draw: random.Random) -> Raw:
    """Arrays or objects within each other."""
    depth = draw.choice((20, 200, 900, 990, 1500, 20_000, 100_000))
    left, right = draw.choice((("[", "]"), ('{"a":', "}"), ('[{"":', "}]")))
    closed = draw.random() < 0.8
    return Raw(left * depth + "0" + right * (depth if closed else 0))


def parse(text: bytes) -> Any:
    """JSON with objects as `Pairs`. Raises ValueError."""
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    """Text of a value, which may hold `Pairs` and `Raw`."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{dump(key)}: {dump(item)}" for key, item in value) + "}"
    if isinstance(value, dict):
        return dump(Pairs(value.items()))
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())


def mutate_json(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to the structure, or to the text of it."""
    chance = draw.random()
    if chance < 0.15:
        return mutate_bytes(draw, content, others)
    try:
        value = parse(content)
        rest = [parse(other) for other in others[:3]]
    except (ValueError, RecursionError):
        return mutate_bytes(draw, content, others)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        value = change(draw, value, rest)
    try:
        text = dump(value)
    except RecursionError:  # a part was put into itself
        return mutate_bytes(draw, content, others)
    if chance < 0.9:
        return text.encode("utf-8", "surrogatepass")
    if chance < 0.94:
        return mutate_bytes(draw, text.encode("utf-8", "surrogatepass"), others)
    encoding = draw.choice(("utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-7"))
    return text.encode(encoding, "replace")


def change(draw: random.Random, value: Any, others: Sequence[Any]) -> Any:
    """`value` with one change at a random place of it."""
    places = list(_places(value))
    if not places or draw.random() < 0.03:
        return deep(draw) if draw.random() < 0.3 else copy.deepcopy(draw.choice(VALUES))
    holder, at = draw.choice(places)
    is_object = isinstance(holder, Pairs)
    old = holder[at][1] if is_object else holder[at]
    kind = draw.randrange(12)
    if kind == 0:
        del holder[at]
    elif kind == 1:
        holder.insert(
            draw.randrange(len(holder) + 1), (holder[at][0], _other(draw, old, others)) if is_object else old
        )
    elif kind == 2 and is_object:
        name = str(
            draw.choice(("", "a", "__class__", holder[at][0] + " ", holder[at][0][:-1], "é" * 3, "\0"))
        )
        holder[at] = (name, old)
    elif kind == 3:
        index = draw.randrange(len(holder))
        holder[at], holder[index] = holder[index], holder[at]
        if is_object:  # values only
            (key, one), (name, two) = holder[at], holder[index]
            holder[at], holder[index] = (name, one), (key, two)
    else:
        new = _other(draw, old, others)
        holder[at] = (holder[at][0], new) if is_object else new
    return value


def _other(draw: random.Random, old: Any, others: Sequence[Any]) -> Any:
    kind = draw.randrange(10)
    if kind < 4:
        return copy.deepcopy(draw.choice(VALUES))
    if kind == 4:
        return deep(draw)
    if kind == 5 and others:
        other = draw.choice(others)
        places = list(_places(other))
        if places:
            holder, at = draw.choice(places)
            return copy.deepcopy(holder[at][1] if isinstance(holder, Pairs) else holder[at])
    if kind == 6:
        return draw.choice(([old], Pairs([("a", old)]), [old] * 3, str(old), [old] * 300))
    if isinstance(old, bool) or old is None or isinstance(old, list):
        return copy.deepcopy(draw.choice(VALUES))
    if isinstance(old, int | float):
        ways = (
            old + 1,
            old - 1,
            -old,
            old * 2,
            old * 2**32 if abs(old) < 2**100 else 0,
            old // 2,
            f"{old:.0f}",
        )
        return draw.choice((*ways, float(old), old + 0.5)) if abs(old) < 2**100 else draw.choice((0, 1, -1))
    text = str(old)
    at = draw.randrange(len(text) + 1)
    return draw.choice(
        (
            text[:at],
            text[at:],
            text.upper(),
            text + "\n",
            text[:at] + "\u2028" + text[at:],
            "../" + text,
            "/" + text,
        )
    )


def _places(value: Any) -> list[tuple[Any, int]]:
    """(list or object, position) of every value within `value`."""
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, list):
            found += [(holder, at) for at in range(len(holder))]
            waiting += [item[1] for item in holder] if isinstance(holder, Pairs) else holder
    return found


def mutate_lines(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """JSONL: damage to a line, to the order of lines, or to bytes."""
    lines = content.splitlines(keepends=True)
    if not lines or draw.random() < 0.25:
        return mutate_bytes(draw, content, others)
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(lines))
        kind = draw.randrange(6)
        if kind == 0:
            del lines[at : at + draw.choice((1, 1, 5))]
        elif kind == 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        elif kind == 2:
            lines[at] = lines[at].rstrip(b"\n") + draw.choice(
                (b"", b"\r\n", b"\n\n", b"\x85", b"\x0b\n", b" \n", b"\0\n")
            )
        else:
            lines[at] = mutate_json(draw, lines[at], lines[:3]) + b"\n"
        if not lines:
            return b""
    return b"".join(lines)
