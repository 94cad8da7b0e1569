"""Programs that tell languages, behind one call: text -> label, score; and the labels that each can say.

Place in the flow: `steps/language` opens one. Invariant: each is deterministic, works offline and says something of
any text; `und` with score 0 where there is nothing to tell it from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cptron.corpus import kernels
from cptron.corpus.optional import optional_module
from cptron.errors import DataError

Label = Callable[[str], tuple[str, float]]


class Engine(NamedTuple):
    """One program, opened."""

    label: Label
    labels: frozenset[str] | None
    """All that it can say of a text; None where the program does not tell."""


UNKNOWN = ("und", 0.0)
PACKAGES: dict[str, tuple[str, ...]] = {
    "fasttext": ("fasttext-predict",),
    "py3langid": ("py3langid", "numpy"),
    "lingua": ("lingua-language-detector",),
    "script": (),
}
"""Distributions by engine."""

_SCRIPTS: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("Latn", ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0x24F), (0x1E00, 0x1EFF))),
    ("Grek", ((0x370, 0x3FF), (0x1F00, 0x1FFF))),
    ("Cyrl", ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F))),
    ("Armn", ((0x530, 0x58F),)),
    ("Hebr", ((0x590, 0x5FF),)),
    ("Arab", ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC))),
    ("Deva", ((0x900, 0x963), (0x966, 0x97F), (0xA8E0, 0xA8FF))),
    ("Beng", ((0x980, 0x9FF),)),
    ("Guru", ((0xA00, 0xA7F),)),
    ("Gujr", ((0xA80, 0xAFF),)),
    ("Orya", ((0xB00, 0xB7F),)),
    ("Taml", ((0xB80, 0xBFF),)),
    ("Telu", ((0xC00, 0xC7F),)),
    ("Knda", ((0xC80, 0xCFF),)),
    ("Mlym", ((0xD00, 0xD7F),)),
    ("Sinh", ((0xD80, 0xDFF),)),
    ("Thai", ((0xE00, 0xE7F),)),
    ("Laoo", ((0xE80, 0xEFF),)),
    ("Tibt", ((0xF00, 0xFFF),)),
    ("Mymr", ((0x1000, 0x109F),)),
    ("Geor", ((0x10A0, 0x10FF),)),
    ("Ethi", ((0x1200, 0x139F),)),
    ("Khmr", ((0x1780, 0x17FF),)),
    ("Hang", ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF))),
    ("Jpan", ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))),
    ("Hani", ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))),
)
"""Blocks of letters, with the marks that combine with them. Kana make a text Japanese, and count with its Han."""


def _fasttext(step: str, path: str) -> Engine:
    module = optional_module("fasttext", "fasttext-predict", step)
    try:
        model: Any = module.load_model(path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise DataError(f"{path} must be a fastText model ({error}); download it again") from None

    def label(text: str) -> tuple[str, float]:
        labels, scores = model.predict(" ".join(text.split()), k=1)
        return (labels[0].removeprefix("__label__"), min(1.0, float(scores[0]))) if labels else UNKNOWN

    return Engine(label, None)


def _py3langid(step: str, path: str) -> Engine:
    module = optional_module("py3langid.langid", "py3langid", step)
    identifier = _by_kernel(module.LanguageIdentifier).from_model_file(module.MODEL_FILE, norm_probs=True)

    def label(text: str) -> tuple[str, float]:
        if not text.strip():
            return UNKNOWN
        language, score = identifier.classify(text)
        return str(language), float(score)

    return Engine(label, frozenset(map(str, identifier.nb_classes)))


def _by_kernel(base: Any) -> Any:
    """py3langid's `LanguageIdentifier`, `base`, whose automaton the kernel runs: to the same bits of every score."""

    class Identifier(base):  # type: ignore[misc]
        nb_ptc: Any

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            moves, rows, features = self.tk_nextmove, self.tk_row, self.tk_output
            self._automaton = kernels.Automaton(
                np.asarray(moves, np.uint32), np.asarray(rows, np.int32), np.asarray(features, np.int32)
            )
            self.nb_ptc = self.nb_ptc.astype(
                np.float32
            )  # of 16 bits: else turned into these for every document

        def _raw_score(self, text: bytes) -> Any:
            features, times = self._automaton.visits(text)
            if not len(features):
                return super()._raw_score(text)
            return np.log1p(times) @ self.nb_ptc[features] + self.nb_pc

    return Identifier


def _lingua(step: str, path: str) -> Engine:
    module = optional_module("lingua", "lingua-language-detector", step)
    detector: Any = module.LanguageDetectorBuilder.from_all_languages().build()

    def name(language: Any) -> str:
        return str(language.iso_code_639_1.name.lower())

    def label(text: str) -> tuple[str, float]:
        values = detector.compute_language_confidence_values(text)
        if not values or not values[0].value:
            return UNKNOWN
        return name(values[0].language), float(values[0].value)

    return Engine(label, frozenset(map(name, module.Language.all())))


def _script(step: str, path: str) -> Engine:
    table = np.zeros(0x110000, np.uint8)
    for number, (_, ranges) in enumerate(_SCRIPTS, start=1):
        for first, last in ranges:
            table[first : last + 1] = number
    names = [name for name, _ in _SCRIPTS]
    kana, han = names.index("Jpan"), names.index("Hani")

    def label(text: str) -> tuple[str, float]:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        counts = np.bincount(table[points], minlength=len(names) + 1)[1:]
        total = int(counts.sum())
        if not total:
            return UNKNOWN
        if counts[kana]:
            counts[kana] += counts[han]
            counts[han] = 0
        best = int(counts.argmax())
        return names[best], int(counts[best]) / total

    return Engine(label, frozenset(names))


ENGINES: dict[str, Callable[[str, str], Engine]] = {
    "fasttext": _fasttext,
    "py3langid": _py3langid,
    "lingua": _lingua,
    "script": _script,
}
"""Name -> what makes it of the step's name and the model's path."""
