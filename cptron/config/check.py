"""Rules that a configuration must keep before anything is opened or started.

Place in the flow: after `load`, before files, ranks or GPUs are touched. Invariant: pure functions of their arguments,
so what passes here passes on the cluster.
"""

from __future__ import annotations

import math
import re

from cptron.config.check_engine import check_engine
from cptron.config.check_forgetting import check_forgetting
from cptron.config.check_guards import check_guards
from cptron.config.check_mixing import check_mixing
from cptron.config.check_optim import check_optim_choices
from cptron.config.check_regularise import check_regularise
from cptron.config.check_retention import check_retention
from cptron.config.check_schedule import check_schedule
from cptron.config.check_start import check_start
from cptron.config.resume_rules import check_accepted
from cptron.config.schema import Config, OptimConfig
from cptron.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_config(config: Config, world_size: int) -> None:
    """Check every rule that needs only the configuration and the number of ranks. Raises `ConfigError`."""
    _check_counts(config)
    check_accepted(config.run.accept_changes)
    check_engine(config, world_size)
    check_start(config)
    _check_sources(config)
    _check_megatron_order(config)
    _check_validation(config)
    check_schedule(config.optim, config.train.steps)
    _check_optim(config.optim)
    check_optim_choices(config.optim)
    _check_names("checkpoint.milestones", [milestone.name for milestone in config.checkpoint.milestones])
    check_retention(config)
    check_guards(config)
    check_regularise(config)
    check_forgetting(config)
    check_mixing(config, world_size)


def _check_counts(config: Config) -> None:
    at_least_one = {
        "parallel.tp": config.parallel.tp,
        "parallel.cp": config.parallel.cp,
        "parallel.pp": config.parallel.pp,
        "parallel.virtual_stages": config.parallel.virtual_stages,
        "data.seq_length": config.data.seq_length,
        "data.workers": config.data.workers,
        "train.steps": config.train.steps,
        "train.global_batch_size": config.train.global_batch_size,
        "train.micro_batch_size": config.train.micro_batch_size,
        "log.every_steps": config.log.every_steps,
        "runtime.timeout_s": config.runtime.timeout_s,
        "runtime.hang_min_s": config.runtime.hang_min_s,
        "runtime.hang_phase_s": config.runtime.hang_phase_s,
    }
    not_negative = {
        "run.seed": config.run.seed,
        "start.gate_tolerance_nats": config.start.gate_tolerance_nats,
        "parallel.first_stage_layers": config.parallel.first_stage_layers,
        "parallel.last_stage_layers": config.parallel.last_stage_layers,
        "parallel.local_ranks": config.parallel.local_ranks,
        "memory.recompute_layers": config.memory.recompute_layers,
        "memory.logits_chunk_tokens": config.memory.logits_chunk_tokens,
        "fp8.bf16_first_layers": config.fp8.bf16_first_layers,
        "fp8.bf16_last_layers": config.fp8.bf16_last_layers,
        "data.prefetch_steps": config.data.prefetch_steps,
        "data.megatron_samples": config.data.megatron_samples,
        "data.megatron_consumed_samples": config.data.megatron_consumed_samples,
        "eval.every_steps": config.eval.every_steps,
        "eval.every_tokens": config.eval.every_tokens,
        "eval.micro_batch_size": config.eval.micro_batch_size,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "checkpoint.keep_every_tokens": config.checkpoint.keep_every_tokens,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "runtime.threads_per_rank": config.runtime.threads_per_rank,
        "runtime.time_limit_minutes": config.runtime.time_limit_minutes,
        "runtime.stop_margin_s": config.runtime.stop_margin_s,
        "runtime.stop_grace_s": config.runtime.stop_grace_s,
        "runtime.max_restarts": config.runtime.max_restarts,
        "runtime.straggler_every_steps": config.runtime.straggler_every_steps,
    }
    for key, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{key}={value} must be at least 1; use 1 or more")
    for key, number in not_negative.items():
        if number < 0:
            raise ConfigError(f"{key}={number} must not be negative; use 0 or more")
    if not 1 < config.runtime.hang_factor < math.inf and config.runtime.hang_factor != 0:
        raise ConfigError(
            f"runtime.hang_factor={config.runtime.hang_factor} must be more than 1, or a usual step would be a hang; "
            "use e.g. 20, or 0 to turn the watch off"
        )
    if not 1 < config.runtime.straggler_factor < math.inf:
        raise ConfigError(
            f"runtime.straggler_factor={config.runtime.straggler_factor} must be more than 1, or a usual rank would be "
            "slow; use e.g. 1.2"
        )
    if not config.run.dir:
        raise ConfigError("run.dir='' must name the output directory; set it, as run.dir=runs/my-run")


