"""What the planner's tests run on warm ranks: what the real engine allocates and what autograd saves in it."""

from __future__ import annotations

from typing import Any

import torch

from cptron.config.schema import Config
from cptron.model.adapters import freeze_base, init_adapters
from cptron.model.architecture import Architecture
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.optimizer import build_optimizer, freeze, wrap_chunks
from cptron.runtime.groups import stage_rank
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout


def allocated(config: Config, arch: Architecture) -> dict[str, int]:
    """Stage, and bytes of weights, gradients and optimizer state of this rank, as a run allocates them."""
    layout = Layout.of(config.parallel)
    with open_session(launched_ranks(), layout, threads_per_rank=1):
        bare = build_chunks(arch, layout, ModelOptions.of(config))
        if config.adapter.kind == "none":
            freeze(bare, config.optim.frozen)
        else:
            init_adapters(bare, 0)
            freeze_base(bare)
        chunks = wrap_chunks(bare, overlap=False, optimizer=config.optim.name)
        optimizer = build_optimizer(config.optim, chunks, config.train.precision)
        parameters = [parameter for chunk in bare for parameter in chunk.parameters()]
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        return {
            "stage": stage_rank(),
            "weights": sum(parameter.nbytes for parameter in parameters),
            "trained": trained,
            "gradients": sum(buffer.grad_data.nbytes for chunk in chunks for buffer in chunk.buffers),
            "optimizer": _optimizer_bytes(optimizer, config.train.precision),
        }


def _optimizer_bytes(optimizer: Any, precision: str) -> int:
    """Of this rank's part; masters of an fp32 run are the weights themselves."""
    found = 0
    for part in optimizer.chained_optimizers:
        inner = part.optimizer
        for group in inner.param_groups:
            for param in group["params"]:
                inner._make_state(param)
                state = sum(t.nbytes for t in inner.state[param].values() if torch.is_tensor(t))
                found += state + (param.nbytes if precision == "bf16" else 0)
    return found


def saved(config: Config, arch: Architecture) -> int:
    """Bytes of all storages that a forward pass of one micro-batch saves for the backward pass, without parameters."""
    layout = Layout.of(config.parallel)
    with open_session(launched_ranks(), layout, threads_per_rank=1):
        (model,) = build_chunks(arch, layout, ModelOptions.of(config))
        known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        found: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in known:
                found[place] = tensor  # kept, so that no other tensor gets its place
            return tensor

        shape = (config.train.micro_batch_size, config.data.seq_length)
        tokens = torch.zeros(shape, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens, None, tokens)
        return sum(tensor.untyped_storage().nbytes() for tensor in found.values())
