"""Rules of mixing: stages that follow one another, and floors that every blend keeps.

Place in the flow: called by `check` for every run, before any rank is started. Invariant: pure; a run that passes never
comes to a stage that cannot be trained or that starves the replay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from cptron.config.check_engine import check_engine
from cptron.config.schema import Config, StageConfig
from cptron.errors import ConfigError, either
from cptron.mixture import ado
from cptron.optim.rate_reached import step_reached


def check_mixing(config: Config, world_size: int) -> None:
    """Raises `ConfigError` on the first rule broken."""
    _check_floors(config)
    _check_doremi(config)
    blends = {"data.sources": {source.name: source.token_share for source in config.data.sources}}
    for number, stage in enumerate(config.data.stages):
        _check_stage(config, stage, f"data.stages.{number}")
        blends |= {f"data.stages.{number}": dict(stage.shares) or blends["data.sources"]}
    _check_ends(config)
    if config.data.stages and all(stage.shares for stage in config.data.stages):
        del blends["data.sources"]
    for where, shares in blends.items():
        _check_blend(config, where, shares)
    for staged, where in staged_configs(config):
        try:
            check_engine(staged, world_size)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def staged_configs(config: Config) -> list[tuple[Config, str]]:
    """The configuration as it is in each stage, and the stage's key."""
    data, train = config.data, config.train
    return [
        (
            replace(
                config,
                data=replace(data, seq_length=stage.seq_length or data.seq_length),
                train=replace(train, global_batch_size=stage.global_batch_size or train.global_batch_size),
            ),
            f"data.stages.{number}",
        )
        for number, stage in enumerate(data.stages)
    ]


def _check_doremi(config: Config) -> None:
    doremi, data = config.doremi, config.data
    if not 0 < doremi.step_size < math.inf or not 0 <= doremi.smoothing <= 1:
        raise ConfigError(
            f"doremi.step_size={doremi.step_size} must be more than 0, and doremi.smoothing={doremi.smoothing} from 0 "
            "to 1; use 1 and 0.001"
        )
    if not doremi.reference:
        return
    if len(data.sources) < 2 or data.stages or data.mixer != "static":
        raise ConfigError(
            f"doremi.reference={doremi.reference} weights {len(data.sources)} source(s) with {len(data.stages)} stages "
            f"and data.mixer={data.mixer}; it needs two sources or more, no stages and data.mixer=static"
        )
    if config.adapter.kind != "none":
        raise ConfigError(
            f"doremi.reference={doremi.reference} needs a proxy whose weights are trained, not adapter.kind="
            f"{config.adapter.kind}; use adapter.kind=none"
        )


def _check_floors(config: Config) -> None:
    data = config.data
    for source in data.sources:
        if not 0 <= source.min_share < 1:
            raise ConfigError(
                f"data.sources.{source.name}.min_share={source.min_share} must be from 0 to below 1; use e.g. 0.01"
            )
    if not 0 <= data.replay_floor < 1:
        raise ConfigError(f"data.replay_floor={data.replay_floor} must be from 0 to below 1; use e.g. 0.05")
    least = {
        role: math.fsum(source.min_share for source in data.sources if source.role == role)
        for role in ("new", "replay")
    }
    if data.replay_floor and not any(source.role == "replay" for source in data.sources):
        raise ConfigError(
            f"data.replay_floor={data.replay_floor} but no source has role replay; give one the role, or leave it out"
        )
    together = max(data.replay_floor, least["replay"]) + least["new"]
    if together > 1:
        raise ConfigError(
            f"data.replay_floor={data.replay_floor} and the min_share of all sources come to {together:g}, must leave "
            "room within 1; lower them"
        )
    if data.mixer_every_batches < 1 or data.mixer_skip_batches < 0:
        raise ConfigError(
            f"data.mixer_every_batches={data.mixer_every_batches} and data.mixer_skip_batches="
            f"{data.mixer_skip_batches} must be at least 1 and 0; use e.g. 100 and 500"
        )
    is_asked = data.stages or data.replay_floor or any(least.values()) or data.mixer != "static"
    given = [source.name for source in data.sources if source.order == "given"]
    if data.order == "megatron" and (is_asked or given):
        raise ConfigError(
            f"data.order=megatron with stages, floors or the given order of {given} must follow Megatron, which has "
            "none of them; leave them out, or use data.order=cptron"
        )
    _check_mixer(config)


