"""Answers on disk: what a model was asked once is not asked again.

Place in the flow: `ask` looks here first; runs that were killed, and runs with other steps behind it, share it.
Invariant: the first answer that is published under a key stays, unless it turned out to be none; a file with its final
name is whole. So all processes go on with the same answer, though the model itself may give another one each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from cptron.corpus.synthesis.answer import Answer, End, Model, Request
from cptron.corpus.synthesis.locks import one_of
from cptron.durable import fsync_path, make_directory
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.partials import own_partial

FORMAT_VERSION = 1
LOCKS = "locks"
"""File of the locks: below 2^60 keys, above them the budget and the slots of endpoints."""
_WAIT_S = 0.05


def key_of(model: Model, requests: Sequence[Request]) -> str:
    """Hex that stands for the model, its parameters and what is asked."""
    asked = {
        "format": FORMAT_VERSION,
        "model": dict(model.identity),
        "parameters": dict(model.parameters),
        "requests": [asdict(request) for request in requests],
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Cache:
    """One directory with a small file for each group of requests. Raises DataError where it cannot be used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            make_directory(directory)
        except OSError as error:
            raise self._unusable(directory, error) from None

    def read(self, key: str, count: int) -> list[Answer] | None:
        """The answers, if they are there; `count` of them, or the file is damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(path, error) from None
        return _answers(path, content, count)

    def read_or_ask(self, key: str, count: int, ask: Callable[[], list[Answer]]) -> list[Answer]:
        """The `count` answers. Two that ask the same wait for one another."""
        lock = self._directory / LOCKS
        place = int(key[:15], 16)
        while (found := self.read(key, count)) is None:
            try:
                with one_of(lock, [place]) as held:
                    if held:
                        return self.read(key, count) or self._publish(key, ask())  # it may have come between
            except OSError as error:
                raise self._unusable(lock, error) from None
            time.sleep(_WAIT_S)
        return found

    def forget(self, key: str) -> None:
        """Have it asked again, as what is stored was no answer."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(path, error) from None

    def _publish(self, key: str, answers: list[Answer]) -> list[Answer]:
        """Store them, unless there are some; returns those that are stored."""
        path = self._path(key)
        partial = own_partial(path)
        content = json.dumps([asdict(answer) for answer in answers]) + "\n"
        try:
            make_directory(path.parent)
            with partial.open("w", encoding="utf-8") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(partial, path)
            except FileExistsError:
                return self.read(key, len(answers)) or answers
            except OSError:
                partial.replace(path)  # no second names there; the lock keeps others off
            finally:
                partial.unlink(missing_ok=True)
                fsync_path(path.parent)  # else a power cut may take back what a shard was made of
        except OSError as error:
            raise self._unusable(path, error) from None
        return answers

    def _path(self, key: str) -> Path:
        return self._directory / key[:3] / f"{key[3:]}.json"

    def _unusable(self, path: Path, error: OSError) -> DataError:
        return DataError(
            f"the cache of answers {path} cannot be used ({error.strerror}); mend that, or name another `cache`"
        )


def entries(directory: Path) -> list[Path]:
    """All that is stored, in an order that depends on nothing else."""
    return sorted(directory.glob("???/*.json"))


def _answers(path: Path, content: bytes, count: int) -> list[Answer]:
    try:
        values = parse_json(content)
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"it holds no list of {count} answers")
        return [_answer(one) for one in values]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and it is asked again") from None


def _answer(values: Any) -> Answer:
    """Raises TypeError or ValueError for anything else."""
    answer = Answer(**values)
    if [type(getattr(answer, name)) for name in ("text", "end", "tokens_in", "tokens_out")] != [
        str,
        str,
        int,
        int,
    ]:
        raise TypeError("an answer must have a text, an end and numbers of tokens")
    if answer.end not in get_args(End):
        raise ValueError(f"an answer ends with {answer.end!r}")
    answer.text.encode()  # halves of surrogate pairs, which JSON can spell, are no text
    return answer
