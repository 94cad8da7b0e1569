"""Damage to YAML: anchors and aliases that grow or turn in circles, tags, merge keys, depth, odd scalars and keys.

Place in the flow: mutator of configurations.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from fuzz_bytes import mutate_bytes
from fuzz_json import Pairs, Raw, change, dump

SCALARS = (
    *(
        "~",
        "null",
        "yes",
        "off",
        "0x1F",
        "0o17",
        "010",
        "1_000",
        "1e3",
        ".inf",
        "-.inf",
        ".nan",
        "1e999",
        "12:30:45",
    ),
    *(
        "2001-01-01",
        "=",
        "<<",
        "*a",
        "&a",
        "!!int '3'",
        "!!python/name:os.system",
        "'",
        '"',
        "|",
        ">",
        "@x",
        "`x`",
        "%x",
    ),
    *(
        "!!python/object/apply:os.system ['touch planted']",
        "!!python/object/new:os.system [x]",
        "!!binary aGk=",
        "!x y",
    ),
    *(
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!timestamp 2001-01-01",
        "? a",
        "- - - a",
        "{a: {b: {c: }}}",
        "[1, [2, [3]]]",
    ),
    *(
        "9" * 5000,
        "1" + "_0" * 3000,
        "'\\ud800'",
        '"\\ud800"',
        '"\\x00"',
        "\u2028",
        "\ufeff",
        "\x07",
        "é",
        "a: b: c",
        "# c",
    ),
)
LINES = (
    *(
        "<<: *a\n",
        "<<: {run: {dir: x}}\n",
        "? [a, b]\n: c\n",
        "---\n",
        "...\n",
        "%YAML 1.2\n---\n",
        "\tx: 1\n",
        "run: *a\n",
    ),
    *(
        "a: &a [*a]\n",
        "train: &a {steps: *a}\n",
        "? &k k\n: *k\n",
        "run:\n",
        "run: {dir: y}\n",
        "data: &d {sources: *d}\n",
    ),
    *(
        "x" * 3000 + ": 1\n",
        "[" * 3000 + "\n",
        "- " * 2000 + "a\n",
        "{" * 500 + "}" * 500 + "\n",
        "? " * 800 + "a\n",
    ),
)


MOST_BYTES = 60_000
"""PyYAML reads some 60 kB in a second, whatever they are."""


def mutate_yaml(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A damaged line, value, structure or byte."""
    return _mutated(draw, content, others)[:MOST_BYTES]


def _mutated(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    kind = draw.random()
    if kind < 0.2:
        return mutate_bytes(draw, content, others)
    if kind < 0.45:
        value = _pairs(yaml.safe_load(content))
        for _ in range(draw.choice((1, 1, 2, 3))):
            value = change(draw, value, ())
        return dump(value).encode("utf-8", "surrogatepass")
    lines = content.decode().splitlines(keepends=True)
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(lines))
        if kind < 0.7:
            left, colon, _ = lines[at].rpartition(":")
            lines[at] = f"{left}{colon} {draw.choice(SCALARS)}\n"
        elif kind < 0.9:
            indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
            lines.insert(at + draw.randrange(2), indent * draw.randrange(2) + draw.choice(LINES))
        else:
            lines[at] = draw.choice((" ", "  ", "- ", "\t", "# ", "!!map ", "&a ", "? ")) + lines[at]
    return "".join(lines).encode("utf-8", "surrogatepass")


def _pairs(value: object) -> object:
    if isinstance(value, dict):
        return Pairs((str(key), _pairs(item)) for key, item in value.items())
    if isinstance(value, list):
        return [_pairs(item) for item in value]
    return Raw(f'"{value}"') if hasattr(value, "isoformat") else value


def planted_yaml(_: Path) -> Mapping[str, bytes]:
    """Objects of Python, and aliases that stand for far more than is written."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    merged = "m0: &m0 {a: 1}\n" + "".join(
        f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 30)
    )
    return {
        "object": b"!!python/object/apply:os.system ['touch planted']\n",
        "object in a value": b"run: {dir: !!python/object/apply:os.system ['touch planted']}\n",
        "laughs": laughs.encode(),
        "laughs of a section": (laughs + "data: {sources: *a11}\n").encode(),
        "laughs of merges": merged.encode(),
        "circle": b"data: &d {sources: *d}\n",
        "circle of lists": b"data: {sources: &s [*s]}\n",
        "circle of all": b"&a\nrun: *a\n",
        "deep list": b"run: " + b"[" * 50_000,
        "deep map": b"{a: " * 20_000,
        "deep sequence": b"- " * 20_000,
        "deep closed": b"run: " + b"[" * 5000 + b"]" * 5000,
        "long key": b"? " + b"x" * 200_000 + b"\n: 1\n",
        "many keys": b"".join(b"k%d: 1\n" % n for n in range(3000)),
        "many of one key": b"run: {dir: x}\n" * 3000,
    }
