"""What the adapter tests run on each rank: build an adapted engine, give it a known adapter, train it, report.

Place in the flow: called by `test_adapters` through `run_ranks`. Invariant: whole tensors go in and come out, so a
test compares with a single process whatever the layout; and megatron-core is imported on ranks only.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cptron.checkpoint import layout as checkpoint_layout
from cptron.config.schema import AdapterConfig, MemoryConfig
from cptron.model.architecture import Architecture
from cptron.model.options import ModelOptions
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout

Arrays = dict[str, np.ndarray]

OPTIM: dict[str, float] = {"lr": 1e-3, "weight_decay": 0.1, "clip_grad": 1.0}


@contextmanager
def _engine(
    checkpoint: str, layout: Layout, adapter: AdapterConfig, recompute: str = "none"
) -> Iterator[tuple[Architecture, list[Any]]]:
    """The adapted chunks with the base's weights of `checkpoint`, frozen, adapters as at the start of a run."""
    from cptron.model.adapters import freeze_base, init_adapters, init_magnitudes

    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    options = ModelOptions(adapter=adapter, memory=MemoryConfig(recompute=recompute))  # type: ignore[arg-type]
    with open_session(ranks, layout, threads_per_rank=1):
        chunks = _build(arch, layout, options)
        freeze_base(chunks)
        init_adapters(chunks, seed=7)
        _load_base(Path(checkpoint) / checkpoint_layout.SHARDS, chunks)
        init_magnitudes(chunks)
        yield arch, chunks


def _build(arch: Architecture, layout: Layout, options: ModelOptions) -> list[Any]:
    """`build_chunks`, with adapted layers also where the layer specs do not ask for them themselves."""
    from cptron.model import build
    from cptron.model.adapter_layers import AdaptedLinear, with_adapter

    original = build.layer_specs

    def adapted(arch: Architecture, layers: Any, options: ModelOptions) -> Any:
        block = original(arch, layers, options)
        for layer in block.layer_specs:
            attention = layer.submodules.self_attention.submodules
            mlp = layer.submodules.mlp.submodules
            for holder, name, role in (
                (attention, "linear_qkv", "qkv"),
                (attention, "linear_proj", "proj"),
                (mlp, "linear_fc1", "fc1"),
                (mlp, "linear_fc2", "fc2"),
            ):
                base = getattr(holder, name)
                if not issubclass(base, AdaptedLinear):
                    setattr(holder, name, with_adapter(base, role, arch, options.adapter))
        return block

    build.layer_specs = adapted
    try:
        return list(build.build_chunks(arch, layout, options))
    finally:
        build.layer_specs = original


def _load_base(shards: Path, chunks: list[Any]) -> None:
    """The base's weights only, from a checkpoint that has no adapter."""
    from megatron.core import dist_checkpointing, parallel_state

    from cptron.model.adapters import is_adapter

    (chunk,) = chunks
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = chunk.sharded_state_dict(metadata={"dp_cp_group": group})
    state = {
        name: value for name, value in state.items() if "_extra_state" not in name and not is_adapter(name)
    }
    loaded = dist_checkpointing.load({"model": state}, str(shards))
    chunk.load_state_dict(loaded["model"], strict=False)


def _tensor_group() -> Any:
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_group()


def _adapter_parameters(chunks: list[Any]) -> dict[str, torch.nn.Parameter]:
    from cptron.model.adapters import adapter_parameters

    return adapter_parameters(chunks)


def _cut_axis(parameter: torch.Tensor) -> int | None:
    return parameter.partition_dim if parameter.tensor_model_parallel else None  # type: ignore[attr-defined]


@torch.no_grad()
def _put(chunks: list[Any], whole: Arrays) -> None:
    """Cut whole tensors into this rank's adapter parameters."""
    group = _tensor_group()
    for name, parameter in _adapter_parameters(chunks).items():
        tensor, axis = torch.from_numpy(whole[name]), _cut_axis(parameter)
        parameter.copy_(tensor if axis is None else tensor.chunk(group.size(), dim=axis)[group.rank()])


def _whole(chunks: list[Any], values: dict[str, torch.Tensor]) -> Arrays:
    """Tensors of this stage put together over the tensor ranks; replicated ones must agree."""
    found = {}
    for name, parameter in _adapter_parameters(chunks).items():
        axis = _cut_axis(parameter)
        parts = [torch.empty_like(values[name]) for _ in range(_tensor_group().size())]
        dist.all_gather(parts, values[name].contiguous(), group=_tensor_group())
        if axis is None:
            scale = max(1e-6, float(parts[0].abs().max()))
            assert all(float((part - parts[0]).abs().max()) <= 1e-6 * scale for part in parts), name
        found[name] = (parts[0] if axis is None else torch.cat(parts, dim=axis)).clone().numpy()
    return found


