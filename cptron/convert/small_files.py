"""What is beside the weights of a Hugging Face model: config, tokenizer, chat template, licence.

Place in the flow: carried from an import into checkpoints, and from these into exports. Invariant: files of weights and
their indices are never among them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cptron.tokens.tokenizer import Tokenizer, load_tokenizer

PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", "README*")


def small_files(directory: Path) -> list[Path]:
    """All of them, by name."""
    found = {path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not path.name.endswith(".index.json"))


def carry_small_files(source: Path, target: Path) -> None:
    """Copy all of them."""
    target.mkdir(exist_ok=True)
    for path in small_files(source):
        shutil.copyfile(path, target / path.name)


def find_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer beside the weights, or None when the directory has none."""
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return load_tokenizer(str(directory))
    return None
