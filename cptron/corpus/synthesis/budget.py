"""What may be spent on an endpoint, over all processes and runs that share a cache.

Place in the flow: `endpoint` reserves before every try and settles after it. Invariant: what is spent never exceeds the
bounds: a try that is under way counts with the most that it can cost, and so does one that a kill cut off. No try is
sent before the disk has it: a power cut forgets none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cptron.corpus.synthesis.cache import LOCKS
from cptron.corpus.synthesis.locks import wait_for
from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.manifest import build_record

SPENT = "spent.json"
_PLACE = 1 << 60
"""Of its lock."""
_BYTES = 128
"""Of the file, always: its one line is written over in place. So few bytes lie in one sector, which a disk writes whole
or not at all, and to force them out costs a small part of what a new file and its name would."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Since the cache began."""

    requests: int = 0
    """Tries that were sent."""
    tokens: int = 0
    """In and out; of tries that failed or did not say, the most they can have cost."""


class Budget:
    """Bounds on a cache's `Spent`; 0 for none."""

    def __init__(self, directory: Path, max_requests: int, max_tokens: int) -> None:
        self._directory = directory
        self._max_requests, self._max_tokens = max_requests, max_tokens

    def reserve(self, tokens: int) -> None:
        """Count a try that costs at most `tokens`. Raises DataError where there is no budget for it."""
        with self._changing(durably=True) as spent:
            spent.requests += 1
            spent.tokens += tokens
            for unit, most in (("requests", self._max_requests), ("tokens", self._max_tokens)):
                if most and getattr(spent, unit) > most:
                    raise DataError(
                        f"the budget of {most:,} {unit} is spent (with the next request {getattr(spent, unit):,}); "
                        f"raise max_{unit} and run the same command again, it goes on, or set cached_only to end "
                        "with what there is"
                    )

    def settle(self, reserved: int, tokens: int) -> None:
        """A try cost `tokens`, for which there were `reserved`; a power cut may forget that, and it then counts with
        what was reserved."""
        with self._changing(durably=False) as spent:
            spent.tokens += tokens - reserved

    @contextmanager
    def _changing(self, *, durably: bool) -> Iterator[_Open]:
        path = self._directory / SPENT
        try:
            with wait_for(self._directory / LOCKS, [_PLACE]):
                now = _Open(**asdict(read_spent(self._directory)))
                yield now
                _write(path, Spent(now.requests, max(0, now.tokens)), durably=durably)
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({error.strerror}); mend that, or name another `cache`"
            ) from None


@dataclass(slots=True)
class _Open:
    requests: int
    tokens: int


def read_spent(directory: Path) -> Spent:
    """What a cache has cost, nothing where no endpoint was asked. Raises DataError where the record is damaged: an
    empty one does not count as 0."""
    path = directory / SPENT
    try:
        spent: Spent = build_record(Spent, parse_json(_content(path)), "it")
        if min(spent.requests, spent.tokens) < 0:
            raise ValueError("it has numbers below 0")
        return spent
    except FileNotFoundError:
        return Spent()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); mend that, or name another `cache`"
        ) from None
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); write what the provider has counted into it, as "
            '{"requests": 5, "tokens": 700}, or remove it to begin at 0'
        ) from None


def _content(path: Path) -> bytes:
    """As it was at one moment, though others may write over it."""
    content = path.read_bytes()
    while (again := path.read_bytes()) != content:
        content = again
    return content


def _write(path: Path, spent: Spent, *, durably: bool) -> None:
    """In place, but for a file that is not there or was made by hand. Raises OSError."""
    line = json.dumps(asdict(spent)).ljust(_BYTES - 1) + "\n"
    assert len(line) == _BYTES, line
    if not path.exists() or path.stat().st_size != _BYTES:
        replace_text(path, line)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, line.encode(), 0)
        if durably:
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
