"""Steps by the name that a configuration calls them.

Place in the flow: `config` reads a step's settings with the class found here; `run` builds the step.
Invariant: a name stands for one module with `Config`, a frozen dataclass, and `Step`, a `MapStep` or `CorpusStep` of
it; importing such a module needs no optional package.
"""

from __future__ import annotations

import importlib
from typing import Any

from cptron.corpus.step import CorpusStep, MapStep

STEPS = {
    name: f"cptron.corpus.steps.{name}"
    for name in (
        "normalise",
        "length",
        "language",
        "gopher_quality",
        "gopher_repetition",
        "c4_quality",
        "fineweb_quality",
        "blocklist",
        "exact_dedup",
        "near_duplicates",
        "decontaminate",
        "pii",
        "presidio",
        "perplexity",
        "ngram_perplexity",
        "quantile",
        "dsir",
        "dacp",
        "classifier",
        "synthesise",
    )
}
"""Name -> module."""

AnyStep = MapStep[Any] | CorpusStep[Any]


def config_class(name: str) -> type:
    """The dataclass of the settings of step `name`, which must be known."""
    return _module(name).Config  # type: ignore[no-any-return]


def step_class(name: str) -> type[AnyStep]:
    """The class of step `name`, which must be known."""
    return _module(name).Step  # type: ignore[no-any-return]


def _module(name: str) -> Any:
    return importlib.import_module(STEPS[name])
