"""Hugging Face tokenizers from `tokenizer.json`, without transformers.

Place in the flow: `tokenizer.load_tokenizer` opens one; the ids are those of transformers' fast tokenizer
with `add_special_tokens=False`. Invariant: `tokenizer.json` decides how text is cut; the files beside it
may only add whole tokens to it, under the ids they state, and name the special ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers import __version__ as library_version

from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.hf_serialised import fingerprint, split_serialised
from cptron.tokens.tokenizer import DefinitionFormat, one_line, tokenizer_name

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_LONG_NUMBER = re.compile(rb'(?<!\\)":\s*([0-9]{6,4000})')
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class HfTokenizer:
    """The fast tokenizer of a `tokenizer.json`, completed by the configuration files in its directory."""

    def __init__(self, path: Path) -> None:
        """Load `path`. Raises DataError when a file is damaged or the files contradict one another."""
        _require_ids(path)
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the Rust library raises plain Exception
            raise DataError(
                f"{path} must be a tokenizer.json ({one_line(error)}); copy the file again"
            ) from error
        self._backend.no_truncation()
        self._backend.no_padding()
        config = _tokenizer_config(path.parent)
        self._backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        _add_configured_tokens(self._backend, config, path)
        self.name = tokenizer_name(path)
        self.library = f"tokenizers {library_version}"
        self.added_tokens = [token.content for token in self._backend.get_added_tokens_decoder().values()]
        # Kept, 6 MB for a vocabulary of 128 000: to serialise takes 0.2 s.
        self._serialised = self._backend.to_str(pretty=False).encode("utf-8")
        options, long, largest_id = split_serialised(self._serialised)
        self.vocab_size = largest_id + 1
        self.eos_id = self._special_id("eos", config, path.parent)
        self.bos_id = self._special_id("bos", config, path.parent)
        options |= {"eos_id": self.eos_id, "bos_id": self.bos_id}
        options["split_special_tokens"] = self._backend.encode_special_tokens
        self.fingerprint = fingerprint(options, long)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Uses the library's threads unless TOKENIZERS_PARALLELISM=false."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def definition(self, form: DefinitionFormat) -> bytes | None:
        """The library's own serialisation, completed by the configuration files. It does not state
        `split_special_tokens`."""
        return self._serialised if form == "tokenizer.json" else None

    def _special_id(self, which: str, config: dict[str, Any], directory: Path) -> int | None:
        """Id of the tokenizer's own EOS or BOS; the model's files are asked where the tokenizer names
        none."""
        token = config.get(f"{which}_token")
        if token is not None:
            return self._backend.token_to_id(_content(token))
        for name in ("config.json", "generation_config.json"):
            token_id = _read_json(directory / name).get(f"{which}_token_id")
            # A list means several ways to stop generating, not one way to end a document.
            if isinstance(token_id, int) and 0 <= token_id < self.vocab_size:
                return token_id
        return None


def _require_ids(path: Path) -> None:
    """Raise DataError where an id is larger than any that so many tokens can have: the library takes memory for all ids
    below it, and ends the process where there is not so much."""
    text = path.read_bytes()
    for match in _LONG_NUMBER.finditer(text):
        if int(match[1]) > len(text):
            raise DataError(
                f"{path} has the number {match[1][:40].decode()}, no id in a file of {len(text)} bytes; "
                "copy the file again"
            )


def _tokenizer_config(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, completed by the older `special_tokens_map.json` as transformers does."""
    config = _read_json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config.update(_read_json(directory / "special_tokens_map.json"))
    _require_sound(config, directory / "tokenizer_config.json")
    return config


def _require_sound(config: dict[str, Any], path: Path) -> None:
    stated = config.get("added_tokens_decoder") or {}
    if not isinstance(stated, dict) or not all(key.isascii() and key.isdigit() for key in stated):
        shown = list(stated)[:5] if isinstance(stated, dict) else stated
        raise DataError(f"{path} has added_tokens_decoder {shown}, must go by ids; copy the file again")
    for key in _EXTRA:
        if not isinstance(config.get(key) or [], list | dict):
            raise DataError(f"{path} has {key} {config[key]!r}, must be a list; copy the file again")
    for token in (*stated.values(), *_special_tokens(config)):
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{path} has the token {token!r}, must be a text; copy the file again")


def _add_configured_tokens(backend: Backend, config: dict[str, Any], path: Path) -> None:
    """Add tokens as transformers does: those stated with an id win over `tokenizer.json`, those only named
    as special are added where they are unknown."""
    stated: dict[str, Any] = config.get("added_tokens_decoder") or {}
    special = list(_special_tokens(config))
    named = {_content(token) for token in special}
    in_id_order = [stated[key] for key in sorted(stated, key=int)]
    backend.add_tokens([_added_token(token, special=_content(token) in named) for token in in_id_order])
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    unknown = [token for token in special if _content(token) not in known]
    backend.add_special_tokens([_added_token(token, special=True) for token in unknown])
    for token_id, token in stated.items():
        actual = backend.token_to_id(_content(token))
        if actual != int(token_id):
            raise DataError(
                f"{path} gives {_content(token)!r} the id {actual}, tokenizer_config.json beside it requires "
                f"{token_id}; take both files from the same model"
            )


def _special_tokens(config: dict[str, Any]) -> Iterator[Any]:
    for key in _NAMED:
        if config.get(key) is not None:
            yield config[key]
    for key, token in config.items():
        # A model's own role, such as `image_token`.
        if key.endswith("_token") and key not in _NAMED and isinstance(token, (str, dict)):
            yield token
    for key in _EXTRA:
        extra = config.get(key) or []
        yield from extra.values() if isinstance(extra, dict) else extra


def _added_token(token: Any, *, special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=False)
    flags = {key: bool(token[key]) for key in _FLAGS if key in token}
    if special:
        flags = {"normalized": False, **flags, "special": True}
    return AddedToken(_content(token), **flags)


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} must be JSON ({one_line(error)}); copy the file again") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}, must be a JSON object; copy the file again"
        )
    return content
