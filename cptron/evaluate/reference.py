"""Independent evaluation: a Hugging Face model on raw documents, with `transformers` and its tokenizer alone.

Place in the flow: `cptron eval --hugging-face`, to check the trainer's own word. Invariant: shares no code
with the engine, the token files or their readers; only the definition of the measure is the same.

Shapes: B windows, S predictions of a window, 3: token, document, group.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import zstandard
from safetensors import SafetensorError

from cptron.errors import ConversionError, DataError
from cptron.evaluate.measure import Measure

MAX_LINE_CHARACTERS = 1 << 28
"""A longer line is no document; what a packed file becomes is not known before."""


class Document(NamedTuple):
    """One line."""

    text: str
    num_bytes: int
    group: str


def documents(path: Path, key: str = "text", by: str | None = None) -> Iterator[Document]:
    """Documents of a JSONL file, plain, `.gz` or `.zst`; `by` is the key of their group. Raises `DataError` with file
    and line on bad input."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a JSONL file")
    openers: dict[str, Any] = {".gz": gzip.open, ".zst": zstandard.open, ".zstd": zstandard.open}
    number = 0
    try:
        with openers.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            while line := file.readline(MAX_LINE_CHARACTERS):
                number += 1
                if len(line) == MAX_LINE_CHARACTERS:
                    raise ValueError(f"the line has {MAX_LINE_CHARACTERS} characters or more")
                yield _document(line, key, by)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}:{number}: not a JSON object with a string {key!r} ({error})") from None
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be read after line {number} ({error}); check the file") from None


def _document(line: str, key: str, by: str | None) -> Document:
    record = json.loads(line)
    found = [record[name] for name in (key, *([by] if by else []))]
    for name, value in zip((key, by), found, strict=False):
        if not isinstance(value, str):
            raise TypeError(f"key {name!r} holds a {type(value).__name__}, must be a string")
    return Document(found[0], len(found[0].encode()), found[1] if by else "")


def load_model(directory: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a directory, by `transformers`. Raises `ConversionError` where it does not load them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True), tokenizer
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConversionError(
            f"transformers does not load {directory} ({str(error).splitlines()[0]}); give a complete model with its "
            "tokenizer"
        ) from None


class Reference:
    """A Hugging Face model and its tokenizer, in fp32 on the CPU."""

    def __init__(self, model_dir: Path) -> None:
        """Load both. Raises `ConversionError` when they are not there, or documents cannot be ended."""
        from transformers.utils import logging

        if not model_dir.is_dir():
            raise ConversionError(f"Hugging Face model {model_dir} does not exist; give a model's directory")
        logging.disable_progress_bar()
        model, self._tokenizer = load_model(model_dir, torch.float32)
        if self._tokenizer.eos_token_id is None:
            raise ConversionError(
                f"the tokenizer in {model_dir} names no eos_token, every document must end with one; add it"
            )
        self._model = model.eval()

    def evaluate(
        self,
        jsonl: Path,
        seq_length: int,
        max_tokens: int = 0,
        batch_size: int = 4,
        document_mask: bool = True,
        key: str = "text",
        by: str | None = None,
    ) -> Measure:
        """Losses by group.

        Documents are tokenized without special tokens, each followed by the end-of-text token, concatenated in
        file order and cut into windows of `seq_length` predictions; the model sees one window at a time, and with
        `document_mask` no token sees another document than its own.
        """
        from tqdm import tqdm

        measure = Measure()
        stream = self._stream(documents(jsonl, key, by), max_tokens, measure)
        windows = [stream[start : start + seq_length + 1] for start in range(0, len(stream) - 1, seq_length)]
        full = [window for window in windows if len(window) == seq_length + 1]
        batches = [full[start : start + batch_size] for start in range(0, len(full), batch_size)]
        batches += [[window] for window in windows[len(full) :]]
        with (
            torch.no_grad(),
            tqdm(
                total=max(0, len(stream) - 1), desc=f"eval {jsonl.name}", unit="tok", unit_scale=True
            ) as progress,
        ):
            for batch in batches:
                windows_BS3 = torch.tensor(batch)
                losses_BS = self._losses(windows_BS3, document_mask)
                groups_BS = windows_BS3[:, 1:, 2]
                for number in groups_BS.unique().tolist():
                    losses = losses_BS[groups_BS == number]
                    measure.add_losses(number, float(losses.double().sum()), len(losses))
                progress.update(losses_BS.numel())
        if not measure.total.tokens:
            raise DataError(f"{jsonl} has no token to predict; give a file with text")
        return measure

    def _stream(
        self, texts: Iterator[Document], max_tokens: int, measure: Measure
    ) -> list[tuple[int, int, int]]:
        """(token, document, group) of every token, up to the limit."""
        stream: list[tuple[int, int, int]] = []
        for number, (text, num_bytes, group) in enumerate(texts):
            if max_tokens and len(stream) > max_tokens:
                break
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if ids:
                ids = [*ids, self._tokenizer.eos_token_id]
                kept = ids[: max_tokens + 1 - len(stream)] if max_tokens else ids
                group_number = measure.add_document(group, num_bytes, cut=kept != ids)
                stream += [(token, number, group_number) for token in kept]
        return stream

    def _losses(self, windows_BS3: torch.Tensor, document_mask: bool) -> torch.Tensor:
        """Loss of each prediction `[B, S]`."""
        ids_BS, documents_BS, _ = windows_BS3.unbind(-1)
        inputs_BS, labels_BS, seen_BS = ids_BS[:, :-1], ids_BS[:, 1:], documents_BS[:, :-1]
        mask_B1SS: torch.Tensor | None = None
        if document_mask and (seen_BS != seen_BS[:, :1]).any():
            window = getattr(self._model.config, "sliding_window", None)
            if window is not None and window < seen_BS.shape[1]:
                return self._losses_by_document(inputs_BS, labels_BS, seen_BS)
            same_BSS = seen_BS[:, :, None] == seen_BS[:, None, :]
            mask_B1SS = (same_BSS & torch.ones(same_BSS.shape[1:], dtype=torch.bool).tril())[:, None]
        logits_BSV = self._model(inputs_BS, attention_mask=mask_B1SS).logits
        # over the last dimension: over another torch adds a large vocabulary up with 1e-4 nats of error
        losses_T = torch.nn.functional.cross_entropy(
            logits_BSV.flatten(0, 1), labels_BS.flatten(), reduction="none"
        )
        return losses_T.view(labels_BS.shape)

    def _losses_by_document(
        self, inputs_BS: torch.Tensor, labels_BS: torch.Tensor, seen_BS: torch.Tensor
    ) -> torch.Tensor:
        """The same, one document at a time: a mask that is given would replace the model's own, with its window."""
        losses_BS = torch.zeros(labels_BS.shape)
        for row, seen_S in enumerate(seen_BS):
            start = 0
            for length in torch.unique_consecutive(seen_S, return_counts=True)[1].tolist():
                part = slice(start, start + length)
                positions_1S = torch.arange(start, start + length)[None]
                logits_1SV = self._model(inputs_BS[row : row + 1, part], position_ids=positions_1S).logits
                losses_BS[row, part] = torch.nn.functional.cross_entropy(
                    logits_1SV[0], labels_BS[row, part], reduction="none"
                )
                start += length
        return losses_BS
