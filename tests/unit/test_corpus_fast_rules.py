"""Rules and languages by the kernels, against the libraries whose results they must have."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import datatrove.pipeline.filters as filters
import numpy as np
import pytest
from datatrove.data import Document as TheirDocument
from ftfy import TextFixerConfig, badness, chardata, fix_text
from py3langid import langid

from cptron.corpus import kernels
from cptron.corpus.document import Document, Dropped
from cptron.corpus.registry import config_class, step_class
from cptron.corpus.step import Tally
from cptron.corpus.steps.normalise import perhaps_broken, tidy_spaces
from cptron.corpus.words import datatrove_words

WORDS = [
    *("the", "of", "a", "ab", "bc", "b", "c", "don't", "l’eau", "x'", "'"),
    *("पानी", "の", "…", "...", "#", "-", "•", "७", "_"),
]
GAPS = [" ", " ", " ", "  ", "\n", "\n\n", "\n- ", "", "\u00a0", "\x1c"]


def texts(count: int, seed: int) -> list[str]:
    """Of few words, with stretches that are there again: every rule is broken by some."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        words = draw.sample(WORDS, draw.randrange(2, len(WORDS))) + [
            f"w{n}" for n in range(draw.randrange(90))
        ]
        pieces = [draw.choice(words) + draw.choice(GAPS) for _ in range(draw.randrange(1, 120))]
        for _ in range(draw.randrange(4)):
            begin, length = draw.randrange(len(pieces)), draw.randrange(1, 15)
            pieces[draw.randrange(len(pieces)) : 0] = [*pieces[begin : begin + length], draw.choice(GAPS)]
        made.append("".join(pieces))
    return made


def verdict_of(made: bool | tuple[bool, str]) -> str:
    """The reason, empty for none."""
    return "" if made is True else made[1]  # type: ignore[index]


WITHOUT_LINES = {
    name: 0.0 for name in ("dup_line_frac", "dup_line_char_frac", "dup_para_frac", "dup_para_char_frac")
}
LOOSE: dict[str, list[dict[str, Any]]] = {
    "gopher_quality": [
        {"min_doc_words": 5},
        {"min_doc_words": 1, "max_doc_words": 60, "min_avg_word_length": 2.0, "max_avg_word_length": 5.0},
        {"min_doc_words": 1, "min_avg_word_length": 0.0, "max_symbol_word_ratio": 0.0, "max_bullet_lines_ratio": 0.5,
         "max_non_alpha_words_ratio": 0.7, "min_stop_words": 2, "stop_words": ("the", "of", "don't", "no one")},
    ],
    "gopher_repetition": [
        {},
        {**WITHOUT_LINES, "top_n_grams": (0.4, 0.0, 0.3), "dup_n_grams": ()},
        *({**WITHOUT_LINES, "top_n_grams": (), "dup_n_grams": (0.0,) * n + (0.1,)} for n in range(6)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LOOSE))
def test_rules_by_the_kernel_are_those_of_datatrove(name: str) -> None:
    """Every verdict and every reason, on texts of which many are dropped for each of many reasons."""
    found: set[str] = set()
    for settings in LOOSE[name]:
        step = step_class(name)(name, config_class(name)(**settings), 0)
        step.open()
        arguments = step.make_filter(filters, datatrove_words())[1]
        theirs = {
            "gopher_quality": filters.GopherQualityFilter, "gopher_repetition": filters.GopherRepetitionFilter
        }[name](**arguments)  # fmt: skip
        for text in texts(120, len(found)):
            if not text.strip():
                continue
            result = step.apply(Document(text, "x", "x"), Tally())
            wanted = verdict_of(theirs.filter(TheirDocument(text, "x")))
            assert (result.reason if isinstance(result, Dropped) else "") == wanted.replace("-", "_"), text
            found.add(wanted)
    assert len(found) >= 9, found


def test_a_run_of_the_same_characters_is_one_wherever_words_end() -> None:
    """As datatrove joins words: without spaces where n-grams repeat, with them where the commonest is looked for."""
    kinds = np.zeros(128, np.uint8)
    kinds[[ord(char) for char in "abc"]] = 1
    kinds[32] = 2
    text = np.frombuffer("ab c a bc".encode("utf-32-le"), np.uint32)
    assert kernels.broken_rule(text, kinds, [], [(2, 3 / 9 - 1e-9)]) == 0
    assert kernels.broken_rule(text, kinds, [], [(2, 3 / 9)]) == -1
    assert kernels.broken_rule(text, kinds, [(2, 4 / 9)], []) == -1  # `ab c`, once


def test_languages_by_the_kernel_are_those_of_py3langid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same label and the same bits of the score, also of texts that have no features."""
    monkeypatch.setattr(langid, "_load_model_file", cache(langid._load_model_file))  # unpacked once for both
    theirs = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    step: Any = step_class("language")("language", config_class("language")(), 0)
    step.open()
    sentences = [
        "The water of the river is clear.",
        "Nước sông rất trong.",
        "नदी का पानी साफ है।",
        "Das Wasser ist klar.",
    ]
    draw = random.Random(4)
    odd = ["".join(chr(draw.choice((48, 97, 233, 0x4E00, 0x1F600))) for _ in range(n)) for n in range(40)]
    for text in [*sentences, *(a + b for a in sentences for b in sentences), *odd]:
        if text.strip():
            assert step._label(text) == theirs.classify(text)
    assert len({step._label(text)[0] for text in sentences}) == 4


def test_what_ftfy_is_not_shown_it_would_not_change() -> None:
    """Of its own characters and ASCII, in many orders; some is passed by it, and some is changed."""
    pattern = perhaps_broken(badness, chardata)
    settings = TextFixerConfig(
        unescape_html="auto", fix_latin_ligatures=False, fix_character_width=False, uncurl_quotes=False,
        fix_line_breaks=False, normalization=None, explain=False,
    )  # fmt: skip
    known = sorted({char for char in "".join(badness.MOJIBAKE_CATEGORIES.values()) if char != "-"})
    draw = random.Random(8)
    passed = changed = 0
    for _ in range(4000):
        alphabet = [*draw.sample(known, 3), "\u0901", "\u1ea1", *"aA .x1-°œ²"]
        wrong = (
            draw.choice("éüñ’–—яक").encode().decode(draw.choice(("cp1250", "latin-1", "cp1251")), "ignore")
        )
        text = "".join(draw.choice([*alphabet, wrong, "voilÃ  ", ".Â "]) for _ in range(draw.randrange(1, 7)))
        fixed = fix_text(text, settings)
        changed += fixed != text
        if not pattern.search(text):
            passed += 1
            assert fixed == text, ascii(text)
    assert passed > 500 and changed > 300, (passed, changed)


def test_spaces_against_the_plain_way() -> None:
    """Line by line, every run of blanks by itself."""
    import re

    blanks = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
    draw = random.Random(9)
    for _ in range(3000):
        text = "".join(
            draw.choice("ab  \t\u00a0\u2003\n\n\r\u0085\u2028\x0c") for _ in range(draw.randrange(12))
        )
        lines = [line.rstrip() for line in re.sub("\r\n?|\u0085|\u2028|\u2029", "\n", text).split("\n")]
        begins = [line[: len(line) - len(line.lstrip())] for line in lines]
        tidied = [
            begin + blanks.sub(" ", line[len(begin) :]) for begin, line in zip(begins, lines, strict=True)
        ]
        assert tidy_spaces(text) == re.sub("\n{3,}", "\n\n", "\n".join(tidied)).strip(), ascii(text)
