"""Choosing the fastest library that gives exactly the ids of the tokenizer's own library.

Place in the flow: `preprocess` asks here for an engine before it reads the corpus, and later lets it be verified.
Invariant: no engine is used that gave another id than the reference on any text compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cptron.errors import DataError
from cptron.tokens.engine_gigatoken import GigatokenEngine
from cptron.tokens.engine_reference import Engine, Ids, Lengths, ReferenceEngine
from cptron.tokens.engine_samples import adversarial_texts
from cptron.tokens.engine_snaptokens import SnaptokensEngine
from cptron.tokens.tokenizer import Tokenizer, one_line

__all__ = ["Difference", "Engine", "EngineName", "choose_engine", "first_difference", "verify"]

EngineName = Literal["auto", "gigatoken", "snaptokens", "reference"]
_FAST: dict[str, Callable[[Tokenizer], Engine]] = {
    "gigatoken": GigatokenEngine,
    "snaptokens": SnaptokensEngine,
}
_MAX_SAMPLE_BYTES = 64 << 10
_EXCERPT_CHARS = 40


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where an engine's ids are not the reference's."""

    text: int  # index into the texts compared
    token: int  # index into the text's ids
    excerpt: str  # what stands there, as a Python literal


def choose_engine(
    tokenizer: Tokenizer, sample: Sequence[bytes], wanted: EngineName = "auto"
) -> tuple[Engine, list[str]]:
    """The fastest engine that gives exactly the reference's ids on `sample` (its first 64 KiB) and on built-in
    adversarial texts; the notes say for people what was passed over and why.

    Raises DataError when the engine `wanted` is not installed, does not know the tokenizer or differs.
    """
    reference = ReferenceEngine(tokenizer)
    if wanted == "reference":
        return reference, []
    texts = [*_first_bytes(sample, _MAX_SAMPLE_BYTES), *adversarial_texts(tokenizer.added_tokens)]
    expected = reference.encode(texts)
    notes: list[str] = []
    for name in _FAST if wanted == "auto" else (wanted,):
        engine = _load_exact(name, tokenizer, texts, expected)
        if not isinstance(engine, str):
            return engine, notes
        if wanted != "auto":
            raise DataError(f"engine {name} must give the reference's ids: {engine}; use --engine auto")
        notes.append(f"{name} passed over: {engine}")
    return reference, notes


def first_difference(engine: Engine, tokenizer: Tokenizer, texts: Sequence[bytes]) -> Difference | None:
    """Where `engine` first gives other ids than the tokenizer's own library, if anywhere in `texts`."""
    return _compare(engine.encode(texts), ReferenceEngine(tokenizer).encode(texts), tokenizer, texts)


def verify(engine: Engine, tokenizer: Tokenizer, texts: Sequence[bytes]) -> None:
    """Raise DataError, which shows the place, when `engine` gives other ids than the tokenizer's own library."""
    found = first_difference(engine, tokenizer, texts)
    if found is not None:
        raise DataError(
            f"{engine.name} gives other ids than {tokenizer.library} at {found.excerpt} (token {found.token} of "
            f"text {found.text}), must give the same; use --engine reference"
        )


def _load_exact(
    name: str, tokenizer: Tokenizer, texts: Sequence[bytes], expected: tuple[Ids, Lengths]
) -> Engine | str:
    """The engine, or why it cannot be used."""
    try:
        with _quiet_stderr():
            engine = _FAST[name](tokenizer)
            actual = engine.encode(texts)
    except ImportError:
        return "not installed; pip install 'cptron[data]'"
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of a Rust library derives from BaseException only
        return f"it does not know this tokenizer ({one_line(error)})"
    found = _compare(actual, expected, tokenizer, texts)
    return engine if found is None else f"its ids differ from those of {tokenizer.library} at {found.excerpt}"


def _compare(
    actual: tuple[Ids, Lengths], expected: tuple[Ids, Lengths], tokenizer: Tokenizer, texts: Sequence[bytes]
) -> Difference | None:
    (ids, lengths), (true_ids, true_lengths) = actual, expected
    if np.array_equal(lengths, true_lengths) and np.array_equal(ids, true_ids):
        return None
    start = true_start = 0
    for number, text in enumerate(texts):
        # An engine may give too few lengths or ids.
        mine = ids[start : start + int(lengths[number])] if number < len(lengths) else ids[:0]
        true = true_ids[true_start : true_start + int(true_lengths[number])]
        if not np.array_equal(mine, true):
            return _difference(number, text, mine, true, tokenizer)
        start, true_start = start + len(mine), true_start + len(true)
    return Difference(len(texts), 0, "the end")


def _difference(number: int, text: bytes, mine: Ids, true: Ids, tokenizer: Tokenizer) -> Difference:
    shared = min(len(mine), len(true))
    unequal = np.flatnonzero(mine[:shared] != true[:shared])
    token = int(unequal[0]) if len(unequal) else shared
    # Where a tokenizer drops or rewrites characters this is a little off, but near enough to be found.
    at = len(tokenizer.decode(true[:token].tolist()))
    shown = text.decode("utf-8")
    start = max(0, min(at, len(shown) - 1) - _EXCERPT_CHARS // 4)
    return Difference(number, token, ascii(shown[start : start + _EXCERPT_CHARS]))


def _first_bytes(texts: Sequence[bytes], limit: int) -> Iterator[bytes]:
    for text in texts:
        if limit <= 0:
            return
        cut = text[:limit]
        yield cut.decode("utf-8", errors="ignore").encode("utf-8") if len(cut) < len(text) else text
        limit -= len(cut)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what a panicking Rust library writes to the process's error output."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
