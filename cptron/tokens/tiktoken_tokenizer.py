"""tiktoken tokenizers: a file of token ranks, with a pattern and special tokens stated beside it.

Place in the flow: `tokenizer.load_tokenizer` opens one; Megatron's TikTokenizer is one with `megatron_config`.
Invariant: special tokens written out in a text become their ids, as Megatron does and Hugging Face tokenizers do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.tokenizer import DefinitionFormat, one_line

# The two that Megatron names.
PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
MEGATRON_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
_MEGATRON_KEYS = ("num_special_tokens", "vocab_size")
_KEYS = {"pattern", "special_tokens", "eos_token", "bos_token", *_MEGATRON_KEYS}
_WANTED = {
    "pattern": "v1, v2 or a regular expression",
    "special_tokens": "an object of texts and ids, or a list of texts",
    **dict.fromkeys(("eos_token", "bos_token"), "one of the special tokens"),
    **dict.fromkeys(_MEGATRON_KEYS, "a whole number"),
}
_MAX_ID = (1 << 32) - 1
MOST_IDS = 10_000_000
"""Of Megatron's vocabulary, whose special tokens are named one by one."""


@dataclass(frozen=True, slots=True)
class TiktokenConfig:
    """What a file of ranks does not say."""

    pattern: str
    """`v1`, `v2`, or a regular expression that cuts text into words."""
    special_tokens: Mapping[str, int]
    eos_token: str | None = None
    bos_token: str | None = None
    first_id: int = 0
    """Id of rank 0; Megatron puts the special tokens before the ranks."""
    num_ranks: int | None = None
    """Ranks from here on are left out; None takes all."""


def megatron_config(
    pattern: str = "v2",
    num_special_tokens: int = 1000,
    special_tokens: Sequence[str] | None = None,
    vocab_size: int = 131072,
) -> TiktokenConfig:
    """Megatron's `--tiktoken-pattern`, `--tiktoken-num-special-tokens`, `--tiktoken-special-tokens` and
    `--vocab-size`: special tokens have the first ids, unnamed ones are `<SPECIAL_n>`, ranks follow.

    Raises DataError for what Megatron refuses.
    """
    named = list(MEGATRON_SPECIAL_TOKENS if special_tokens is None else special_tokens)
    missing = [token for token in MEGATRON_SPECIAL_TOKENS if token not in named]
    if missing or len(set(named)) != len(named):
        raise DataError(f"tiktoken special tokens {named} must be distinct and hold {missing}; add them")
    if vocab_size > MOST_IDS:
        raise DataError(
            f"the tiktoken vocabulary size is {vocab_size}, must be at most {MOST_IDS}; change it"
        )
    if not len(named) <= num_special_tokens < vocab_size:
        raise DataError(
            f"the number of tiktoken special tokens is {num_special_tokens}, must be at least the {len(named)} "
            f"named ones and below the vocabulary's {vocab_size}; change it"
        )
    names = [*named, *(f"<SPECIAL_{number}>" for number in range(len(named), num_special_tokens))]
    ids = {token: number for number, token in enumerate(names)}
    return TiktokenConfig(pattern, ids, "</s>", "<s>", num_special_tokens, vocab_size - num_special_tokens)


def read_tiktoken_config(path: Path) -> TiktokenConfig:
    """Read `{"pattern": ..., "special_tokens": {text: id}, "eos_token": ..., "bos_token": ...}`.

    With special tokens as a list, `num_special_tokens` or `vocab_size`, the file states Megatron's flags
    (`megatron_config`). Raises DataError when it is missing, damaged, or states both.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing, must state the pattern and the special tokens of the tiktoken ranks beside it; "
            'write {"pattern": "v2", "special_tokens": {"<|endoftext|>": 100257}, "eos_token": "<|endoftext|>"}'
        ) from None
    except ValueError as error:
        raise DataError(f"{path} must be JSON ({one_line(error)}); correct it") from error
    if not isinstance(content, dict) or "pattern" not in content or content.keys() - _KEYS:
        raise DataError(
            f"{path} must be a JSON object with a pattern and no keys but {sorted(_KEYS)}; correct it"
        )
    given = {key: value for key, value in content.items() if value is not None}
    for key in content:
        if not _is_sound(key, given.get(key)):
            raise DataError(f"{path} has {key} {content[key]!r}, must be {_WANTED[key]}; correct it")
    special = given.get("special_tokens")
    if isinstance(special, list) or any(key in given for key in _MEGATRON_KEYS):
        if isinstance(special, dict) or "eos_token" in given or "bos_token" in given:
            raise DataError(
                f"{path} states Megatron's flags and also eos_token, bos_token or ids; keep one of the two forms"
            )
        return megatron_config(**given)
    return TiktokenConfig(given["pattern"], special or {}, given.get("eos_token"), given.get("bos_token"))


def _is_sound(key: str, value: Any) -> bool:
    """Whether the value of a configuration's key is of its type; only a pattern must be there."""
    if value is None:
        return key != "pattern"
    if key in _MEGATRON_KEYS:
        return type(value) is int
    if key != "special_tokens":
        return isinstance(value, str)
    if isinstance(value, dict):
        return all(type(token_id) is int and 0 <= token_id < _MAX_ID for token_id in value.values())
    return isinstance(value, list) and all(isinstance(token, str) for token in value)


