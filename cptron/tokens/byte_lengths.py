"""How many bytes of text each token id stands for, where that can be known from the tokenizer alone.

Place in the flow: validation sets count the bytes of their windows with it, for bits per byte. Invariant: a length is
exact or not given: only byte-level BPE without a normaliser writes each byte of a text once. A vocabulary may lack the
bytes that text does not have, as some do: control characters, and what begins characters that Unicode has not assigned.

Shapes: V ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.json_text import parse_json

UNKNOWN = -1
_CUTS_ONLY = ("Split", "Digits")
"""Pre-tokenizers that cut a text and change nothing of it, unless they remove what they cut at."""
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _VISIBLE]
ALPHABET = dict(
    zip([*_VISIBLE, *_OTHERS], map(chr, [*_VISIBLE, *range(256, 256 + len(_OTHERS))]), strict=True)
)
"""Byte -> the character that stands for it in a byte-level vocabulary."""
_NOT_IN_TEXT = {*range(32), 0x7F, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)} - set(b"\t\n\r")
_NEEDED = frozenset(char for byte, char in ALPHABET.items() if byte not in _NOT_IN_TEXT)


def token_bytes(definition: bytes) -> npt.NDArray[np.int32] | None:
    """Bytes of every id of a `tokenizer.json` [V], `UNKNOWN` for ids that it does not tell; None where a token's bytes
    are not those of the text."""
    try:
        content = parse_json(definition)
        model, added = content["model"], content["added_tokens"]
        if not _is_byte_level(content, model):
            return None
        lengths = {int(number): len(token) for token, number in model["vocab"].items()}
        lengths |= {int(token["id"]): _added_bytes(token) for token in added}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not 0 <= min(lengths) <= max(lengths) <= len(definition):
        return None
    found_V = np.full(max(lengths) + 1, UNKNOWN, np.int32)
    found_V[list(lengths)] = list(lengths.values())
    return found_V


def _is_byte_level(content: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    vocab = model["vocab"]
    return (
        model["type"] == "BPE"
        and not model.get("byte_fallback")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and content.get("normalizer") is None
        and _only_cuts(content.get("pre_tokenizer"))
        and vocab.keys() >= _NEEDED
        and not set()
        .union(*vocab)
        .difference(ALPHABET.values(), *(token["content"] for token in content["added_tokens"]))
    )


def _only_cuts(pre_tokenizer: Any) -> bool:
    """Whether a text is turned into the byte alphabet, once, and otherwise only cut."""
    steps: Sequence[Any] = [pre_tokenizer] if pre_tokenizer else []
    if pre_tokenizer and pre_tokenizer["type"] == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    levels = [step for step in steps if step["type"] == "ByteLevel"]
    others = [step for step in steps if step["type"] != "ByteLevel"]
    return (
        len(levels) == 1
        and not levels[0]["add_prefix_space"]
        and all(step["type"] in _CUTS_ONLY and step.get("behavior") != "Removed" for step in others)
    )


def _added_bytes(token: Mapping[str, Any]) -> int:
    """Of a token that is written out in the text; one that swallows the spaces around it has no length of its own."""
    return UNKNOWN if token["lstrip"] or token["rstrip"] else len(token["content"].encode())
