"""Packages that only some steps need.

Place in the flow: a step's `open` imports through this. Invariant: what is absent is named with what to type.
"""

from __future__ import annotations

import importlib
from typing import Any

from cptron.errors import DataError


def optional_module(module: str, package: str, step: str) -> Any:
    """The module. Raises DataError where `package`, which has it, is not installed or does not work here."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"step {step} needs {package} ({error}), must be installed; pip install 'cptron[curate]'"
        ) from None