def _check_sources(config: Config) -> None:
    sources = config.data.sources
    if not sources:
        raise ConfigError("data.sources is empty and training needs tokens; add at least one source")
    _check_names("data.sources", [source.name for source in sources])
    _check_names("data.valid", [valid.name for valid in config.data.valid])
    for source in sources:
        if source.token_share <= 0:
            raise ConfigError(
                f"data.sources.{source.name}.token_share={source.token_share} must be more than 0; "
                "raise it or remove the source"
            )
    for source in sources:
        if not 0 <= source.max_epochs < math.inf:
            raise ConfigError(
                f"data.sources.{source.name}.max_epochs={source.max_epochs} must be 0 (no limit) or more; "
                "state how often the source may be seen"
            )
    paths = {f"data.sources.{source.name}.path": source.path for source in sources}
    paths |= {f"data.valid.{valid.name}.path": valid.path for valid in config.data.valid}
    for key, path in paths.items():
        if not path:
            raise ConfigError(f"{key}='' must name token files; set it to PATH of PATH.bin and PATH.idx")


def _check_megatron_order(config: Config) -> None:
    data = config.data
    if data.order != "megatron":
        return
    if (
        data.megatron_samples
        < config.train.steps * config.train.global_batch_size + data.megatron_consumed_samples
    ):
        raise ConfigError(
            f"data.megatron_samples={data.megatron_samples} must cover data.megatron_consumed_samples="
            f"{data.megatron_consumed_samples} + train.steps * train.global_batch_size = "
            f"{config.train.steps * config.train.global_batch_size}; give the Megatron run's number, or train less"
        )
    limited = [source.name for source in data.sources if source.max_epochs]
    if limited or data.packing != "joined":
        raise ConfigError(
            f"data.order=megatron with data.packing={data.packing} and max_epochs of {limited} must follow Megatron, "
            "which has neither; use data.packing=joined and leave max_epochs out, or data.order=cptron"
        )


def _check_names(key: str, names: list[str]) -> None:
    for i, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{key}.{i}.name={name!r} must be letters, digits, _ and - only; rename it")
        if name in names[:i]:
            raise ConfigError(f"{key}.{i}.name={name} is used before in {key}; give every one its own name")


def _check_validation(config: Config) -> None:
    for valid in config.data.valid:
        if valid.max_tokens < 0:
            raise ConfigError(
                f"data.valid.{valid.name}.max_tokens={valid.max_tokens} must not be negative; use 0 for all"
            )
    if config.data.valid:
        return
    for key, every in (("every_steps", config.eval.every_steps), ("every_tokens", config.eval.every_tokens)):
        if every:
            raise ConfigError(
                f"eval.{key}={every} but data.valid is empty: nothing to evaluate; add a validation set, or set "
                f"eval.{key}=0 and eval.at_start=false"
            )
    if config.eval.at_start:
        raise ConfigError(
            "eval.at_start=true but data.valid is empty, so no baseline can be measured; "
            "add a validation set, or set eval.at_start=false to train without one"
        )


def _check_optim(optim: OptimConfig) -> None:
    if optim.eps <= 0:
        raise ConfigError(f"optim.eps={optim.eps} must be more than 0; use e.g. 1e-8")
    for key, beta in (("beta1", optim.beta1), ("beta2", optim.beta2)):
        if not 0 <= beta < 1:
            raise ConfigError(f"optim.{key}={beta} must be from 0 to below 1; use e.g. 0.9")
    for key, value in (("weight_decay", optim.weight_decay), ("clip_grad_norm", optim.clip_grad_norm)):
        if value < 0:
            raise ConfigError(f"optim.{key}={value} must not be negative; use 0 to turn it off")
