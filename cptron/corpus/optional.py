"""Packages that only some steps need.

Place in the flow: a step's `open` imports through this. Invariant: what is absent is named with what to type.
"""

from __future__ import annotations

import importlib
from typing import Any

from cptron.errors import DataError

IN_EXTRA = (
    "datatrove",
    "datatrove and xxhash < 4",
    "xxhash",
    "regex",
    "ftfy",
    "py3langid",
    "lingua-language-detector",
    "fasttext-predict",
    "datasketch",
)
"""What `cptron[curate]` installs."""


def optional_module(module: str, package: str, step: str) -> Any:
    """The module. Raises DataError where `package`, which has it, is not installed or does not work here."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"step {step} needs {package} ({error}), must be installed; {remedy_of(package)}"
        ) from None


def remedy_of(package: str) -> str:
    """What to type for a package that is absent; it may be several, joined by `and`."""
    if package in IN_EXTRA:
        return "pip install 'cptron[curate]'"
    if package.startswith("the spaCy model "):
        return f"python -m spacy download {package.removeprefix('the spaCy model ')}"
    return f"pip install {package.replace(' and ', ' ')}"
