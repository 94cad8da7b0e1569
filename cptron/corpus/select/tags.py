"""Classes of words, and the entropy of their distribution in a text: the diversity of DACP.

Place in the flow: `steps/dacp` measures each document. Invariant: taggers are local; `shapes` is a substitute for parts
of speech that needs no model and no language, and is called what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cptron.corpus.optional import optional_module
from cptron.corpus.words import tokens_of
from cptron.errors import DataError

TaggerName = Literal["shapes", "nltk", "spacy"]
Tagger = Callable[[str], Sequence[str]]
PACKAGES: dict[str, tuple[str, ...]] = {"shapes": (), "nltk": ("nltk",), "spacy": ("spacy",)}
"""Distributions by tagger."""
_SHORT = 3


def shapes(text: str) -> list[str]:
    """A class for each word: capitals, numbers, marks of punctuation by themselves, short words (those of grammar, most
    often) by themselves, others by their last two letters."""
    return [_shape(word) for word in tokens_of(text)]


def _shape(word: str) -> str:
    if not word[0].isalnum() and len(word) == 1:
        return word
    if any(char.isdigit() for char in word):
        return "0" if word.isdigit() else "a0"
    if word.isupper() and len(word) > 1:
        return "AA"
    if word[0].isupper():
        return "Aa"
    return word if len(word) <= _SHORT else f"-{word[-2:]}"


def entropy_nats(tags: Sequence[str]) -> float:
    """Of the distribution of tags; 0 for none."""
    counts = np.array(sorted(Counter(tags).values()), np.float64)
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def open_tagger(name: TaggerName, model: str, step: str) -> Tagger:
    """The tagger. Raises DataError where its package or data is absent."""
    if name == "shapes":
        return shapes
    return _spacy(model, step) if name == "spacy" else _nltk(step)


def spacy_files(model: str, step: str) -> list[Path]:
    """What names a spaCy model and its version; empty without one. Raises DataError where it is not installed."""
    if not model:
        return []
    package: Any = optional_module(model, f"the spaCy model {model}", step)
    return [Path(package.__file__).parent / "meta.json"]


def _nltk(step: str) -> Tagger:
    nltk: Any = optional_module("nltk", "nltk", step)

    def tags(text: str) -> list[str]:
        return [tag for _, tag in nltk.pos_tag(tokens_of(text))]

    try:
        tags("A test.")
    except LookupError:
        raise DataError(
            f"step {step}: nltk has no data of its tagger, must have it for tagger nltk; install "
            "averaged_perceptron_tagger_eng, or use tagger shapes"
        ) from None
    return tags


def _spacy(model: str, step: str) -> Tagger:
    spacy: Any = optional_module("spacy", "spacy", step)
    spacy_files(model, step)
    pipeline: Any = spacy.load(model, exclude=["parser", "ner", "lemmatizer"])
    pipeline.max_length = 1 << 30

    def tags(text: str) -> list[str]:
        return [token.tag_ for token in pipeline(text)]

    return tags
