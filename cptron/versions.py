"""Versions that matter when a run or a checkpoint is questioned; stored with both. Imports nothing heavy."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import cptron

PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "numpy")


def installed_versions() -> dict[str, str]:
    """Version by package name; a package that is absent is left out."""
    found = {"cptron": cptron.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
