"""Functions of the tests that a rank runs: conversions.

Not in `conftest`: more than one folder has a module of that name, and ranks find functions by their module's.
"""

from __future__ import annotations

from pathlib import Path


def convert(source: str, target: str) -> None:
    """Import a Hugging Face model; on a rank."""
    from cptron.convert.hf_import import import_hugging_face

    import_hugging_face(Path(source), Path(target))
