"""What the optimizer's multi-rank tests run on each rank: a few steps of the engine, or of plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from shard_files import save_shards

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.sharded import load_shards
from cptron.config.schema import MemoryConfig, OptimConfig
from cptron.data.batch import MicroBatch
from cptron.errors import CptronError
from cptron.model.build import build_chunks
from cptron.model.options import ModelOptions
from cptron.optim.names import named_parameters
from cptron.optim.optimizer import (
    apply_gradients,
    build_optimizer,
    finish_param_gather,
    freeze,
    gradient_norm,
    set_rates,
    wrap_chunks,
)
from cptron.runtime.launcher import launched_ranks
from cptron.runtime.pipeline import evaluate, run_schedule
from cptron.runtime.session import open_session
from cptron.runtime.topology import Layout


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training run."""

    optim: OptimConfig
    layout: Layout = field(default_factory=Layout)
    precision: str = "fp32"
    recompute: str = "none"
    overlap: bool = False
    bucket_elements: int | None = None
    resume: str = ""
    save: str = ""
    poison: tuple[int, str] | None = None
    """(rank, parameter): its gradient becomes NaN on that rank in the last step."""


@dataclass(frozen=True)
class Outcome:
    """What one rank knows afterwards."""

    losses: list[float]
    norms: list[float]
    evaluated: float
    weights: dict[str, np.ndarray]
    state_bytes: int
    frozen: list[str]
    rates: list[tuple[float, float, int]]
    """(multiplier, rate of the last step, step) of each group."""
    error: str = ""


def micro_batches(tokens_GS1: np.ndarray, dp_rank: int, dp: int) -> list[MicroBatch]:
    """One sequence each; the first tokens do not count."""
    batches = []
    for row in range(dp_rank, len(tokens_GS1), dp):
        part = tokens_GS1[row : row + 1]
        mask = np.ones(part[:, 1:].shape, dtype=np.float32)
        mask[:, : row % 3] = 0
        documents = np.zeros(part[:, 1:].shape, dtype=np.int32)
        source = np.zeros(1, dtype=np.int64)
        batches.append(MicroBatch(part[:, :-1].copy(), part[:, 1:].copy(), mask, source, documents))
    return batches