class TiktokenTokenizer:
    """tiktoken's encoding of a file of ranks."""

    def __init__(self, path: Path, config: TiktokenConfig) -> None:
        """Load `path`: `base64 rank` on every line, or Megatron's JSON list of tokens. Raises DataError when it
        is damaged, does not fit `config`, or the package is missing."""
        try:
            import tiktoken
        except ImportError:
            raise DataError(
                f"{path} needs the package tiktoken, not installed; pip install 'cptron[data]'"
            ) from None
        ranks = _read_ranks(path, config)
        pattern = PATTERNS.get(config.pattern, config.pattern)
        _require_words(path, pattern)
        special = dict(config.special_tokens)
        try:
            self._encoding = tiktoken.Encoding(
                path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
            )
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path} with the pattern {pattern!r} must be a tiktoken encoding ({one_line(error)}); "
                "correct tiktoken_config.json"
            ) from error
        self.name = path.stem
        self.library = f"tiktoken {tiktoken.__version__}"
        self.vocab_size = self._encoding.max_token_value + 1
        self.added_tokens = list(special)
        self.eos_id = _special_id(config.eos_token, special, path)
        self.bos_id = _special_id(config.bos_token, special, path)
        identity: dict[str, Any] = {"pattern": pattern, "special": special}
        identity |= {"eos": self.eos_id, "bos": self.bos_id}
        digest = hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS))
        digest.update(b"".join(b"%s %d\n" % (token.hex().encode(), ranks[token]) for token in sorted(ranks)))
        self.fingerprint = digest.hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on the calling thread."""
        return [self.encode(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        """Ids of one text. Raises DataError for one that the pattern cannot cut, such as a million spaces."""
        try:
            return self._encoding.encode(text, allowed_special="all")
        except ValueError as error:
            raise DataError(
                f"a text of {len(text.encode())} bytes, beginning {text[:30]!r}, cannot be cut by the pattern of "
                f"{self.name} ({one_line(error)}), must be shorter; leave such texts out with --max-document-bytes"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return self._encoding.decode([int(i) for i in ids])

    def definition(self, form: DefinitionFormat) -> bytes | None:
        """None: other libraries' formats do not hold the ranks of all bytes exactly."""
        del form
        return None


def _require_words(path: Path, pattern: str) -> None:
    """Raise DataError where a pattern finds words of no characters, at which tiktoken aborts."""
    import regex  # tiktoken brings it

    try:
        is_empty = regex.compile(pattern).fullmatch("") is not None
    except regex.error:
        return  # tiktoken says so itself
    if is_empty:
        raise DataError(f"{path} has the pattern {pattern!r:.200}, must not match an empty text; correct it")


def _read_ranks(path: Path, config: TiktokenConfig) -> dict[bytes, int]:
    text = path.read_bytes()
    pairs: list[Sequence[Any]]
    try:
        if path.suffix == ".json":
            pairs = [(entry["token_bytes"], entry["rank"]) for entry in orjson.loads(text)]
        else:
            pairs = [line.split() for line in text.splitlines() if line]
        entries = [(base64.b64decode(token, validate=True), int(rank)) for token, rank in pairs]
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise DataError(
            f"{path} must hold base64 and rank on every line ({one_line(error)}); copy it again"
        ) from error
    kept = [(token, rank) for token, rank in entries if config.num_ranks is None or rank < config.num_ranks]
    ranks = {token: rank + config.first_id for token, rank in kept}
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    ids = {*ranks.values(), *config.special_tokens.values()}
    if missing or len(ids) != len(kept) + len(config.special_tokens) or len(ranks) != len(kept):
        raise DataError(
            f"{path} lacks {missing} of 256 bytes or gives a token or rank twice (special tokens included), "
            "must not; copy it again or correct tiktoken_config.json"
        )
    return ranks


def _special_id(token: str | None, special: Mapping[str, int], path: Path) -> int | None:
    if token is not None and token not in special:
        raise DataError(
            f"{path}: {token!r} is no special token, must be one of {list(special)[:20]}; add it with its id"
        )
    return None if token is None else special[token]
