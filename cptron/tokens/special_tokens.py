"""Which special tokens Hugging Face's tokenizers put around a text by themselves.

Place in the flow: `preprocess_plan` asks, because Megatron's HuggingFaceTokenizer encodes with them.
Invariant: nothing is guessed: a tokenizer whose files contradict one another is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cptron.errors import DataError
from cptron.tokens.tokenizer import one_line

_REMEDY = "use --tokenizer-hf-no-include-special-tokens, and --prepend-bos or --append-eod for what you want"


def tokenizer_adds_bos(path: str, bos_id: int | None) -> bool:
    """Whether the post-processor of the tokenizer.json at `path` (or in it) puts BOS before every text.

    Raises DataError when it adds anything else: only BOS before a text can be reproduced.
    """
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    before, after = _around(file)
    adds_bos = before == [bos_id] and bos_id is not None
    if after or (before and not adds_bos):
        raise DataError(
            f"{file} puts the special tokens {before} before and {after} after a text, only BOS before it is "
            f"supported; {_REMEDY}"
        )
    config = _load(file.with_name("tokenizer_config.json"))
    for name, actual in (("add_bos_token", adds_bos), ("add_eos_token", False)):
        if config.get(name) not in (None, actual):
            raise DataError(
                f"{file.parent}/tokenizer_config.json has {name} {config[name]}, {file.name} adds "
                f"{'it' if actual else 'none'}, so it is open what is meant; {_REMEDY}"
            )
    return adds_bos


def _around(file: Path) -> tuple[list[int], list[int]]:
    """Ids before and after a text."""
    from tokenizers import Tokenizer

    # The post-processor alone, on a vocabulary of one word: the whole tokenizer would take a second to load.
    word: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": None,
        "post_processor": _post_processor(file),
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
    try:
        encoding = Tokenizer.from_str(json.dumps(word)).encode("a")
    except Exception as error:  # the Rust library raises plain Exception
        raise DataError(f"{file} has an unusable post_processor ({one_line(error)}); {_REMEDY}") from error
    at = encoding.special_tokens_mask.index(0)
    return encoding.ids[:at], encoding.ids[at + 1 :]


def _post_processor(file: Path) -> Any:
    """The value of that key; parsing all of a large vocabulary for it would take a tenth of a second."""
    if file.suffix in (".model", ".tiktoken"):
        return None  # only a tokenizer.json has one
    text = file.read_bytes() if file.is_file() else b"{}"
    _, key, rest = text.partition(b'"post_processor"')
    # inside a string the quotes would be escaped, so what stands there once is the key
    if key and key not in rest and rest.lstrip().startswith(b":"):
        value = rest.lstrip()[1 : 1 << 20].decode("utf-8", "ignore").lstrip()
        try:
            return json.JSONDecoder().raw_decode(value)[0]
        except ValueError:
            pass  # damaged, or longer than any known one
    return _load(file).get("post_processor")


def _load(file: Path) -> dict[str, Any]:
    import orjson

    try:
        content = orjson.loads(file.read_bytes()) if file.is_file() else {}
    except orjson.JSONDecodeError as error:
        raise DataError(f"{file} must be JSON ({one_line(error)}); copy the file again") from error
    return content if isinstance(content, dict) else {}