def started_adapter(checkpoint: str, layout: Layout, adapter: AdapterConfig) -> Arrays:
    """What `init_adapters` and `init_magnitudes` start from, of this stage."""
    with _engine(checkpoint, layout, adapter) as (_, chunks):
        return _whole(chunks, {name: p.detach() for name, p in _adapter_parameters(chunks).items()})


def saved_and_loaded(
    checkpoint: str, layout: Layout, adapter: AdapterConfig, shards: str, whole: Arrays | None
) -> Arrays:
    """With `whole`: save an engine that has this adapter. Without: load one. Returns the adapter of this stage."""
    from shard_files import save_shards

    from cptron.checkpoint.sharded import load_shards

    with _engine(checkpoint, layout, adapter) as (_, chunks):
        target = chunks if "chunks" in inspect.signature(save_shards).parameters else chunks[0]
        if whole is None:
            for parameter in chunks[0].parameters():
                torch.nn.init.constant_(parameter, torch.nan)
            load_shards(Path(shards), target)
            assert not any(torch.isnan(parameter).any() for parameter in chunks[0].parameters())
        else:
            _put(chunks, whole)
            save_shards(Path(shards), target)
        return _whole(chunks, {name: p.detach() for name, p in _adapter_parameters(chunks).items()})


def logits(
    checkpoint: str, layout: Layout, adapter: AdapterConfig, whole: Arrays, tokens_BS: np.ndarray
) -> np.ndarray:
    """Logits `[B, S, V]` of the adapted engine; layouts of one stage only."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    with _engine(checkpoint, layout, adapter) as (arch, chunks), torch.no_grad():
        _put(chunks, whole)
        local_BSV = chunks[0].eval()(torch.from_numpy(tokens_BS))
        return gather_from_tensor_model_parallel_region(local_BSV)[..., : arch.vocab_size].numpy()


def train(
    checkpoint: str,
    layout: Layout,
    adapter: AdapterConfig,
    whole: Arrays,
    tokens_NBS1: np.ndarray,
    recompute: str = "none",
) -> tuple[list[float], list[float], Arrays, Arrays]:
    """(losses, gradient norms, gradients of the first step, trained adapter) of one step on each `[B, S + 1]`.

    One sequence is a micro-batch. Losses are on the last stage only; tensors are those of this stage.
    """
    from megatron.core import distributed
    from megatron.core import optimizer as optimizers

    with _engine(checkpoint, layout, adapter, recompute) as (_, chunks):
        _put(chunks, whole)
        reduction = distributed.DistributedDataParallelConfig(grad_reduce_in_fp32=True)
        model = distributed.DistributedDataParallel(chunks[0].config, reduction, chunks[0])
        optimizer = optimizers.get_megatron_optimizer(
            optimizers.OptimizerConfig(optimizer="adam", adam_eps=1e-8, adam_beta2=0.95, **OPTIM),
            [model],
            use_gloo_process_groups=False,
        )
        for group in optimizer.param_groups:
            group["lr"] = OPTIM["lr"]
            group["weight_decay"] = OPTIM["weight_decay"] * group["wd_mult"]
        model.config.finalize_model_grads_func = distributed.finalize_model_grads
        losses, norms, gradients = [], [], {}
        for tokens_BS1 in tokens_NBS1:
            model.zero_grad_buffer()
            optimizer.zero_grad()
            losses += _forward_backward(model, tokens_BS1)
            if not gradients:
                named = _adapter_parameters([model])
                gradients = _whole(chunks, {name: p.main_grad.clone() for name, p in named.items()})
            _, norm, _ = optimizer.step()
            norms.append(float(norm))
        trained = {name: p.detach() for name, p in _adapter_parameters(chunks).items()}
        return losses, norms, gradients, _whole(chunks, trained)


def _forward_backward(model: Any, tokens_BS1: np.ndarray) -> list[float]:
    """megatron-core's own schedule and its reductions; the mean loss on the last stage, else nothing."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def forward(rows: Any, stage: Any) -> Any:
        tokens_1S1 = torch.from_numpy(next(rows)[None])
        labels_1S = tokens_1S1[:, 1:].contiguous()
        output = stage(tokens_1S1[:, :-1].contiguous(), None, labels_1S, torch.ones(labels_1S.shape))

        def summed(losses: Any) -> Any:
            return losses.weighted_sum, torch.tensor(labels_1S.numel(), dtype=torch.int), losses.loss.sum()

        return output, summed

    found = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=iter(tokens_BS1),
        model=[model],
        num_microbatches=len(tokens_BS1),
        seq_length=tokens_BS1.shape[1] - 1,
        micro_batch_size=1,
        forward_only=False,
    )
    return [float(sum(found)) / tokens_BS1[:, 1:].size] if found else []
