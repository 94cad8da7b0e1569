"""What `--data` names: JSONL files, or prefixes of token files.

Place in the flow: `main` reads its arguments here before any model is opened. Invariant: what a name means is
decided by the files that exist, and never guessed: none, or both kinds, is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cptron.errors import ConfigError, DataError
from cptron.tokens.index_layout import bin_path, idx_path


@dataclass(frozen=True, slots=True)
class DataSet:
    """One set to evaluate."""

    name: str
    """As given before `=`, else the path."""
    path: str
    kind: Literal["jsonl", "tokens"]


def data_sets(words: Sequence[str], *, hugging_face: bool) -> list[DataSet]:
    """The sets that `--data` names. Raises `DataError`, or `ConfigError` for a name that is given twice.

    A Hugging Face model is evaluated on text only.
    """
    found = [_data_set(word) for word in words]
    for name, times in Counter(data.name for data in found).items():
        if times > 1:
            raise ConfigError(f"--data has the name {name} {times} times, must be once; give name=path")
    for data in found:
        if hugging_face and data.kind == "tokens":
            raise DataError(
                f"{data.path} is the prefix of token files, a Hugging Face model needs JSONL; give the text itself, "
                "or the model's checkpoint"
            )
    return found


def _data_set(word: str) -> DataSet:
    """`name=path` where there is no file of that whole name."""
    before, equals, after = word.partition("=")
    named = bool(equals and before) and not _kinds(word)
    name, path = (before, after) if named else (word, word)
    kinds = _kinds(path)
    if len(kinds) > 1:
        raise DataError(
            f"--data {path} is a file and the prefix of {idx_path(path)}, must be one of them; rename one"
        )
    if not kinds:
        raise DataError(
            f"--data {path} must be a JSONL file or the prefix of token files, but neither {path} nor "
            f"{idx_path(path)} exists; check the path"
        )
    if kinds == ["jsonl"] and Path(path).suffix in (".bin", ".idx"):
        raise DataError(
            f"--data {path} is one of two token files, must be their prefix; leave its suffix out"
        )
    return DataSet(name, path, kinds[0])


def _kinds(path: str) -> list[Literal["jsonl", "tokens"]]:
    """What exists under this name; one of two token files is enough, their reader says what is missing."""
    found: list[Literal["jsonl", "tokens"]] = ["jsonl"] if path and Path(path).is_file() else []
    if path and (idx_path(path).is_file() or bin_path(path).is_file()):
        found.append("tokens")
    return found
