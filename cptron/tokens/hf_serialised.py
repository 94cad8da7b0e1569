"""The tokenizers library's own serialisation of a tokenizer: its identity, read without parsing the long part.

Place in the flow: `hf_tokenizer` takes the fingerprint and the vocabulary's size from it, the fast engines load it.
Invariant: it does not depend on how `tokenizer.json` was written; the vocabulary stands in the order of ids.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

# They act on lengths, on added special tokens and on decoding, not on the ids of a text.
_NOT_IDENTITY = ("version", "truncation", "padding", "post_processor", "decoder")
_BPE, _VOCAB, _MERGES = b'"model":{"type":"BPE"', b'"vocab":{', b'},"merges":['


def split_serialised(text: bytes) -> tuple[dict[str, Any], bytes, int]:
    """The options of a tokenizer, parsed; its vocabulary and merges, as written; and its largest id, -1 for none.

    Parsing all of a vocabulary of 128 000 would take 0.3 s. A quote inside a JSON string is escaped, so the marks
    found here are keys.
    """
    start = text.find(_VOCAB, max(0, text.find(_BPE)))
    end = text.find(_MERGES, start)
    if _BPE in text and 0 < start < end:
        options, long = orjson.loads(text[:start] + b'"vocab":{}}}'), text[start:]
        last = text[start + len(_VOCAB) : end].rpartition(b":")[2]
        largest = int(last) if last else -1
    else:  # other models state options after the vocabulary, and are small
        options, long = orjson.loads(text), b""
        vocab = options["model"]["vocab"]
        # A list of pieces with scores has no ids of its own.
        largest = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    return options, long, max([largest, *(token["id"] for token in options["added_tokens"])])


def fingerprint(options: dict[str, Any], long: bytes) -> str:
    """SHA-256, in hex, of `options` without those that do not decide ids, and of the vocabulary and merges."""
    identity = {key: value for key, value in options.items() if key not in _NOT_IDENTITY}
    digest = hashlib.sha256(orjson.dumps(_without_defaults(identity), option=orjson.OPT_SORT_KEYS))
    digest.update(long)
    return digest.hexdigest()


def _without_defaults(value: Any) -> Any:
    """Drop absent options, so that an option that a later library version adds does not change the hash."""
    if isinstance(value, dict):
        return {k: _without_defaults(v) for k, v in value.items() if v is not None and v is not False}
    return [_without_defaults(v) for v in value] if isinstance(value, list) else value
