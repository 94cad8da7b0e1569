"""Independent evaluation: a Hugging Face model on raw documents, with `transformers` and its tokenizer alone.

Place in the flow: `cptron eval --hugging-face`, to check the trainer's own word. Invariant: shares no code
with the engine, the token files or their readers; only the definition of the measure is the same.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cptron.errors import DataError


def documents(path: Path, key: str = "text") -> Iterator[str]:
    """Texts of a JSONL file, gzipped or not. Raises `DataError` with file and line on bad input."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; give a JSONL file")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)[key]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a JSON object with a string {key!r} ({error})"
                ) from None


def evaluate_hugging_face(
    model_dir: Path,
    jsonl: Path,
    seq_length: int,
    max_tokens: int = 0,
    batch_size: int = 4,
    document_mask: bool = True,
) -> tuple[float, int]:
    """(loss in nats per token, predicted tokens), in fp32 on the CPU.

    Documents are tokenized without special tokens, each followed by the end-of-text token, concatenated in
    file order and cut into windows of `seq_length` predictions; the model sees one window at a time, and with
    `document_mask` no token sees another document than its own.
    """
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True).eval()
    stream: list[tuple[int, int]] = []
    for number, text in enumerate(documents(jsonl)):
        if text:
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            stream += [(token, number if document_mask else 0) for token in ids]
        if max_tokens and len(stream) > max_tokens:
            break
    stream = stream[: max_tokens + 1] if max_tokens else stream
    windows = [stream[start : start + seq_length + 1] for start in range(0, len(stream) - 1, seq_length)]
    full = [window for window in windows if len(window) == seq_length + 1]
    groups = [full[start : start + batch_size] for start in range(0, len(full), batch_size)]
    groups += [[window] for window in windows[len(full) :]]
    loss_sum, tokens = 0.0, 0
    predictions = sum(len(window) - 1 for window in windows)
    with (
        torch.no_grad(),
        tqdm(total=predictions, desc=f"eval {jsonl.name}", unit="tok", unit_scale=True) as progress,
    ):
        for group in groups:
            loss, count = _summed_loss(model, torch.tensor(group))
            loss_sum += loss
            tokens += count
            progress.update(count)
    if not tokens:
        raise DataError(f"{jsonl} has no token to predict; give a file with text")
    return loss_sum / tokens, tokens


def _summed_loss(model: Any, windows_BS2: torch.Tensor) -> tuple[float, int]:
    """Summed loss and predictions of windows of (token, document)."""
    ids_BS, documents_BS = windows_BS2.unbind(-1)
    inputs_BS, labels_BS, seen_BS = ids_BS[:, :-1], ids_BS[:, 1:], documents_BS[:, :-1]
    mask_B1SS: torch.Tensor | None = None
    if (seen_BS != seen_BS[:, :1]).any():
        window = getattr(model.config, "sliding_window", None)
        if window is not None and window < seen_BS.shape[1]:
            return _loss_by_document(model, inputs_BS, labels_BS, seen_BS), labels_BS.numel()
        same_BSS = seen_BS[:, :, None] == seen_BS[:, None, :]
        mask_B1SS = (same_BSS & torch.ones(same_BSS.shape[1:], dtype=torch.bool).tril())[:, None]
    logits_BSV = model(inputs_BS, attention_mask=mask_B1SS).logits
    loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), reduction="sum")
    return float(loss.double()), labels_BS.numel()


def _loss_by_document(
    model: Any, inputs_BS: torch.Tensor, labels_BS: torch.Tensor, seen_BS: torch.Tensor
) -> float:
    """Summed loss, one document at a time: a mask that is given would replace the model's own, with its window."""
    total = 0.0
    for inputs_S, labels_S, seen_S in zip(inputs_BS, labels_BS, seen_BS, strict=True):
        start = 0
        for length in torch.unique_consecutive(seen_S, return_counts=True)[1].tolist():
            part = slice(start, start + length)
            positions_1S = torch.arange(start, start + length)[None]
            logits_1SV = model(inputs_S[None, part], position_ids=positions_1S).logits
            loss = torch.nn.functional.cross_entropy(logits_1SV[0], labels_S[part], reduction="sum")
            total += float(loss.double())
            start += length
    return total
