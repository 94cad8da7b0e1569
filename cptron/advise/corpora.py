"""Token files -> what advice needs to know of them.

Place in the flow: `main` names prefixes, `advice` gets plain numbers. Imports no torch. Invariant: only indices and
manifests are read, in bounded memory; files of another tokenizer than the base's are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cptron.advise.facts import Corpus, Held, LengthBin, Suite
from cptron.errors import ConfigError, DataError
from cptron.inspect_tokens import Facts, describe_tokens, is_prefix
from cptron.tokens.index_layout import idx_path

_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")
_ENDINGS = ("_text_document", "_messages_document", "_document")


def named(flag: str, words: Sequence[str]) -> list[tuple[str, str]]:
    """(name, prefix) of each `NAME=PREFIX` or `PREFIX`. Raises `ConfigError` where there are no token files."""
    found = []
    for word in words:
        before, equals, after = word.partition("=")
        has_name = bool(equals and before) and not is_prefix(word)
        name, prefix = (before, after) if has_name else (_name(word), word)
        if not is_prefix(prefix):
            raise ConfigError(
                f"{flag} {word}: {prefix or repr('')} is no prefix of token files ({idx_path(prefix)} does not "
                "exist); `cptron preprocess` makes them"
            )
        found.append((name, _without_ending(prefix)))
    return found


def read_corpus(name: str, prefix: str, fingerprint: str) -> Corpus:
    """A training source. Raises DataError where the files are damaged or empty, or not of the tokenizer with this
    fingerprint (empty: not known)."""
    facts = _described(prefix, fingerprint)
    lengths = facts["document_length_tokens"]
    return Corpus(
        name=name,
        path=prefix,
        documents=facts["documents"],
        tokens=facts["tokens"],
        median_tokens=lengths["median"],
        longest_tokens=round(lengths["max"]),
        lengths=tuple(
            LengthBin(first=row["from"], last=row["to"], documents=row["documents"], tokens=row["tokens"])
            for row in facts["length_histogram"]
        ),
    )


def read_held(name: str, prefix: str, suite: Suite, fingerprint: str) -> Held:
    """A validation set. Raises as `read_corpus`."""
    return Held(name=name, path=prefix, suite=suite, tokens=_described(prefix, fingerprint)["tokens"])


def _described(prefix: str, fingerprint: str) -> Facts:
    facts = describe_tokens(prefix)
    if not facts["tokens"]:
        raise DataError(f"{prefix} holds 0 tokens, at least 2 are needed; leave it out")
    made_with = facts.get("tokenizer", {}).get("fingerprint", "")
    if fingerprint and made_with and made_with != fingerprint:
        raise DataError(
            f"{prefix} was tokenized with {made_with[:12]}, but the base's tokenizer is {fingerprint[:12]}; "
            "run cptron preprocess with the base's tokenizer"
        )
    return facts


def _name(prefix: str) -> str:
    """A name for a prefix that was given without one."""
    name = Path(_without_ending(prefix)).name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return _UNFIT.sub("-", name)


def _without_ending(prefix: str) -> str:
    """The prefix where one of its files was named."""
    for ending in (".bin", ".idx"):
        if prefix.endswith(ending) and not idx_path(prefix).is_file():
            return prefix.removesuffix(ending)
    return prefix
