"""A pre-tokenizer in which a combining mark stays in the word of its letter, so that merges can reach over it.

Place in the flow: `extend --join-marks`, for scripts that write vowels as marks, such as Devanagari. Invariant: a text
in which no mark follows a letter is cut into the same words as before; the decoder is the same, so every text comes
back.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cptron.errors import DataError
from cptron.tokenizer.base import Base

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel cuts by where `use_regex` is on."""
LETTERS, WITH_MARKS = r"\p{L}+", r"\p{L}[\p{L}\p{M}]*"
CLASS = "PreTrainedTokenizerFast"
"""Of `transformers`: the one that takes the pre-tokenizer from tokenizer.json; GPT2Tokenizer makes its own."""


def join_marks(base: Base) -> Base:
    """`base` with such a pre-tokenizer. Raises DataError where it has no words of letters alone, or knows marks."""
    content = copy.deepcopy(base.content)
    content["pre_tokenizer"] = _joined(content.get("pre_tokenizer"))
    if content["pre_tokenizer"] == base.content.get("pre_tokenizer"):
        raise DataError(
            f"tokenizer {base.path} does not cut words of letters by {LETTERS}, so there is no mark to join to them; "
            "remove --join-marks"
        )
    return replace(base, content=content)


def name_class(directory: Path) -> None:
    """Let `transformers` load the pre-tokenizer that is written."""
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    path.write_text(json.dumps({**config, "tokenizer_class": CLASS}, indent=2, ensure_ascii=False) + "\n")


def _joined(step: dict[str, Any] | None) -> dict[str, Any] | None:
    if not step:
        return step
    if step["type"] == "Sequence":
        parts: list[dict[str, Any]] = []
        for part in step["pretokenizers"]:
            made = _joined(part)
            assert made is not None, "a part is a step"
            parts += made["pretokenizers"] if made["type"] == "Sequence" else [made]
        return {**step, "pretokenizers": parts}
    if step["type"] == "ByteLevel" and step.get("use_regex", True):
        if step.get("add_prefix_space"):
            return step  # the space would have to come before the cut
        words = {
            "type": "Split",
            "pattern": {"Regex": _with_marks(GPT2_WORDS)},
            "behavior": "Isolated",
            "invert": False,
        }
        return {"type": "Sequence", "pretokenizers": [words, {**step, "use_regex": False}]}
    pattern = step.get("pattern", {}).get("Regex") if step["type"] == "Split" else None
    return {**step, "pattern": {"Regex": _with_marks(pattern)}} if pattern else step


def _with_marks(pattern: str) -> str:
    """The pattern, unless it knows marks already."""
    return pattern if r"\p{M}" in pattern else pattern.replace(LETTERS, WITH_MARKS)
