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


def train(
    checkpoint: Path, batches: list[Any], precision: Any, save_to: Path | None = None, **options: Any
) -> list[float]:
    """Losses of one step per batch on the GPU."""
    from shard_files import save_shards

    from cptron.checkpoint import layout
    from cptron.checkpoint.sharded import load_shards
    from cptron.config.schema import OptimConfig
    from cptron.model.build import build_chunks
    from cptron.model.options import ModelOptions
    from cptron.optim.optimizer import build_optimizer, finish_param_gather, wrap_chunks
    from cptron.runtime.session import open_session
    from cptron.runtime.topology import Layout
    from cptron.train.step import train_step

    optim = OptimConfig(lr=1e-3)
    with open_session(device="cuda") as session:
        arch = layout.read_manifest(checkpoint).arch
        bare = build_chunks(arch, Layout(), ModelOptions(precision=precision, **options))
        chunks = wrap_chunks(bare, overlap=True)
        optimizer = build_optimizer(optim, chunks, precision)
        load_shards(checkpoint / layout.SHARDS, bare)
        optimizer.reload_model_params()
        device = session.device.torch_device
        steps = [
            train_step(chunks, optimizer, [batch], lr=1e-3, optim=optim, num_sources=1, device=device)
            for batch in batches
        ]
        if save_to is not None:
            save_to.mkdir()
            finish_param_gather(chunks)
            save_shards(save_to, bare, optimizer)
            load_shards(save_to, bare, optimizer)
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
        seen = torch.from_numpy(batch.documents_BS).cuda()
        causal = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool, device="cuda").tril()
        mask = (seen[:, :, None] == seen[:, None, :]) & causal
        logits = model(torch.from_numpy(batch.tokens_BS).cuda(), attention_mask=mask[:, None]).logits
        labels = torch.from_numpy(batch.labels_BS).cuda()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        losses.append(float(loss))
    return losses


def batches_of(documents: int) -> list[Any]:
    """Ten micro-batches of rows that hold so many documents each."""
    from cptron.data.batch import MicroBatch

    rng = np.random.default_rng(0)
    found = []
    for tokens in rng.integers(0, 300, (10, 4, 65)):
        cuts = np.sort(rng.choice(np.arange(1, 64), (4, documents - 1)), axis=1)
        ids = (np.arange(64)[None, :, None] >= cuts[:, None, :]).sum(-1).astype(np.int32)
        mask, source = np.ones((4, 64), dtype=np.float32), np.zeros(4, dtype=np.int64)
        found.append(MicroBatch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), mask, source, ids))
    return found


@pytest.mark.parametrize("documents", [1, 5])
def test_training_equals_transformers_on_cuda(documents: int, llama: Path, tmp_path: Path) -> None:
    """Ten steps: fp32 within 1e-4, bf16 within 2 % (there documents go through flash attention over segments); and the
    optimizer saves and loads under NCCL."""
    from cptron.convert.hf_import import import_hugging_face

    import_hugging_face(llama, tmp_path / "checkpoint")
    batches = batches_of(documents)
    expected = reference(llama, batches)
    found = train(tmp_path / "checkpoint", batches, "fp32", tmp_path / "shards")
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    half = train(tmp_path / "checkpoint", batches, "bf16")
    np.testing.assert_allclose(half, expected, rtol=0.02)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_fp8_stays_close_to_fp32_on_cuda(recipe: Any, llama: Path, tmp_path: Path) -> None:
    """Losses of ten steps in FP8 are within 5 % of fp32 on random weights."""
    from cptron.config.schema import Fp8Config
    from cptron.convert.hf_import import import_hugging_face
    from cptron.model.fp8 import hardware_has_fp8

    if not hardware_has_fp8():
        pytest.skip("this GPU has no FP8 products")
    import_hugging_face(llama, tmp_path / "checkpoint")
    batches = batches_of(3)
    expected = reference(llama, batches)
    found = train(tmp_path / "checkpoint", batches, "bf16", fp8=Fp8Config(recipe=recipe))
    np.testing.assert_allclose(found, expected, rtol=0.05)
    assert found != train(tmp_path / "checkpoint", batches, "bf16"), "FP8 that equals bf16 was not FP8"


@pytest.mark.parametrize("modules", [("core_attn",), ("qkv_linear", "core_attn", "attn_proj")])
def test_offloading_changes_nothing_on_cuda(modules: Any, llama: Path, tmp_path: Path) -> None:
    """Activations that waited in host memory give the losses of those that stayed."""
    pytest.importorskip("transformer_engine", reason="megatron-core's offloading asks for it")

    from cptron.config.schema import MemoryConfig
    from cptron.convert.hf_import import import_hugging_face

    import_hugging_face(llama, tmp_path / "checkpoint")
    batches = batches_of(1)
    plain = train(tmp_path / "checkpoint", batches, "bf16")
    offloaded = train(tmp_path / "checkpoint", batches, "bf16", memory=MemoryConfig(offload_modules=modules))
    np.testing.assert_allclose(offloaded, plain, rtol=1e-6)


@pytest.mark.parametrize("window", [1, 7, 64, None])
def test_flash_attention_has_the_window_of_the_blocks(window: int | None) -> None:
    """torch's variable-length kernel in bf16 against the blocks of queries in fp32, on the same numbers."""
    import torch

    from cptron.model.segments import segments_of
    from cptron.model.varlen import varlen_attention

    documents_BS = np.sort(np.random.default_rng(0).integers(0, 4, (2, 96)), axis=1).astype(np.int32)
    segments = segments_of(documents_BS)
    q, k, v = (torch.randn(192, heads, 64).bfloat16() for heads in (8, 2, 2))
    starts = [torch.from_numpy(array) for array in (segments.query_starts, segments.key_starts)]
    expected = varlen_attention(q.float(), k.float(), v.float(), segments, *starts, 0.2, window)
    found = varlen_attention(
        q.cuda(), k.cuda(), v.cuda(), segments, *(starts_N.cuda() for starts_N in starts), 0.2, window
    )
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.02, atol=0.02)
