"""Tokenizers: text -> token ids, from a Hugging Face `tokenizer.json` or a SentencePiece model.

Place in the flow: `preprocess` encodes corpora with one; `manifest` records its fingerprint so that a run can
refuse data made with another.
Invariant: two tokenizers with the same fingerprint give the same ids for every text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from cptron.errors import DataError

TokenizerKind = Literal["auto", "hf", "sentencepiece"]


class Tokenizer(Protocol):
    """What the rest of cptron needs of a tokenizer. No method adds special tokens of its own accord."""

    @property
    def name(self) -> str:
        """Short name for people; not part of the identity."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything that decides the ids of a text, and of the EOS and BOS ids."""

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, added tokens included."""

    @property
    def eos_id(self) -> int | None:
        """Id that ends a document, if the tokenizer names one."""

    @property
    def bos_id(self) -> int | None:
        """Id that begins a document, if the tokenizer names one."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; special tokens written out in a text become their ids, as with Hugging Face."""

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""


def load_tokenizer(path: str | Path, kind: TokenizerKind = "auto") -> Tokenizer:
    """Load the tokenizer at `path`: a directory, a `tokenizer.json`, or a SentencePiece `.model`.

    `auto` takes `tokenizer.json` of a directory, or its `tokenizer.model` when there is none. Raises
    DataError when nothing of that kind is there or the file is damaged.
    """
    found = Path(path)
    if found.is_dir():
        hf, piece = found / "tokenizer.json", found / "tokenizer.model"
        use_hf = kind == "hf" or (kind == "auto" and hf.is_file())
        found = hf if use_hf else piece
    if not found.is_file():
        raise DataError(
            f"tokenizer {path} must be a directory with tokenizer.json or tokenizer.model, or one such file "
            f"(looked for {found}, kind {kind}); check the path"
        )
    if kind == "sentencepiece" or (kind == "auto" and found.suffix == ".model"):
        return SentencePieceTokenizer(found)
    from cptron.tokens.hf_tokenizer import HfTokenizer

    return HfTokenizer(found)


class SentencePieceTokenizer:
    """A SentencePiece model, as it was trained: no tokens are added to it."""

    def __init__(self, path: Path) -> None:
        """Load `path`. Raises DataError when the file is no SentencePiece model or the package is missing."""
        try:
            import sentencepiece
        except ImportError:
            raise DataError(
                f"{path} needs the package sentencepiece, not installed; install it or use tokenizer.json"
            ) from None
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{path} must be a SentencePiece model ({one_line(error)}); copy the file again"
            ) from error
        self.name = tokenizer_name(path)
        self.vocab_size = int(self._model.get_piece_size())
        self.eos_id = _id_or_none(self._model.eos_id())
        self.bos_id = _id_or_none(self._model.bos_id())
        digest = hashlib.sha256(self._model.serialized_model_proto())
        digest.update(f"eos={self.eos_id} bos={self.bos_id}".encode())
        self.fingerprint = digest.hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on the calling thread."""
        return [list(ids) for ids in self._model.encode(list(texts), out_type=int, num_threads=1)]

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; control pieces such as EOS have no text in SentencePiece."""
        return str(self._model.decode([int(i) for i in ids]))


def tokenizer_name(path: Path) -> str:
    """Name of the directory that holds `path`, or of the file where it is not a standard one."""
    standard = path.name in ("tokenizer.json", "tokenizer.model")
    return path.resolve().parent.name if standard else path.name


def one_line(error: BaseException) -> str:
    """Message of another library's `error`, fit for a one-line message of ours."""
    return " ".join(str(error).split())


def _id_or_none(token_id: int) -> int | None:
    return int(token_id) if token_id >= 0 else None
