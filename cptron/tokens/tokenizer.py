"""Tokenizers: text -> token ids, from a Hugging Face `tokenizer.json`, a SentencePiece model or tiktoken ranks.

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

TokenizerKind = Literal["auto", "hf", "sentencepiece", "tiktoken"]
DefinitionFormat = Literal["tokenizer.json", "tokenizer.model"]


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
    def library(self) -> str:
        """The library that encodes, and its version."""

    @property
    def added_tokens(self) -> Sequence[str]:
        """Texts that are one token wherever they stand in a text, or look so."""

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

    def definition(self, form: DefinitionFormat) -> bytes | None:
        """The whole tokenizer in the format of that file, for other libraries; None where it has no such form."""


def load_tokenizer(path: str | Path, kind: TokenizerKind = "auto") -> Tokenizer:
    """Load the tokenizer at `path`: a directory, a `tokenizer.json`, a SentencePiece `.model`, or a `.tiktoken`
    file of ranks with a `tiktoken_config.json` beside it.

    `auto` takes the first of these that a directory holds. Raises DataError when nothing of that kind is there
    or a file is damaged.
    """
    found = Path(path)
    if found.is_dir():
        found = _in_directory(found, kind)
    if not found.is_file():
        raise DataError(
            f"tokenizer {path} must be a directory with tokenizer.json or tokenizer.model or one .tiktoken file, "
            f"or one such file (looked for {found}, kind {kind}); check the path"
        )
    if kind == "tiktoken" or (kind == "auto" and found.suffix == ".tiktoken"):
        from cptron.tokens.tiktoken_tokenizer import TiktokenTokenizer, read_tiktoken_config

        return TiktokenTokenizer(found, read_tiktoken_config(found.parent / "tiktoken_config.json"))
    if kind == "sentencepiece" or (kind == "auto" and found.suffix == ".model"):
        return SentencePieceTokenizer(found)
    from cptron.tokens.hf_tokenizer import HfTokenizer

    return HfTokenizer(found)


def _in_directory(directory: Path, kind: TokenizerKind) -> Path:
    hf, piece = directory / "tokenizer.json", directory / "tokenizer.model"
    ranks = sorted(directory.glob("*.tiktoken"))
    if kind == "tiktoken" or (kind == "auto" and ranks and not hf.is_file() and not piece.is_file()):
        if len(ranks) > 1:
            raise DataError(f"{directory} holds {len(ranks)} .tiktoken files, must hold one; name the file")
        return ranks[0] if ranks else directory / "*.tiktoken"
    return hf if kind == "hf" or (kind == "auto" and hf.is_file()) else piece


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
        self.library = f"sentencepiece {sentencepiece.__version__}"
        self.vocab_size = int(self._model.get_piece_size())
        self.eos_id = _id_or_none(self._model.eos_id())
        self.bos_id = _id_or_none(self._model.bos_id())
        # Control, unknown and user-defined pieces have no score; the library does not tell the last ones.
        pieces = [i for i in range(self.vocab_size) if self._model.get_score(i) == 0]
        self.added_tokens = [str(self._model.id_to_piece(i)) for i in pieces if not self._model.is_byte(i)]
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

    def definition(self, form: DefinitionFormat) -> bytes | None:
        """The model's own file format."""
        return bytes(self._model.serialized_model_proto()) if form == "tokenizer.model" else None


def tokenizer_name(path: Path) -> str:
    """Name of the directory that holds `path`, or of the file where it is not a standard one."""
    standard = path.name in ("tokenizer.json", "tokenizer.model")
    return path.resolve().parent.name if standard else path.name


def one_line(error: BaseException) -> str:
    """Message of another library's `error`, fit for a one-line message of ours."""
    return " ".join(str(error).split())


def _id_or_none(token_id: int) -> int | None:
    return int(token_id) if token_id >= 0 else None
