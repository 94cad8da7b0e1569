"""The gigatoken engine: byte-pair encoding with a cache of words, without the GIL.

Place in the flow: `engine.choose_engine` loads it and compares it with the reference before it is used.
Invariant: a text whose ids gigatoken cannot give (one with a byte the vocabulary lacks, or with the separator
itself) is encoded by the reference.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from importlib.metadata import version
from threading import Lock
from typing import Any

import numpy as np
import orjson
from tokenizers.pre_tokenizers import ByteLevel

from cptron.tokens.engine_reference import Ids, Lengths, ReferenceEngine, encode_halves, replace_texts
from cptron.tokens.tokenizer import Tokenizer

# Texts are joined into one call by an added token of our own, because a call for each text holds the GIL and a
# ragged result imports awkward, for seconds. Private code points: no tokenizer's own tokens begin or end with them.
# No beginning of it is an end of it, so it cannot overlap itself: part of it in a text moves no border.
_SEPARATOR = "\U0010fffd\u0001cptron\u0001\U0010fffc"

# Up to here `parallel` means no more than that threads do not wait for one another. Above it gigatoken would cut a
# text for its own threads, and exactness at its cuts cannot be compared before the start: one thread takes the text.
_MAX_PIECE_BYTES = 1 << 20
_CHECK_BYTES = 16 << 20
# For each core: each thread that encodes has a cache of its own.
_MAX_GROWTH_BYTES = (64 << 20) * len(os.sched_getaffinity(0))


class GigatokenEngine:
    """gigatoken for a Hugging Face tokenizer or a SentencePiece model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Load. Raises ImportError without the package, and whatever gigatoken raises (or panics with) for a
        tokenizer that it does not know."""
        from gigatoken import gigatoken_rs

        self.name = f"gigatoken {version('gigatoken')}"
        self._library: Any = gigatoken_rs
        self._reference = ReferenceEngine(tokenizer)
        self._separator_id = tokenizer.vocab_size
        self._one_row = gigatoken_rs.PadTruncate(pad_id=0)
        self._definition = _definition(tokenizer)
        self._lock = Lock()
        self._load()

    def encode(self, texts: Sequence[bytes]) -> tuple[Ids, Lengths]:
        """Ids and lengths, see `Engine.encode`."""
        if not texts:
            return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        joined = _SEPARATOR.encode().join(texts)
        one_piece = len(joined) <= _MAX_PIECE_BYTES
        if not one_piece and len(texts) > 1:
            return encode_halves(self.encode, texts)
        backend = self._loaded(len(joined))
        source = self._library.BytesSource(joined)
        rows, _ = backend.encode_batch_padded(source, self._one_row, parallel=one_piece)
        ids: Ids = rows.reshape(-1)
        cuts = np.flatnonzero(ids == self._separator_id)
        if len(cuts) != len(texts) - 1:
            return self._reference.encode(texts)
        lengths = np.diff(cuts, prepend=-1, append=len(ids)) - 1
        flat = ids[ids != self._separator_id] if len(cuts) else ids
        unknown = np.flatnonzero(ids > self._separator_id)
        if not len(unknown):
            return flat, lengths
        which = np.unique(np.searchsorted(cuts, unknown)).tolist()
        return replace_texts(flat, lengths, which, texts, self._reference)

    def _load(self) -> None:
        self._backend: Any = None  # let go of the old one first
        _give_memory_back()
        self._backend = self._library.load_hf_json(self._definition)
        self._resident, self._unchecked = _resident_bytes(), 0

    def _loaded(self, num_bytes: int) -> Any:
        """The library's tokenizer for `num_bytes` more; a new one where its cache of words has grown, which it
        does without a limit, by up to 9 bytes for each byte of text."""
        with self._lock:
            self._unchecked += num_bytes
            if self._unchecked >= _CHECK_BYTES:
                self._unchecked = 0
                if _resident_bytes() - self._resident > _MAX_GROWTH_BYTES:
                    self._load()
            return self._backend


def _give_memory_back() -> None:
    """glibc keeps what is freed in pieces; a new cache would come on top of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _definition(tokenizer: Tokenizer) -> bytes:
    """`tokenizer.json` with the separator added, and a token for every byte that the vocabulary lacks, which
    gigatoken requires: the separator has the first free id, the bytes the next ones."""
    text = tokenizer.definition("tokenizer.json") or _from_sentencepiece(tokenizer)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    separator = {"id": tokenizer.vocab_size, "content": _SEPARATOR, **flags, "special": True}
    text = _insert(text, b'"added_tokens":[', orjson.dumps(separator))
    if b'"type":"BPE"' not in text or b'"byte_fallback":true' in text:
        return text
    # Searched, not parsed, which would take as long as loading. A quote inside a key is escaped.
    keys = [orjson.dumps(char) + b":" for char in sorted(ByteLevel.alphabet())]
    missing = [key for key in keys if b"," + key not in text and b"{" + key not in text]
    ids = range(tokenizer.vocab_size + 1, tokenizer.vocab_size + 1 + len(missing))
    entries = b",".join(key + str(token_id).encode() for key, token_id in zip(missing, ids, strict=True))
    return _insert(text, b'"vocab":{', entries) if missing else text


def _insert(text: bytes, opening: bytes, first: bytes) -> bytes:
    """Put `first` at the beginning of the JSON list or object that begins with `opening`."""
    before, found, after = text.partition(opening)
    if not found:
        raise ValueError(f"{opening.decode()} not found in its tokenizer.json")
    comma = b"" if after[:1] in (b"]", b"}") else b","
    return before + found + first + comma + after


def _from_sentencepiece(tokenizer: Tokenizer) -> bytes:
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

    model = tokenizer.definition("tokenizer.model")
    if model is None:
        raise ValueError("it reads tokenizer.json and SentencePiece models only")
    content = orjson.loads(sentencepiece_to_tokenizer_json(model))
    # SentencePiece cuts control pieces such as `</s>` written in a text like other text.
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["special"]]
    return orjson.dumps(content)
