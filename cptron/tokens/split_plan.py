"""Which document goes to which output when token files are split.

Place in the flow: `split` asks it for every piece of documents. Invariant: an assignment is a pure function of the
document's number and of what the user asked for, so that it can be repeated on any machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cptron.errors import ConfigError, DataError
from cptron.tokens.index_layout import Int64Array
from cptron.tokens.token_files import TokenFiles

LEFT_OUT = -1
"""Instead of an output's number."""


class Plan(Protocol):
    """Assigns documents to outputs."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is appended to the output prefix for each output; may be empty for a single one."""

    def assign(self, numbers: Int64Array) -> Int64Array:
        """Output of each document of `numbers` [documents], or LEFT_OUT."""

    def describe(self, output: int) -> str:
        """What output number `output` holds, for its manifest."""


@dataclass(frozen=True)
class Contiguous:
    """Output i holds documents `bounds[i]` up to `bounds[i + 1]`; the others are left out."""

    names: tuple[str, ...]
    bounds: tuple[int, ...]

    def assign(self, numbers: Int64Array) -> Int64Array:
        """See `Plan`."""
        outputs = np.searchsorted(np.array(self.bounds), numbers, side="right") - 1
        return np.where(outputs < len(self.names), outputs, LEFT_OUT)

    def describe(self, output: int) -> str:
        """See `Plan`."""
        return f"documents {self.bounds[output]}:{self.bounds[output + 1]}"


@dataclass(frozen=True)
class Shuffled:
    """A hash of seed and document number decides, so that output i gets about its fraction."""

    names: tuple[str, ...]
    fractions: tuple[Fraction, ...]
    seed: int

    def assign(self, numbers: Int64Array) -> Int64Array:
        """See `Plan`."""
        ends = [sum(self.fractions[: i + 1]) * 2**64 for i in range(len(self.fractions) - 1)]
        thresholds = np.array([min(int(end), 2**64 - 1) for end in ends], np.uint64)
        return np.searchsorted(thresholds, _hash(self.seed, numbers), side="right")

    def describe(self, output: int) -> str:
        """See `Plan`."""
        return f"fraction {self.fractions[output]}, --shuffle-seed {self.seed}"


def by_range(text: str, num_documents: int) -> Contiguous:
    """One output with documents `a:b` (either end may be left out). Raises DataError when outside the file."""
    first, colon, last = text.partition(":")
    if not colon or not all(part.isdecimal() for part in (first, last) if part):
        raise ConfigError(
            f"--documents {text} must be FIRST:STOP with numbers >= 0; give 0:100, 100: or :100"
        )
    start, stop = int(first or 0), int(last or num_documents)
    if not start < stop <= num_documents:
        raise DataError(f"--documents {text} must be a range within 0:{num_documents}; narrow it")
    return Contiguous(("",), (start, stop))


def by_fractions(
    fractions: Sequence[Fraction], names: Sequence[str], seed: int | None, num_documents: int
) -> Contiguous | Shuffled:
    """Outputs by share of documents: in file order, or by hash when there is a seed."""
    if len(names) != len(fractions) or len(set(names)) != len(names) or not all(names):
        raise ConfigError(
            f"--names {','.join(names)} must be {len(fractions)} different names, one for each fraction; correct it"
        )
    if sum(fractions) != 1 or min(fractions) <= 0:
        shown = ",".join(str(float(fraction)) for fraction in fractions)
        raise ConfigError(
            f"--fractions {shown} must be > 0 with sum 1, the sum is {float(sum(fractions))}; correct them"
        )
    suffixes = tuple(f"_{name}" for name in names)
    if seed is not None:
        return Shuffled(suffixes, tuple(fractions), seed)
    ends = [int(num_documents * sum(fractions[:i]) + Fraction(1, 2)) for i in range(len(fractions) + 1)]
    for name, start, stop in zip(names, ends[:-1], ends[1:], strict=True):
        if start == stop:
            raise DataError(
                f"--fractions leave 0 of {num_documents} documents to {name}, at least 1 is needed; raise its fraction"
            )
    return Contiguous(suffixes, tuple(ends))


def by_max_tokens(files: TokenFiles, max_tokens: int) -> Contiguous:
    """As few outputs in file order as hold at most `max_tokens` each. Raises DataError for a longer document."""
    if max_tokens < 1:
        raise ConfigError(f"--max-tokens {max_tokens} must be >= 1; raise it")
    bounds, room = [0], max_tokens
    for piece in files.pieces():
        ends = np.cumsum(piece.lengths)
        longest = int(piece.lengths.max())
        if longest > max_tokens:
            number = piece.first + int(piece.lengths.argmax())
            raise DataError(
                f"document {number} has {longest} tokens, must be at most --max-tokens {max_tokens}; raise that"
            )
        done = 0
        # Only as many steps as there are borders: each finds the next one by bisection.
        while (stop := int(np.searchsorted(ends, done + room, side="right"))) < len(ends):
            bounds.append(piece.first + stop)
            done, room = int(ends[stop - 1]) if stop else 0, max_tokens
        room -= int(ends[-1]) - done
    bounds.append(files.num_documents)
    count = len(bounds) - 1
    return Contiguous(tuple(f"_{i:05d}-of-{count:05d}" for i in range(count)), tuple(bounds))


def _hash(seed: int, numbers: Int64Array) -> npt.NDArray[np.uint64]:
    """64 uniform bits for each number: the finalizer of SplitMix64 over a counter that starts at a key of the seed."""
    key = int.from_bytes(hashlib.sha256(f"cptron split {seed}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        bits = np.uint64(key) + numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))
