"""torchtitan: its Llama 3 model, parallelised, compiled and stepped as its Trainer does it on one device.

Place in the flow: one of the peers of `one`. Invariant: everything that costs time is torchtitan's own code with
its defaults: fp32 weights and moments with bf16 compute by FSDP's mixed precision (`parallelize_llama` at world
size 1), torch.compile of each block and of the loss, the loss in 8 chunks, fused AdamW, forward and backward as one
CUDA graph. Not taken over: activation checkpointing (all memory is there to be used), data loading, logging.

FP8 is its own converter; the output layer stays in bf16, as its documentation advises and as cptron does. Its
converter names the recipe `rowwise`; `tensorwise` is handed to torchao by the same way.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.engine.batches import batches_of
from benchmarks.engine.cases import Case
from benchmarks.engine.timing import CLIP, LEARNING_RATE, Step
from cptron.model.architecture import Architecture


def describe(case: Case) -> str:
    """What it trains in."""
    if case.precision == "fp32":
        return "all fp32"
    products = {"none": "bf16", "tensorwise": "FP8 (tensorwise)", "rowwise": "FP8 (rowwise)"}[case.fp8]
    return f"fp32 weights, gradients and moments; bf16 copies by FSDP, {products} products of the layers"


def model_config(arch: Architecture, attention: str) -> Any:
    """torchtitan's configuration of the architecture, made as its own `llama3_configs` are."""
    from torchtitan.models import llama3
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.llama3 import Llama3Model

    hidden, vocabulary = arch.hidden_size, arch.vocab_size
    embedding_init = llama3._EMBEDDING_SKIP_INIT if arch.tied_embeddings else llama3._EMBEDDING_INIT
    rope = ComplexRoPE.Config(
        dim=arch.head_dim,
        max_seq_len=arch.max_position_embeddings,
        theta=arch.rope_theta,
        scaling="none" if arch.rope_scaling is None else "llama",
    )
    return Llama3Model.Config(
        dim=hidden,
        vocab_size=vocabulary,
        enable_weight_tying=arch.tied_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocabulary, embedding_dim=hidden, param_init=embedding_init
        ),
        norm=RMSNorm.Config(normalized_shape=hidden, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(
            in_features=hidden, out_features=vocabulary, param_init=llama3._output_linear_init(hidden)
        ),
        layers=llama3._build_llama3_layers(
            fuse_qkv=True,
            n_layers=arch.num_layers,
            dim=hidden,
            n_heads=arch.num_attention_heads,
            n_kv_heads=arch.num_kv_heads,
            hidden_dim=arch.ffn_hidden_size,
            rope=rope,
            attn_backend=attention,
        ),
    )


@contextmanager
def prepared(
    case: Case, start: Path | None, threads: int, *, attention: str, compiled: bool = True
) -> Iterator[Step]:
    """A function that does step n and returns its loss; weights are random, as torchtitan draws them."""
    assert start is None, "torchtitan begins with its own random weights"
    from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed import utils as dist_utils
    from torchtitan.models.llama3 import parallelize_llama

    on_gpu = case.device == "cuda"
    if not on_gpu:
        torch.set_num_threads(threads)
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    with _one_rank(on_gpu):
        torch.manual_seed(1234)
        config = _converted(model_config(case.arch, attention), case, compiled)
        training = TrainingConfig(
            local_batch_size=case.micro_batch,
            seq_len=case.seq_length,
            mixed_precision_param="bfloat16" if case.precision == "bf16" else "float32",
        )
        parallelism = ParallelismConfig()
        dist_utils.set_spmd_backend(parallelism.spmd_backend)
        parallel_dims = ParallelDims.from_config(parallelism, 1)
        compiling = CompileConfig(enable=compiled)
        _set_sequence(config, parallelism, case.seq_length)
        with torch.device("meta"):
            model = config.build()
        model = parallelize_llama(
            model,
            parallel_dims=parallel_dims,
            training=training,
            parallelism=parallelism,
            compile_config=compiling,
            ac_config=None,
            dump_folder="",
        )
        model.to_empty(device=device)
        with torch.no_grad():
            model.init_weights(buffer_device=None)
        model.train()
        yield _stepper(case, model, parallel_dims, compiling, device)


def _stepper(case: Case, model: Any, parallel_dims: Any, compiling: Any, device: torch.device) -> Step:
    """What its `Trainer.train_step` does, without logging."""
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.components.optimizer import default_adamw
    from torchtitan.distributed import utils as dist_utils
    from torchtitan.distributed.cudagraph import wrap_with_cuda_graph

    loss_fn = ChunkedLossWrapper.Config(
        loss_fn=CrossEntropyLoss.Config(global_vocab_size=case.arch.vocab_size)
    ).build(compile_config=compiling)
    loss_fn.set_lm_head(model.lm_head)
    model._skip_lm_head = True
    optimizers = default_adamw(lr=LEARNING_RATE).build(model_parts=[model])
    context = dist_utils.get_spmd_context(parallel_dims=parallel_dims, spmd_typechecking=False)
    batches = []
    for batch in batches_of(case):
        arrays = (batch.tokens_BS, batch.labels_BS, batch.positions_BS)
        batches.append(tuple(torch.from_numpy(array).to(device) for array in arrays))
    count = torch.tensor(case.tokens, dtype=torch.int64, device=device)

    def forward_backward(tokens: Any, labels: Any, valid: Any, extra: dict[str, Any]) -> Any:
        with context():
            hidden = model(tokens, **extra)
            loss, _ = loss_fn(hidden, labels, valid, positions=extra["positions"])
            del hidden
            loss.backward()
        return loss

    graphed = device.type == "cuda" and os.environ.get("BENCH_TITAN_GRAPHS", "1") == "1"
    run = wrap_with_cuda_graph(forward_backward) if graphed else forward_backward

    def step(number: int) -> torch.Tensor:
        tokens, labels, positions = batches[number % len(batches)]
        optimizers.zero_grad(set_to_none=not graphed)
        extra = {
            "positions": positions,
            "attention_masks": model.get_attention_masks(positions=positions),
        }
        loss = run(tokens, labels, count, extra).detach().clone()
        dist_utils.clip_grad_norm_(list(model.parameters()), CLIP, foreach=True)
        optimizers.step()
        return loss

    return step


def _converted(config: Any, case: Case, compiled: bool) -> Any:
    if case.fp8 == "none":
        return config
    from torchtitan.components.quantization import Float8LinearConverter

    recipe: Any = case.fp8
    converter = Float8LinearConverter.Config(
        recipe_name=recipe, filter_fqns=["lm_head"], model_compile_enabled=compiled
    )
    return converter.build().convert(config)


def _set_sequence(config: Any, parallelism: Any, seq_length: int) -> None:
    """What `update_from_config` does of use here: tables of the rotary embedding for so many positions."""
    import dataclasses

    from torchtitan.models.llama3.sharding import set_llama3_sharding_config

    for layer in config.layers:
        layer.attention.rope = dataclasses.replace(layer.attention.rope, max_seq_len=seq_length)
    set_llama3_sharding_config(config, enable_sp=parallelism.enable_sequence_parallel)


@contextmanager
def _one_rank(on_gpu: bool) -> Iterator[None]:
    """A process group of one, over nothing but this process."""
    torch.autograd.set_multithreading_enabled(False)  # as its init_distributed does
    gc.disable()  # as its trainer does for 50 steps at a time
    if on_gpu:
        torch.cuda.set_device(0)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
