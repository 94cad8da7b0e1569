"""Documents of a corpus with their language and source, a block at a time, all of them or a sample.

Place in the flow: `analyze` counts their tokens, `word_counts` their words. Invariant: whether a document is in a
sample depends on its text alone, so copies of one document are on the same side and a held-out part is one.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cptron.corpus.shard_file import read_shard
from cptron.errors import DataError
from cptron.tokens.curated import curated_among
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import Position

MAX_DOCUMENT_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20

Part = tuple[float, float]
"""Documents whose draw from [0, 1) is at least the first and below the second."""
ALL: Part = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Text:
    """One document."""

    text: str
    num_bytes: int
    """In UTF-8."""
    language: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """What to read."""

    inputs: tuple[str, ...]
    """Files, globs and directories, as `cptron preprocess` takes them."""
    key: str = "text"
    language_key: str | None = None
    """Key of the language; None: what the curation wrote, else the script of a document's letters."""
    source_key: str | None = None
    """Key of the source; None: that of the curated corpus, else the file."""
    part: Part = ALL
    rejected: Counter[str] = field(default_factory=Counter)
    """Reason -> records that were no document, once they have been read."""

    def blocks(self) -> Iterator[list[Text]]:
        """The documents of the part, in order. Raises DataError where a file cannot be read, or holds none."""
        keys = [self.key, *(key for key in (self.language_key, self.source_key) if key)]
        any_document = False
        inputs = expand_inputs(self.inputs)
        curated = {path for corpus in curated_among(inputs) for path in corpus.files}
        for source in inputs:
            if source.path in curated and keys == ["text"]:
                for texts in _of_curation(source.path, self.part):
                    any_document = True
                    if texts:
                        yield texts
                continue
            blocks = read_blocks([source], Position(0, 0, 0), max_record_bytes=MAX_DOCUMENT_BYTES, keys=keys)
            for block in blocks:
                parsed = block.parse(keys, chat=False)
                self.rejected.update(reject.reason for reject in parsed.rejects)
                any_document = any_document or bool(parsed.values)
                texts = [
                    self._text(values, source.path.name)
                    for values in parsed.values
                    if isinstance(values[0], bytes) and in_part(values[0], self.part)
                ]
                if texts:
                    yield texts
        if not any_document:
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejected.items()))
            raise DataError(
                f"{', '.join(self.inputs)} holds 0 documents with the key {self.key!r} ({why or 'it is empty'}), at "
                "least 1 is needed; name the right file, or the keys of its records"
            )

    def _text(self, values: Sequence[object], file: str) -> Text:
        text, *named = [value.decode() for value in values if isinstance(value, bytes)]
        language = named.pop(0) if self.language_key else script_of(text)
        return Text(text, len(values[0]), language, named[0] if self.source_key else file)  # type: ignore[arg-type]


def _of_curation(path: Path, part: Part) -> Iterator[list[Text]]:
    """Blocks of a file of a curated corpus: there is a source, and a language where a step has told it."""
    texts: list[Text] = []
    waiting_bytes = 0
    for document in read_shard(path):
        if in_part(document.text.encode(), part):
            language = document.meta.get("language")
            language = language if isinstance(language, str) else script_of(document.text)
            texts.append(Text(document.text, document.num_bytes, language, document.source))
        waiting_bytes += document.num_bytes
        if waiting_bytes >= _BLOCK_BYTES:
            yield texts
            texts, waiting_bytes = [], 0
    yield texts


def in_part(text: bytes, part: Part) -> bool:
    """Whether a document belongs to a part."""
    if part == ALL:
        return True
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64
    return part[0] <= drawn < part[1]


def script_of(text: str) -> str:
    """The script of most letters, as Unicode names it; `none` where there is no letter."""
    found: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            found[_script(character)] += count
    return min(found, key=lambda name: (-found[name], name)) if found else "none"


@functools.lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """First word of the character's name: Unicode's scripts are not in the standard library."""
    return unicodedata.name(character, "unnamed").split()[0].capitalize()
