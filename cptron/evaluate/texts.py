"""Documents of a JSONL file as windows of tokens, each with its group: text that the engine evaluates.

Place in the flow: JSONL -> `perplexity`; the readers and the tokenizer are those of `cptron preprocess`. Invariant:
the tokens, their order and the windows are those of the token files that `preprocess --append-eod` makes of the file.

Shapes: B windows of a micro-batch, S tokens predicted in a window, N tokens of a stretch of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cptron.data.batch import MicroBatch
from cptron.data.source import check_ids, named
from cptron.errors import DataError
from cptron.evaluate.measure import Measure
from cptron.tokens.inputs import Input, expand_inputs
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import Position
from cptron.tokens.tokenizer import Tokenizer

MAX_DOCUMENT_BYTES = 1 << 30
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """How a stream of tokens is cut."""

    seq_length: int
    """Predictions in a window."""
    max_tokens: int
    """Predictions in all; 0 for no limit."""
    micro_batch_size: int


@dataclass(frozen=True, slots=True)
class TextSet:
    """One JSONL file. Documents are counted in `measure` as they are read; losses are added by who computes them."""

    path: str
    key: str
    by: str | None
    """Key of the group of a document; None: no groups."""
    windows: Windows
    tokenizer: Tokenizer
    vocab_size: int
    measure: Measure

    def batches(self) -> Iterator[tuple[MicroBatch, Int64Array]]:
        """Micro-batches, and the group of each label `[B, S]`. Raises DataError."""
        at_once = self.windows.seq_length * self.windows.micro_batch_size
        held_3N = np.empty((3, 0), np.int64)
        for stretch_3N in self._stretches():
            held_3N = np.concatenate([held_3N, stretch_3N], axis=1)
            while held_3N.shape[1] > at_once:
                yield self._batch(held_3N[:, : at_once + 1])
                held_3N = held_3N[:, at_once:]  # the last label is the next input
        if held_3N.shape[1] > 1:
            yield self._batch(held_3N)

    def _batch(self, stretch_3N: Int64Array) -> tuple[MicroBatch, Int64Array]:
        places = stretch_3N.shape[1] - 1
        rows = -(-places // self.windows.seq_length)
        shape = (rows, self.windows.seq_length)
        inputs_3BS = np.zeros((3, rows * self.windows.seq_length), np.int64)
        labels_3BS = inputs_3BS.copy()
        inputs_3BS[1] = stretch_3N[1, -1] + 1  # places without a token are one more document
        inputs_3BS[:, :places], labels_3BS[:, :places] = stretch_3N[:, :-1], stretch_3N[:, 1:]
        batch = MicroBatch(
            inputs_3BS[0].reshape(shape),
            labels_3BS[0].reshape(shape),
            (np.arange(rows * self.windows.seq_length) < places).astype(np.float32).reshape(shape),
            np.zeros(rows, np.int64),
            inputs_3BS[1].astype(np.int32).reshape(shape),
        )
        return batch, labels_3BS[2].reshape(shape)

    def _stretches(self) -> Iterator[Int64Array]:
        """(token, document, group) of every token of the file, up to the limit."""
        left = self.windows.max_tokens + 1 if self.windows.max_tokens else None
        document = 0
        for records in self._records():
            pieces = []
            encoded = self.tokenizer.encode_batch([text.decode() for text, _ in records])
            for (text, group), ids in zip(records, encoded, strict=True):
                if not ids or left == 0:
                    continue
                tokens_N = np.array([*ids, self.tokenizer.eos_id], np.int64)
                kept_N = tokens_N[:left]
                number = self.measure.add_document(group, len(text), cut=len(kept_N) < len(tokens_N))
                pieces.append(
                    np.stack([kept_N, np.full_like(kept_N, document), np.full_like(kept_N, number)])
                )
                document += 1
                left = None if left is None else left - len(kept_N)
            if pieces:
                stretch_3N = np.concatenate(pieces, axis=1)
                with named(self.path):
                    check_ids(stretch_3N[0], self.vocab_size)
                yield stretch_3N
            if left == 0:
                return

    def _records(self) -> Iterator[list[tuple[bytes, str]]]:
        """(text, group) of the documents, a block of them at a time."""
        keys = [self.key, *([self.by] if self.by else [])]
        blocks = read_blocks(_inputs(self.path), Position(0, 0, 0), max_record_bytes=MAX_DOCUMENT_BYTES)
        for block in blocks:
            parsed = block.parse(keys, chat=False)
            for reject in parsed.rejects:
                raise DataError(
                    f"{reject.path}:{reject.record}: {reject.detail}; correct the line, or name other keys"
                )
            yield [_text_and_group(values) for values in parsed.values]


def open_texts(
    path: str, key: str, by: str | None, windows: Windows, tokenizer: Tokenizer, vocab_size: int
) -> TextSet:
    """A JSONL file to evaluate. Raises DataError when it is none, or the tokenizer cannot end a document."""
    _inputs(path)
    if tokenizer.eos_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name} names no end-of-text token, every document must end with one; "
            "add eos_token to its tokenizer_config.json"
        )
    return TextSet(path, key, by, windows, tokenizer, vocab_size, Measure())


def _inputs(path: str) -> list[Input]:
    (source,) = expand_inputs([path])
    if source.kind != "jsonl":
        raise DataError(f"{path} is a {source.kind} file, must be JSONL; convert it first")
    return [source]


def _text_and_group(values: Sequence[object]) -> tuple[bytes, str]:
    texts = [value for value in values if isinstance(value, bytes)]
    assert len(texts) == len(values), "without chats the readers give bytes"
    return texts[0], texts[1].decode() if len(texts) > 1 else ""
