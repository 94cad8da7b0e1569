"""The engine on one GPU over NCCL against `transformers` on the same GPU: `make test-gpu`; skipped without CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small random tied Llama, saved by `transformers`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def train(checkpoint: Path, batches: list[Any], precision: Any, save_to: Path | None = None) -> list[float]:
    """Losses of one step per batch on the GPU."""
    from cptron.checkpoint import layout
    from cptron.checkpoint.sharded import load_shards, save_shards
    from cptron.config.schema import OptimConfig
    from cptron.model.build import build_model
    from cptron.optim.optimizer import build_optimizer, wrap_for_data_parallel
    from cptron.runtime.session import open_session
    from cptron.train.step import train_step

    optim = OptimConfig(lr=1e-3)
    with open_session(device="cuda") as session:
        arch = layout.read_manifest(checkpoint).arch
        model = wrap_for_data_parallel(build_model(arch, precision=precision))
        optimizer = build_optimizer(optim, model, precision)
        load_shards(checkpoint / layout.SHARDS, model.module)
        optimizer.reload_model_params()
        device = session.device.torch_device
        steps = [
            train_step(model, optimizer, [batch], lr=1e-3, optim=optim, num_sources=1, device=device)
            for batch in batches
        ]
        if save_to is not None:
            save_to.mkdir()
            save_shards(save_to, model.module, optimizer)
            load_shards(save_to, model.module, optimizer)
        return [step.sums.loss_nats_per_token for step in steps]


def reference(directory: Path, batches: list[Any]) -> list[float]:
    """The same steps with `transformers` and torch's AdamW, in fp32 on the GPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).cuda()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for batch in batches:
        adamw.zero_grad()
        logits = model(torch.from_numpy(batch.tokens_BS).cuda()).logits
        labels = torch.from_numpy(batch.labels_BS).cuda()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        losses.append(float(loss))
    return losses


def test_training_equals_transformers_on_cuda(llama: Path, tmp_path: Path) -> None:
    """Ten steps: fp32 within 1e-4, bf16 within 2 %; and the optimizer saves and loads under NCCL."""
    from cptron.convert.hf_import import import_hugging_face
    from cptron.data.batch import MicroBatch

    import_hugging_face(llama, tmp_path / "checkpoint")
    rng = np.random.default_rng(0)
    batches = []
    for tokens in rng.integers(0, 300, (10, 4, 33)):
        mask = np.ones((4, 32), dtype=np.float32)
        batches.append(
            MicroBatch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), mask, np.zeros(4, dtype=np.int64))
        )
    expected = reference(llama, batches)
    found = train(tmp_path / "checkpoint", batches, "fp32", tmp_path / "shards")
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    half = train(tmp_path / "checkpoint", batches, "bf16")
    np.testing.assert_allclose(half, expected, rtol=0.02)
