"""A plain training loop over `transformers`: its model, its loss, torch's AdamW and gradient clipping.

Place in the flow: one of the peers of `one`. Invariant: the defaults of both libraries, but for `sdpa` attention,
which is theirs, said aloud, and torch's fused AdamW on GPUs, where the default is slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.batches import batches_of
from benchmarks.engine.cases import Case
from benchmarks.engine.timing import CLIP, LEARNING_RATE, Step
from cptron.model.architecture import Architecture, RopeScaling


def describe(case: Case) -> str:
    """What it trains in."""
    return "all fp32" if case.precision == "fp32" else "bf16 weights, gradients and moments, no fp32 masters"


def hugging_face_config(arch: Architecture) -> Any:
    """The architecture as `transformers` writes it."""
    from transformers import LlamaConfig

    rope: dict[str, Any] = {"rope_theta": arch.rope_theta, "rope_type": "default"}
    if arch.rope_scaling is not None:
        scaling = arch.rope_scaling
        assert isinstance(scaling, RopeScaling)
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    return LlamaConfig(
        vocab_size=arch.vocab_size,
        hidden_size=arch.hidden_size,
        intermediate_size=arch.ffn_hidden_size,
        num_hidden_layers=arch.num_layers,
        num_attention_heads=arch.num_attention_heads,
        num_key_value_heads=arch.num_kv_heads,
        head_dim=arch.head_dim,
        max_position_embeddings=arch.max_position_embeddings,
        rms_norm_eps=arch.norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=arch.tied_embeddings,
    )


@contextmanager
def prepared(case: Case, start: Path | None, threads: int, *, compiled: bool = False) -> Iterator[Step]:
    """A function that does step n and returns its loss; `start` is a model's directory, None means random weights."""
    from transformers import LlamaForCausalLM

    if case.device == "cpu":
        torch.set_num_threads(threads)
    device = torch.device(case.device)
    dtype = torch.float32 if case.precision == "fp32" else torch.bfloat16
    if start is not None:
        model: Any = LlamaForCausalLM.from_pretrained(start, dtype=dtype, attn_implementation="sdpa")
        model.to(device)
    else:
        torch.manual_seed(1234)
        config = hugging_face_config(case.arch)
        with device:
            model = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    model.train()
    if compiled:
        model = torch.compile(model)
    settings: dict[str, Any] = {"fused": True} if case.device == "cuda" else {}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, **settings
    )
    batches = [
        (torch.from_numpy(batch.tokens_BS).to(device), torch.from_numpy(batch.labels_BS).to(device))
        for batch in batches_of(case)
    ]

    def step(number: int) -> torch.Tensor:
        tokens_BS, labels_BS = batches[number % len(batches)]
        loss = model(input_ids=tokens_BS, labels=labels_BS, shift_labels=labels_BS).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()  # type: ignore[no-any-return]

    yield step
