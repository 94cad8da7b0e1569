"""Real documents in Vietnamese and Hindi for the rows of the tokenizer: LibreOffice's help, a package of Debian each.

Place in the flow: `curate_tokenizer` learns from one part and measures on the other. Invariant: a paragraph is in one
document of one part only, and each is in the language: most of these manuals is not translated, some not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.curate.texts import fetch, text_of
from benchmarks.data.measure import BenchmarkError


@dataclass(frozen=True)
class Language:
    """Which documents, and what is in the language."""

    name: str
    package: str
    characters: re.Pattern[str]
    """That only the language has, beside other languages of its script."""
    least: float
    """Their share of the letters of a paragraph that is in the language."""


LANGUAGES = {
    "vi": Language("Vietnamese", "libreoffice-help-vi", re.compile("[\u00c0-\u01b0\u1ea0-\u1ef9]"), 0.1),
    "hi": Language("Hindi", "libreoffice-help-hi", re.compile("[\u0900-\u097f]"), 0.5),
}
LEAST_CHARACTERS = 200
"""Of a document, once other paragraphs have been left out."""
HELD_OUT = 0.1
"""Share of the documents that nothing is learned from."""


def write(language: str, cache: Path, directory: Path) -> tuple[Path, Path]:
    """JSONL files to learn from and to measure on. Raises BenchmarkError where the package cannot be fetched."""
    texts = documents(LANGUAGES[language], cache)
    cut = round(len(texts) * HELD_OUT)
    paths = directory / f"{language}.train.jsonl", directory / f"{language}.valid.jsonl"
    for path, part in zip(paths, (texts[cut:], texts[:cut]), strict=True):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
        path.write_text("".join(lines), encoding="utf-8")
    return paths


def documents(language: Language, cache: Path) -> list[str]:
    """The paragraphs in the language, by document, in the order of hashes of the names."""
    top = fetch(cache, [language.package]) / language.package
    pages = {str(path.relative_to(top)): path for path in top.rglob("*.html") if not path.is_symlink()}
    seen: set[str] = set()
    found = []
    for name in sorted(pages, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest()):
        own = dict.fromkeys(line.strip() for line in text_of(pages[name]).splitlines())
        kept = [line for line in own if line not in seen and is_in(language, line)]
        if sum(map(len, kept)) >= LEAST_CHARACTERS:
            seen.update(kept)
            found.append("\n".join(kept))
    if not found:
        raise BenchmarkError(f"{top} has no page in {language.name}; remove it, and it is fetched again")
    return found


def is_in(language: Language, paragraph: str) -> bool:
    """Whether a paragraph is in the language, by its letters."""
    letters = sum(map(str.isalpha, paragraph))
    return letters > 0 and len(language.characters.findall(paragraph)) / letters >= language.least
