"""Requests to answers, by way of the cache.

Place in the flow: `steps/synthesise` asks here. Invariant: which requests are cached as one depends on their order
alone, so a run that was killed and one that was not get the same answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from cptron.corpus.synthesis.answer import Answer, Model, NoneAnsweredError, Request
from cptron.corpus.synthesis.cache import Cache, key_of
from cptron.errors import CptronError


class Asker:
    """Asks one model. Raises a `CptronError` where there is no use in going on; what was answered is kept."""

    def __init__(self, model: Model, cache: Cache, *, cached_only: bool) -> None:
        self._model, self._cache, self._cached_only = model, cache, cached_only
        self._in_vain: list[str] = []
        """Keys of what was refused or failed since the last answer."""

    def ask(self, requests: Sequence[Request]) -> list[Answer | None]:
        """The answers, in order; None where there is none in the cache and nothing may be asked."""
        groups = list(_groups(requests, self._model.group_size))
        try:
            return self._of_groups(groups)
        except NoneAnsweredError:
            for key in self._in_vain:
                self._cache.forget(key)
            raise

    def _of_groups(self, groups: Sequence[Sequence[Request]]) -> list[Answer | None]:
        if min(self._model.concurrency, len(groups)) <= 1:
            return list(itertools.chain.from_iterable(map(self._group, groups)))
        with ThreadPoolExecutor(min(self._model.concurrency, len(groups)), "ask") as pool:
            waiting = [pool.submit(self._group, group) for group in groups]
            try:
                return [answer for future in waiting for answer in future.result()]
            except BaseException as error:
                if not isinstance(error, Exception) or isinstance(error, CptronError):
                    self._model.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _group(self, group: Sequence[Request]) -> Sequence[Answer | None]:
        key = key_of(self._model, group)
        if self._cached_only:
            return self._cache.read(key, len(group)) or [None] * len(group)
        return self._cache.read_or_ask(key, len(group), lambda: self._asked(key, group))

    def _asked(self, key: str, group: Sequence[Request]) -> list[Answer]:
        answers = self._model.answers(group)
        if all(answer.end in ("refused", "failed") for answer in answers):
            self._in_vain.append(key)
        else:
            self._in_vain.clear()
        return answers


def _groups(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