def train(checkpoint: str, tokens_NGS1: np.ndarray, case: Case) -> Outcome:
    """Train on `tokens_NGS1`, from `checkpoint` or from `case.resume`, then evaluate on the first step's tokens."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    options = ModelOptions(precision=case.precision, memory=MemoryConfig(recompute=case.recompute))  # type: ignore[arg-type]
    with open_session(ranks, case.layout, threads_per_rank=1) as session:
        bare = build_chunks(arch, case.layout, options)
        try:
            frozen = freeze(bare, case.optim.frozen)
            chunks = wrap_chunks(
                bare, case.overlap, optimizer=case.optim.name, bucket_elements=case.bucket_elements
            )
            optimizer = build_optimizer(case.optim, chunks, options.precision)
            _load(checkpoint, bare, optimizer, case)
        except CptronError as error:
            return _refused(error)
        losses: list[float] = []
        norms: list[float] = []
        error = ""
        for number, tokens_GS1 in enumerate(tokens_NGS1):
            if case.poison is not None and number == len(tokens_NGS1) - 1:
                _poison(bare, *case.poison)
            mine = micro_batches(tokens_GS1, session.dp_rank, session.topology.dp)
            loss = _forward_backward(chunks, optimizer, mine)
            set_rates(optimizer, case.optim.lr, case.optim)
            before = {name: param.detach().clone() for name, param in named_parameters(bare)}
            try:
                norm = gradient_norm(optimizer)
                apply_gradients(optimizer, case.optim.clip_grad_norm, norm)
                norms.append(norm)
            except CptronError as raised:
                error = f"{type(raised).__name__}: {raised}"
                finish_param_gather(chunks)
                assert all(torch.equal(before[name], param) for name, param in named_parameters(bare))
                break
            losses.append(loss)
        finish_param_gather(chunks)
        weights = {name: param.detach().float().numpy().copy() for name, param in named_parameters(bare)}
        mine = micro_batches(tokens_NGS1[0], session.dp_rank, session.topology.dp)
        evaluated = evaluate(chunks, mine, session.device.torch_device).loss_nats_per_token
        if case.save:
            save_shards(Path(case.save), bare, optimizer)
        inner = optimizer.chained_optimizers[0].optimizer
        size = sum(t.numel() * t.element_size() for state in inner.state.values() for t in state.values())
        rates = [(g["lr_mult"], g["lr"], g.get("step", 0)) for g in optimizer.param_groups]
        return Outcome(losses, norms, evaluated, weights, size, frozen, rates, error)


def _load(checkpoint: str, bare: list[Any], optimizer: Any, case: Case) -> None:
    if case.resume:
        load_shards(Path(case.resume), bare, optimizer)
    else:
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, bare)
        optimizer.reload_model_params()


def _refused(error: CptronError) -> Outcome:
    return Outcome([], [], 0.0, {}, 0, [], [], f"{type(error).__name__}: {error}")


def _forward_backward(chunks: list[Any], optimizer: Any, mine: list[MicroBatch]) -> float:
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    return run_schedule(chunks, mine, 1, torch.device("cpu"), forward_only=False).loss_nats_per_token


def _poison(bare: list[Any], rank: int, name: str) -> None:
    if dist.get_rank() == rank:
        params = dict(named_parameters(bare))
        params[name].register_hook(lambda gradient: gradient * float("nan"))


def plain_torch(
    checkpoint: str, tokens_NGS1: np.ndarray, optim: OptimConfig, frozen: Sequence[str] = ()
) -> Outcome:
    """The same on one rank with torch's optimizers and torch's clipping: no wrapper, no schedule."""
    ranks = launched_ranks()
    assert ranks is not None
    arch = checkpoint_layout.read_manifest(Path(checkpoint)).arch
    with open_session(ranks, Layout(), threads_per_rank=1):
        (model,) = build_chunks(arch, Layout(), ModelOptions())
        load_shards(Path(checkpoint) / checkpoint_layout.SHARDS, [model])
        params = dict(model.named_parameters())
        for name, param in params.items():
            param.requires_grad_(name not in frozen)
        trained = [(name, param) for name, param in params.items() if param.requires_grad]
        groups = [{"params": [param], **_settings(name, param, optim)} for name, param in trained]
        if optim.name == "sgd":
            inner: Any = torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
        else:
            inner = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)
        losses: list[float] = []
        norms: list[float] = []
        for tokens_GS1 in tokens_NGS1:
            inner.zero_grad()
            loss = _mean_loss(model, tokens_GS1)
            loss.backward()
            losses.append(float(loss.detach()))
            limit = optim.clip_grad_norm or float("inf")
            norms.append(float(torch.nn.utils.clip_grad_norm_([param for _, param in trained], limit)))
            inner.step()
        with torch.no_grad():
            evaluated = float(_mean_loss(model, tokens_NGS1[0]))
        weights = {name: param.detach().numpy().copy() for name, param in params.items()}
        return Outcome(losses, norms, evaluated, weights, 0, [], [])


def _settings(name: str, param: torch.Tensor, optim: OptimConfig) -> dict[str, float]:
    mults = [group.lr_mult for group in optim.groups if fnmatchcase(name, group.match)]
    return {
        "lr": optim.lr * (mults[0] if mults else 1.0),
        "weight_decay": optim.weight_decay if param.dim() > 1 else 0.0,
    }


def _mean_loss(model: Any, tokens_GS1: np.ndarray) -> torch.Tensor:
    total, count = torch.zeros(()), 0.0
    for batch in micro_batches(tokens_GS1, 0, 1):
        mask = torch.from_numpy(batch.loss_mask_BS)
        labels = torch.from_numpy(batch.labels_BS)
        losses = model(torch.from_numpy(batch.tokens_BS), batch.documents_BS, labels, mask)
        total, count = total + losses.weighted_sum, count + float(mask.sum())
    return total / count
