"""A tokenizer that can be extended: its vocabulary and merges, and a refusal of every other kind.

Place in the flow: `extend` opens the base with it, `subtokens` cuts new tokens by it. Invariant: whoever gets a `Base`
may append merges to it: its words are cut by ranked merges of pairs, and nothing is left to chance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import orjson
from tokenizers import Tokenizer as Backend

from cptron.errors import DataError
from cptron.tokens.byte_lengths import ALPHABET
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer, one_line

Kind = Literal["byte-level", "byte-fallback"]
SPACE = "\u2581"
"""SentencePiece's mark of a space."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_BYTES = {character: byte for byte, character in ALPHABET.items()}


@dataclass(frozen=True)
class Base:
    """A BPE tokenizer."""

    path: Path
    tokenizer: Tokenizer
    content: dict[str, Any]
    """Its `tokenizer.json`, completed by the configuration files beside it."""
    kind: Kind

    @cached_property
    def backend(self) -> Backend:
        """The tokenizers library's own."""
        return Backend.from_str(orjson.dumps(self.content).decode())

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Token -> id, without tokens that were only added."""
        return dict(self.content["model"]["vocab"])

    @cached_property
    def added(self) -> dict[str, int]:
        """Added token -> id."""
        return {str(token["content"]): int(token["id"]) for token in self.content["added_tokens"]}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Id -> token, added ones too."""
        return {number: token for token, number in {**self.vocab, **self.added}.items()}

    @cached_property
    def merges(self) -> list[tuple[int, int]]:
        """Pairs of ids by rank."""
        return [(self.vocab[left], self.vocab[right]) for left, right in self.content["model"]["merges"]]

    @property
    def ignores_merges(self) -> bool:
        """Whether a word that is in the vocabulary is that token, whatever the merges."""
        return bool(self.content["model"].get("ignore_merges"))

    def bytes_of(self, token: str) -> bytes:
        """What a token of the model writes into a text."""
        if self.kind == "byte-level":
            return bytes(_BYTES[character] for character in token)
        found = BYTE_TOKEN.fullmatch(token)
        return bytes([int(found[1], 16)]) if found else token.replace(SPACE, " ").encode()


def open_base(path: str | Path) -> Base:
    """The tokenizer at `path`. Raises DataError where merges cannot be appended to it, and says why."""
    tokenizer = load_tokenizer(path)
    definition = tokenizer.definition("tokenizer.json")
    if definition is None:
        raise DataError(
            f"tokenizer {path} has no tokenizer.json, and merges are appended to one; save it once with transformers "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...)) and give that directory"
        )
    try:
        content = orjson.loads(definition)
        return Base(Path(path), tokenizer, content, _kind(content, path))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"tokenizer {path} is damaged ({one_line(error)}); copy the file again") from error


def _kind(content: dict[str, Any], path: str | Path) -> Kind:
    model = content["model"]
    if model["type"] != "BPE":
        raise DataError(
            f"tokenizer {path} is of type {model['type']}, must be BPE: only merges can be appended so that no old "
            "text is cut worse; train the model with its own vocabulary"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise DataError(
                f"tokenizer {path} has {option} {model[option]!r}, must have none to be extended; "
                "train the model with its own vocabulary"
            )
    if model.get("byte_fallback"):
        return "byte-fallback"
    if any(_is_byte_level(content.get(step)) for step in ("pre_tokenizer", "normalizer")):
        return "byte-level"
    raise DataError(
        f"tokenizer {path} is a BPE of characters without ByteLevel or byte_fallback, must have one of them, or "
        "unknown characters would be lost; train the model with its own vocabulary"
    )


def _is_byte_level(step: Any) -> bool:
    if not step:
        return False
    inner = step.get("pretokenizers") or step.get("normalizers") or []
    return step["type"] == "ByteLevel" or any(_is_byte_level(part) for part in inner)
