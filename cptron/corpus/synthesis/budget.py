"""What may be spent on an endpoint, over all processes and runs that share a cache.

Place in the flow: `endpoint` reserves before every try and settles after it. Invariant: what is spent never exceeds the
bounds: a try that is under way counts with the most that it can cost, and so does one that a kill cut off.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cptron.corpus.synthesis.cache import LOCKS
from cptron.corpus.synthesis.locks import wait_for
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.manifest import build_record

SPENT = "spent.json"
_PLACE = 1 << 60
"""Of its lock."""


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
        with self._changing() as spent:
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
        """A try cost `tokens`, for which there were `reserved`."""
        with self._changing() as spent:
            spent.tokens += tokens - reserved

    @contextmanager
    def _changing(self) -> Iterator[_Open]:
        path = self._directory / SPENT
        try:
            with wait_for(self._directory / LOCKS, [_PLACE]):
                now = _Open(**asdict(read_spent(self._directory)))
                yield now
                partial = path.with_name(f".{SPENT}.{os.getpid()}-{threading.get_ident()}.partial")
                partial.write_text(json.dumps(asdict(Spent(now.requests, max(0, now.tokens)))) + "\n")
                partial.replace(path)
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({error.strerror}); mend that, or name another `cache`"
            ) from None


@dataclass(slots=True)
class _Open:
    requests: int
    tokens: int


def read_spent(directory: Path) -> Spent:
    """What a cache has cost. Raises DataError where the record is damaged."""
    path = directory / SPENT
    try:
        spent: Spent = build_record(Spent, parse_json(path.read_bytes()), "it")
        if min(spent.requests, spent.tokens) < 0:
            raise ValueError("it has numbers below 0")
        return spent
    except FileNotFoundError:
        return Spent()
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); correct it, or remove it to begin at 0") from None
