"""Texts of two domains, a tiny causal model with its tokenizer, and steps called as the runner calls them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from corpus_world import lines_of
from numpy.typing import NDArray

from cptron.corpus.document import Document, Result
from cptron.corpus.registry import config_class, step_class
from cptron.corpus.step import ShardFeatures, Tally, read_verdicts

ROOT = Path(__file__).parents[1]


def pieces(text: str, length: int = 1500) -> list[str]:
    """Of equal length, but for the last."""
    return [text[start : start + length] for start in range(0, len(text), length)]


def program_texts() -> list[str]:
    """Python of this repository."""
    return pieces("\n".join(path.read_text() for path in sorted((ROOT / "cptron" / "corpus").rglob("*.py"))))


def prose_texts() -> list[str]:
    """English of this repository: its pages without commands, tables and names of the program."""
    pages = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    prose = re.sub(r"`[^`\n]*`", "it", re.sub(r"^```.*?^```$", "", pages, flags=re.MULTILINE | re.DOTALL))
    return pieces("\n".join(line for line in prose.splitlines() if line and line[0] not in "|#"))


def write_texts(path: Path, texts: Sequence[str]) -> str:
    """As JSONL."""
    path.write_bytes(lines_of(texts))
    return str(path)


def made(name: str, **settings: Any) -> Any:
    """An opened step."""
    config = config_class(name)(**settings)
    assert not step_class(name).problem(config)
    step = step_class(name)(name, config, 3)
    step.files()
    step.open()
    return step


def decided(
    step: Any, shards: Sequence[Sequence[Document]], root: Path
) -> tuple[NDArray[np.uint8], list[Result], Tally]:
    """Verdicts and results of a corpus step over some shards (no verdicts for a step that decides in its second
    pass)."""
    target = root / "decided"
    target.mkdir()
    features = []
    for number, documents in enumerate(shards):
        path = root / f"{number}.features"
        step.features(iter(documents), path, Tally())
        features.append(ShardFeatures(number, path, len(documents), lambda: iter(())))
    step.decide(features, target, 1)
    results, tally = [], Tally()
    for number, documents in enumerate(shards):
        call = step.applied(target, number)
        results += [call(document, tally) for document in documents]
    files = [target / f"{number:05d}.verdicts" for number in range(len(shards))]
    codes = [read_verdicts(target, number) for number, path in enumerate(files) if path.is_file()]
    return np.concatenate(codes) if codes else np.zeros(0, np.uint8), results, tally


def documents(texts: Sequence[str], **meta: Any) -> list[Document]:
    """With ids of their own."""
    return [Document(text, f"x/a.jsonl#{number}", "x", meta) for number, text in enumerate(texts)]


def save_causal(directory: Path, *, positions: int = 64, bos: bool = True) -> Path:
    """A random GPT-2 over bytes; with `bos`, one that begins every text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "<s>", "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"bos_token": "<s>"} if bos else {}))
    fast.save_pretrained(directory)
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=258, n_positions=positions, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    return directory
