"""Vectors of documents by a Hugging Face encoder, mean-pooled over all tokens.

Place in the flow: `steps/dacp`, where `embedding: encoder`. Invariant: the whole document counts: parts of the length
that the encoder sees, each weighted by its tokens; torch is imported when one is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.select.causal_lm import Device
from cptron.errors import DataError

_MOST_POSITIONS = 512
_BATCH = 16


class Encoder:
    """Model and tokenizer of a directory. Raises DataError where they cannot be loaded."""

    def __init__(self, directory: Path, device: Device) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        if device == "cuda" and not torch.cuda.is_available():
            raise DataError(f"device {device} is not there, must be for device: cuda; use device: cpu")
        logging.disable_progress_bar()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model: Any = AutoModel.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(
                f"{directory} is no encoder that transformers loads ({reason}); correct it"
            ) from None
        self._model, self._device = model.to(device).eval(), device
        places = getattr(model.config, "max_position_embeddings", None) or _MOST_POSITIONS
        # Encoders of the RoBERTa family count positions from their padding id on.
        self._longest = min(_MOST_POSITIONS, int(places) - 2)

    def vector(self, text: str) -> NDArray[np.float32]:
        """Mean of the last hidden states of all tokens; zeros for an empty text."""
        found = self._tokenizer(
            text, truncation=True, max_length=self._longest, return_overflowing_tokens=True, verbose=False
        )
        rows = [row for row in found["input_ids"] if row]
        total, count = np.zeros(self._model.config.hidden_size, np.float64), 0
        for start in range(0, len(rows), _BATCH):
            sums = self._sums(rows[start : start + _BATCH])
            total, count = total + sums, count + sum(map(len, rows[start : start + _BATCH]))
        return (total / max(1, count)).astype(np.float32)

    def _sums(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        import torch

        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so that the last digits do not depend on the machine's cores
        try:
            with torch.inference_mode():
                given = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
                hidden = self._model(**given).last_hidden_state * given["attention_mask"].unsqueeze(-1)
                return np.asarray(hidden.double().sum(dim=(0, 1)).cpu().numpy())
        finally:
            torch.set_num_threads(threads)
