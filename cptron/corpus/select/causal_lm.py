"""Loss of whole documents under a Hugging Face causal model.

Place in the flow: `steps/perplexity` opens one in each process. Invariant: every token behind the first is predicted
exactly once, with at least `window - stride` tokens before it where there are so many; a document that fits into one
window has the loss that `transformers` computes for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cptron.errors import DataError

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16", "float16"]
_POSITIONS_AT_ONCE = 512
"""Whose logits are brought to fp32 together."""


@dataclass(frozen=True, slots=True)
class Score:
    """Of one document."""

    nats: float
    """Sum over the tokens that were predicted."""
    tokens: int
    """That were predicted."""
    bytes: int
    """Of their text."""

    @property
    def nats_per_token(self) -> float:
        """Mean loss; the perplexity is its exponential."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats / math.log(2) / max(1, self.bytes)


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens [start, stop) of a document, of which [first, stop) are predicted."""

    document: int
    start: int
    first: int
    stop: int


def windows_of(document: int, length: int, window: int, stride: int, most: int = 0) -> list[Window]:
    """Windows over `length` tokens; of more than `most` (0: no limit) those that are spread over the document."""
    found, first, start = [], 1, 0
    while first < length:
        stop = min(start + window, length)
        found.append(Window(document, start, first, stop))
        first, start = stop, start + stride
    if most and len(found) > most:
        found = [found[number * len(found) // most] for number in range(most)]
    return found


def batches_of(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of similar length together, as many as `batch_tokens` allow with padding; one at least."""
    batch: list[Window] = []
    for one in sorted(windows, key=lambda one: (one.start - one.stop, one.document, one.start)):
        if batch and (len(batch) + 1) * (batch[0].stop - batch[0].start) > batch_tokens:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


class CausalScorer:
    """Model and tokenizer of a directory. Raises DataError where they cannot be loaded."""

    def __init__(
        self,
        directory: Path,
        *,
        device: Device,
        dtype: DType,
        window: int,
        stride: int,
        most_windows: int,
        batch_tokens: int,
        threads: int,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        if device == "cuda" and not torch.cuda.is_available():
            raise DataError(f"device {device} is not there, must be for device: cuda; use device: cpu")
        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(
                f"{directory} is no causal model that transformers loads ({reason}); correct it"
            ) from None
        if not self._tokenizer.is_fast:
            raise DataError(
                f"the tokenizer in {directory} has no places in the text, must be a fast one; convert it"
            )
        self._model = model.to(device).eval()
        places = getattr(model.config, "max_position_embeddings", None) or window
        self._window = min(window, int(places))
        self._stride = min(stride, self._window - 1)
        self._most_windows, self._batch_tokens, self._threads = most_windows, batch_tokens, threads
        self._device = device

    def scores(self, texts: Sequence[str]) -> list[Score | None]:
        """Of each text; None where there is nothing to predict."""
        ids, byte_ends = zip(*map(self._encoded, texts), strict=True)
        windows = [
            window
            for number, tokens in enumerate(ids)
            for window in windows_of(number, len(tokens), self._window, self._stride, self._most_windows)
        ]
        nats, tokens, num_bytes = [0.0] * len(texts), [0] * len(texts), [0] * len(texts)
        for batch in batches_of(windows, self._batch_tokens):
            for one, loss in zip(batch, self._losses([ids[w.document][w.start : w.stop] for w in batch], batch),
                                 strict=True):  # fmt: skip
                ends = byte_ends[one.document]
                nats[one.document] += loss
                tokens[one.document] += one.stop - one.first
                num_bytes[one.document] += ends[one.stop - 1] - ends[one.first - 1]
        return [Score(*found) if found[1] else None for found in zip(nats, tokens, num_bytes, strict=True)]

    def _encoded(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, with the tokenizer's beginning-of-text token if it has one, and the byte of the text behind each."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, ends, last, byte = list(found["input_ids"]), [], 0, 0
        for _, stop in found["offset_mapping"]:
            byte += len(text[last:stop].encode())
            last = max(last, stop)
            ends.append(byte)
        if self._tokenizer.bos_token_id is not None:
            ids, ends = [self._tokenizer.bos_token_id, *ids], [0, *ends]
        return ids, ends

    def _losses(self, rows: Sequence[Sequence[int]], batch: Sequence[Window]) -> list[float]:
        """Sum of the losses of each window's predicted tokens, in nats."""
        import torch

        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                given = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
                logits = self._model(**given, use_cache=False).logits
                return [
                    self._sum(
                        logits[number],
                        given["input_ids"][number],
                        one.first - one.start,
                        one.stop - one.start,
                    )
                    for number, one in enumerate(batch)
                ]
        finally:
            torch.set_num_threads(threads)

    def _sum(self, logits: Any, ids: Any, first: int, stop: int) -> float:
        """Loss of the tokens [first, stop) of one row."""
        import torch

        total = 0.0
        for start in range(first, stop, _POSITIONS_AT_ONCE):
            end = min(start + _POSITIONS_AT_ONCE, stop)
            predicted = logits[start - 1 : end - 1].float()
            total += float(torch.nn.functional.cross_entropy(predicted, ids[start:end], reduction="sum"))
        return total