def _check_mixer(config: Config) -> None:
    """A mixer that never comes to set a share would be a static one without a word."""
    data = config.data
    if data.mixer == "static":
        return
    # its first update is the first multiple after what is skipped
    updates = data.mixer_skip_batches // data.mixer_every_batches + ado.MIN_POINTS
    first = updates * data.mixer_every_batches
    if first >= config.train.steps:
        raise ConfigError(
            f"data.mixer={data.mixer} sets its first shares after batch {first}, by data.mixer_skip_batches="
            f"{data.mixer_skip_batches} and {ado.MIN_POINTS} updates each data.mixer_every_batches="
            f"{data.mixer_every_batches}, and train.steps={config.train.steps} end before; lower these, or use static"
        )


def _check_stage(config: Config, stage: StageConfig, where: str) -> None:
    names = [source.name for source in config.data.sources]
    for name, share in stage.shares.items():
        if name not in names:
            raise ConfigError(f"{where}.shares names {name}, which is no source; use {either(names)}")
        if not 0 <= share < math.inf:
            raise ConfigError(f"{where}.shares.{name}={share} must be 0 or more; use e.g. 0.3")
    if stage.shares and not sum(stage.shares.values()) > 0:
        raise ConfigError(f"{where}.shares={dict(stage.shares)} draws nothing; give a source a share above 0")
    for key, value in (
        ("until_tokens", stage.until_tokens),
        ("seq_length", stage.seq_length),
        ("global_batch_size", stage.global_batch_size),
    ):
        if value < 0:
            raise ConfigError(f"{where}.{key}={value} must not be negative; use 0 or more")
    if not 0 < stage.lr_scale < math.inf:
        raise ConfigError(f"{where}.lr_scale={stage.lr_scale} must be more than 0; use 1 for the schedule's")
    if not 0 <= stage.until_lr_frac < 1:
        raise ConfigError(
            f"{where}.until_lr_frac={stage.until_lr_frac} must be from 0 to below 1; use e.g. 0.2"
        )


def _check_ends(config: Config) -> None:
    stages, tokens = config.data.stages, 0
    for number, stage in enumerate(stages):
        where, last = f"data.stages.{number}", number == len(stages) - 1
        ends = bool(stage.until_tokens) + bool(stage.until_lr_frac)
        if ends != (not last):
            rule = "is the last and goes on to the end of the run" if last else "must have exactly one end"
            raise ConfigError(
                f"{where} with until_tokens={stage.until_tokens} and until_lr_frac={stage.until_lr_frac} {rule}; "
                + ("leave both out" if last else "give one of them")
            )
        if stage.until_tokens and stage.until_tokens <= tokens:
            raise ConfigError(
                f"{where}.until_tokens={stage.until_tokens} must be more than that of an earlier stage, {tokens}; "
                "tokens count from the start of the run"
            )
        tokens = stage.until_tokens or tokens
        if stage.until_lr_frac and not step_reached(config.optim, config.train.steps, stage.until_lr_frac):
            raise ConfigError(
                f"{where}.until_lr_frac={stage.until_lr_frac} is not reached by the schedule within train.steps="
                f"{config.train.steps}; use until_tokens, or a schedule that decays so far"
            )


def _check_blend(config: Config, where: str, shares: Mapping[str, float]) -> None:
    total, data = math.fsum(shares.values()), config.data
    replay = math.fsum(shares.get(source.name, 0.0) for source in data.sources if source.role == "replay")
    if replay / total < data.replay_floor - 1e-12:
        raise ConfigError(
            f"{where} gives sources of role replay {replay / total:g} of the tokens, must be at least "
            f"data.replay_floor={data.replay_floor}; raise their share or lower the floor"
        )
    for source in data.sources:
        share = shares.get(source.name, 0.0) / total
        if 0 < share < source.min_share - 1e-12:
            raise ConfigError(
                f"{where} gives {source.name} {share:g} of the tokens, must be at least its min_share="
                f"{source.min_share}; raise its share, or leave it out of the stage"
            )
