"""The numbers of a step and of an evaluation, each defined once.

Place in the flow: made by the loop, handed to hooks, written by `report`. Invariant: a quantity carries its
unit in its name.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping

import torch

from cptron.evaluate.set_losses import SetLosses
from cptron.model.flops import train_flops
from cptron.train.hooks import Record
from cptron.train.setup import Run
from cptron.train.step import StepResult


def step_record(run: Run, result: StepResult, step_time_s: float) -> Record:
    """Metrics of the step just taken.

    `tokens_per_s` counts predicted tokens of the global batch over the wall time of the step; `grad_norm`
    is the global L2 norm before clipping; `tokens/NAME`, `samples/NAME` and `epochs/NAME` count what was drawn of the
    source since the start of the run, in dropped batches too; their tokens are `tokens_skipped`, and no part of
    `tokens_total`; `trained/NAME` counts those of them that were trained on, without what a loss mask leaves out.
    `share/NAME` is its share of the tokens drawn that is now in force. Every `log.every_steps` steps there is what
    `regularise` measures: collective then.
    `model_tflop_per_s_per_rank` counts causal model FLOPs, forward and backward, without recomputation
    (`model.flops`), over the wall time of the step and all ranks.
    """
    sums = result.sums
    flops = train_flops(run.plan.arch, sums.places, sums.squared_lengths, sums.windowed_squares)
    record: Record = {
        "kind": "step",
        "step": run.state.step,
        "tokens_total": run.state.tokens_total,
        "tokens_skipped": run.state.tokens_skipped,
        "loss_nats_per_token": result.sums.loss_nats_per_token,
        "lr": result.lr,
        "grad_norm": result.grad_norm,
        "step_time_s": step_time_s,
        "tokens_per_s": result.sums.tokens / step_time_s,
        "model_tflop_per_s_per_rank": flops / step_time_s / run.session.ranks.world_size / 1e12,
        "mem_peak_gib": peak_memory_gib(),
    }
    if run.state.step % run.config.log.every_steps == 0:
        record |= run.regulariser.measures(run.session.device.torch_device)
    if run.state.stage:
        record["stage"] = run.state.stage
    if run.state.doremi:
        record |= {f"weight/{name}": weight for name, weight in run.state.doremi["weights"].items()}
    for index, name in enumerate(run.source_names):
        tokens = result.sums.tokens_by_source[index]
        if tokens:
            record[f"loss_nats_per_token/{name}"] = float(result.sums.loss_nats_by_source[index] / tokens)
            if run.config.regularise.distill.weight:
                apart = result.sums.divergence_nats_by_source[index]
                record[f"divergence_nats_per_token/{name}"] = float(apart / tokens)
        accounts = run.state.ledger.accounts(name)
        record[f"tokens/{name}"] = sum(account.tokens for account in accounts)
        record[f"trained/{name}"] = run.state.trained.tokens(name)
        record[f"samples/{name}"] = sum(account.cursor for account in accounts)
        record[f"epochs/{name}"] = math.fsum(account.epochs for account in accounts)
        record[f"share/{name}"] = math.fsum(account.share for account in accounts)
    return record


def eval_record(run: Run, losses_by_set: Mapping[str, SetLosses]) -> Record:
    """Metrics of one evaluation of all validation sets; of probes the monitor makes them. Perplexity is exp(nats per
    token)."""
    record: Record = {"kind": "eval", "step": run.state.step, "tokens_total": run.state.tokens_total}
    for name in (valid.name for valid in run.config.data.valid):
        losses = losses_by_set[name]
        loss = losses.loss_nats_per_token
        record[f"valid/{name}/loss_nats_per_token"] = loss
        record[f"valid/{name}/perplexity"] = math.exp(min(loss, 700.0))
        record[f"valid/{name}/tokens"] = losses.tokens
    return record


def peak_memory_gib() -> float:
    """Peak memory of this rank in GiB: allocated on the GPU, or resident in the process on a CPU machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
