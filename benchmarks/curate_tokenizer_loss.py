"""Losses at step 0 for several first values of new rows, in bits per byte, by `transformers`.

Place in the flow: `curate_tokenizer` makes rows of them. Invariant: every variant is measured on the same texts, whole;
the first token of a text is not predicted, and its bytes count in none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Backend

from cptron.tokenizer.initial_rows import Init
from cptron.tokenizer.resized import ResizedModel, resized_model
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer
from cptron.weights.tensors import EMBEDDING, OUTPUT

RANDOM_STD = 0.02
"""Of a new row, as models are initialised."""
INITS: tuple[Init, ...] = ("subtoken_mean", "mean", "mvn")
TOY_STEPS = 300


@torch.no_grad()
def bits_per_byte(model: Path, tokenizer: Path, texts: Sequence[str]) -> dict[str, float]:
    """Loss of the model as it is, and with the new rows of each method and random ones."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, local_files_only=True, dtype=torch.float32).eval()
    found = {"not extended": _loss(net, load_tokenizer(model), texts)}
    extended = load_tokenizer(tokenizer)
    for init in INITS:
        resized = resized_model(model, tokenizer, init)
        put_rows(net, resized.read(EMBEDDING), resized.read(OUTPUT) if OUTPUT in resized.new_rows else None)
        found[init] = _loss(net, extended, texts)
    put_rows(net, *(random_rows(resized, name) for name in resized.new_rows))
    found["random"] = _loss(net, extended, texts)
    return found


@torch.no_grad()
def focus_bits_per_byte(
    model: Path, tokenizer: Path, vectors: Mapping[str, Path], texts: Sequence[str]
) -> dict[str, float]:
    """Loss with the new rows of the default method, and of FOCUS by each file of vectors."""
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, local_files_only=True, dtype=torch.float32).eval()
    extended = load_tokenizer(tokenizer)
    ways: dict[str, tuple[Init, Path | None]] = {"subtoken_mean": ("subtoken_mean", None)}
    ways |= {name: ("focus", path) for name, path in vectors.items()}
    found = {}
    for name, (init, path) in ways.items():
        resized = resized_model(model, tokenizer, init, path)
        put_rows(net, resized.read(EMBEDDING), resized.read(OUTPUT) if OUTPUT in resized.new_rows else None)
        found[name] = _loss(net, extended, texts)
    return found


def random_rows(resized: ResizedModel, name: str) -> torch.Tensor:
    """A matrix whose new rows are drawn anew."""
    matrix_VH = resized.read(name).float()
    ids = resized.new_rows[name].ids
    generator = torch.Generator().manual_seed(0)
    matrix_VH[ids] = RANDOM_STD * torch.randn(len(ids), matrix_VH.size(1), generator=generator)
    return matrix_VH


def put_rows(net: Any, embedding_VH: torch.Tensor, output_VH: torch.Tensor | None = None) -> None:
    """Give a model other matrices; a tied one has one."""
    net.get_input_embeddings().weight = torch.nn.Parameter(embedding_VH.float())
    output = net.get_input_embeddings().weight if output_VH is None else torch.nn.Parameter(output_VH.float())
    net.get_output_embeddings().weight = output


def _loss(net: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Bits per byte over all texts."""
    nats, num_bytes = 0.0, 0
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        tokens_N = torch.tensor(ids)
        logits_NV = net(tokens_N[None]).logits[0].float()
        nats += float(torch.nn.functional.cross_entropy(logits_NV[:-1], tokens_N[1:], reduction="sum"))
        num_bytes += len(text.encode())
    return nats / math.log(2) / num_bytes


def toy_losses(
    general: Sequence[str], domain: Sequence[str], held_out: Sequence[str], work_dir: Path
) -> dict[str, float]:
    """Losses of an untied toy, trained here on general and domain text with a small vocabulary of general text, then
    extended for the domain."""
    from transformers import LlamaConfig, LlamaForCausalLM

    base = work_dir / "toy"
    base.mkdir(exist_ok=True)
    _train_tokenizer(general, base)
    tokenizer = load_tokenizer(base)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    net = LlamaForCausalLM(config)
    _train(net, tokenizer, [*general, *domain])
    net.save_pretrained(base)
    extended = _extend_toy(base, domain, work_dir)
    texts = [text[:400] for text in held_out][:60]
    with torch.no_grad():
        found = {"not extended": _loss(net.eval(), tokenizer, texts)}
        resized = resized_model(base, extended)
        embedding_VH, output_VH = resized.read(EMBEDDING), resized.read(OUTPUT)
        wrong_VH = output_VH.clone()
        ids = resized.new_rows[OUTPUT].ids
        wrong_VH[ids] = embedding_VH[ids]
        mean = resized_model(base, extended, "mean")
        for name, matrices in {
            "subtoken_mean": (embedding_VH, output_VH),
            "output rows from the input": (embedding_VH, wrong_VH),
            "mean": (mean.read(EMBEDDING), mean.read(OUTPUT)),
            "random": (random_rows(resized, EMBEDDING), random_rows(resized, OUTPUT)),
        }.items():
            put_rows(net, *matrices)
            found[name] = _loss(net, load_tokenizer(extended), texts)
    return found


def _train_tokenizer(texts: Sequence[str], directory: Path) -> None:
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(directory / "tokenizer.json"))


def _train(net: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    order = np.random.default_rng(0).permutation(len(texts))
    ids = np.concatenate(tokenizer.encode_batch([texts[i] for i in order]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for tokens_BS in _batches(ids):
        loss = net(tokens_BS, labels=tokens_BS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _batches(ids: np.ndarray[Any, Any], batch: int = 16, length: int = 128) -> Iterator[torch.Tensor]:
    generator = np.random.default_rng(1)
    for _ in range(TOY_STEPS):
        starts = generator.integers(0, len(ids) - length, batch)
        yield torch.from_numpy(np.stack([ids[start : start + length] for start in starts]))


def _extend_toy(base: Path, domain: Sequence[str], work_dir: Path) -> Path:
    import json
    import shutil

    from cptron.tokenizer.extend import ExtendOptions, extend
    from cptron.tokenizer.texts import Corpus

    target = work_dir / "toy_tokenizer"
    shutil.rmtree(target, ignore_errors=True)
    source = work_dir / "toy.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in domain))
    extend(ExtendOptions(model=base, output=target, domain=Corpus(inputs=(str(source),)), num_tokens=500))
    return target
