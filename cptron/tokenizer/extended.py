"""The extended tokenizer's files: vocabulary and merges appended, everything else as the base has it.

Place in the flow: `extend` writes them. Invariant: no old id moves: the new file is loaded again and every old id
compared before it is published.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from cptron.errors import DataError
from cptron.tokenizer.base import Base, open_base
from cptron.tokenizer.merge_loop import Pair

CARRIED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What stays true: vocabularies in other formats (vocab.json, merges.txt, tokenizer.model) would not."""


def extended_content(base: Base, new_tokens: Mapping[str, int], merges: Sequence[Pair]) -> dict[str, Any]:
    """The `tokenizer.json` of the base with more tokens and merges."""
    content = copy.deepcopy(base.content)
    model = content["model"]
    # A loader numbers added tokens after the vocabulary; those of it keep the id that it states.
    model["vocab"] = {**base.vocab, **base.added, **new_tokens}
    names = {**base.tokens, **{number: token for token, number in new_tokens.items()}}
    model["merges"] += [[names[left], names[right]] for left, right in merges]
    return content


def write_extended(base: Base, content: Mapping[str, Any], directory: Path) -> Base:
    """Write the tokenizer into `directory`, which exists, and load it. Raises DataError where an old id has moved."""
    source = base.path if base.path.is_dir() else base.path.parent
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    (directory / "tokenizer.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    extended = open_base(directory)
    require_old_ids(base, extended)
    return extended


def require_old_ids(base: Base, extended: Base) -> None:
    """Raise DataError unless `extended` has every token of `base` under its id, and ends documents as it does."""
    for number, token in base.tokens.items():
        found = extended.tokens.get(number)
        if found != token:
            raise DataError(
                f"tokenizer {extended.path} has {found!r} as id {number}, {base.path} has {token!r}; an extension "
                "keeps every old id: make it with `cptron tokenizer extend`"
            )
    for which in ("eos_id", "bos_id"):
        old, new = getattr(base.tokenizer, which), getattr(extended.tokenizer, which)
        if old is not None and old != new:
            raise DataError(
                f"tokenizer {extended.path} has {which} {new}, {base.path} has {old}; name the same special tokens "
                "in its tokenizer_config.json"
            )
