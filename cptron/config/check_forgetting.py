"""Rules of the forgetting monitor: something to compare with, and actions that can be taken.

Place in the flow: called by `check` for every run, before any rank is started. Invariant: pure.
"""

from __future__ import annotations

import math

from cptron.config.schema import Config
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture

PROBES = ("induction", "mapping")
MIN_RESAMPLES = 100
MIN_PROBE_TOKENS = 8


def check_forgetting(config: Config) -> None:
    """Raises `ConfigError` on the first rule broken."""
    _check_numbers(config)
    _check_measured(config)
    _check_action(config)


def check_probes(config: Config, arch: Architecture) -> None:
    """Raises `ConfigError` where the model is too small for the probes."""
    forgetting = config.forgetting
    if not (forgetting.induction_sequences or forgetting.mapping_sequences):
        return
    if forgetting.probe_tokens > arch.max_position_embeddings:
        raise ConfigError(
            f"forgetting.probe_tokens={forgetting.probe_tokens} must be at most the model's "
            f"{arch.max_position_embeddings} positions; lower it"
        )
    needed = max(forgetting.probe_tokens, 2 * forgetting.mapping_pairs)
    if needed > arch.vocab_size:
        raise ConfigError(
            f"forgetting.probe_tokens={forgetting.probe_tokens} and mapping_pairs={forgetting.mapping_pairs} need "
            f"{needed} different tokens, the model has {arch.vocab_size}; lower them"
        )


def _check_numbers(config: Config) -> None:
    forgetting = config.forgetting
    least = {
        "patience": 1,
        "grace_tokens": 0,
        "max_actions": 0,
        "resamples": MIN_RESAMPLES,
        "gap_nats": 0,
        "repetition_epochs": 0,
        "induction_sequences": 0,
        "mapping_sequences": 0,
        "mapping_pairs": 2,
        "probe_tokens": MIN_PROBE_TOKENS,
    }
    for key, minimum in least.items():
        value = getattr(forgetting, key)
        if value < minimum:
            raise ConfigError(f"forgetting.{key}={value} must be at least {minimum}; use {minimum} or more")
    if not 0 < forgetting.epsilon_nats < math.inf:
        raise ConfigError(
            f"forgetting.epsilon_nats={forgetting.epsilon_nats} must be more than 0; use e.g. 0.05"
        )
    if not 0.5 <= forgetting.confidence < 1:
        raise ConfigError(
            f"forgetting.confidence={forgetting.confidence} must be from 0.5 to below 1; use e.g. 0.95"
        )
    for key in ("induction_sequences", "mapping_sequences"):
        if getattr(forgetting, key) == 1:
            raise ConfigError(
                f"forgetting.{key}=1 has no interval; use at least 2 sequences, or 0 for no probe"
            )
    if forgetting.mapping_sequences and 4 * forgetting.mapping_pairs > forgetting.probe_tokens:
        raise ConfigError(
            f"forgetting.mapping_pairs={forgetting.mapping_pairs} must come twice in probe_tokens="
            f"{forgetting.probe_tokens} tokens; use at most {forgetting.probe_tokens // 4}"
        )


def _check_measured(config: Config) -> None:
    forgetting, names = config.forgetting, [valid.name for valid in config.data.valid]
    suites = sorted({valid.suite for valid in config.data.valid} - {""})
    probes = [name for name in PROBES if getattr(forgetting, f"{name}_sequences")]
    for name in probes:
        if name in names:
            raise ConfigError(
                f"data.valid has a set {name}, the name of a probe that forgetting.{name}_sequences turns on; rename it"
            )
    if (suites or probes) and not config.eval.at_start:
        raise ConfigError(
            f"eval.at_start=false, but changes of {', '.join([*suites, *probes])} are counted from step 0; set it to "
            "true, or leave suites and probes out"
        )
    base = "" if forgetting.base == "step0" else forgetting.base
    for key, run in (("control", forgetting.control), ("base", base)):
        if run and not (suites or (probes and key == "base")):
            raise ConfigError(
                f"forgetting.{key}={run} is compared on sets with a suite, and data.valid names none; give the sets a "
                "suite, or remove it"
            )


def _check_action(config: Config) -> None:
    action = config.forgetting.action
    if action == "alert":
        return
    if not any(valid.suite == "old" for valid in config.data.valid):
        raise ConfigError(
            f"forgetting.action={action} acts on the loss of sets with suite old, and data.valid has none; add one, or "
            "use alert"
        )
    if not (config.eval.every_steps or config.eval.every_tokens):
        raise ConfigError(
            f"forgetting.action={action} needs evaluations on the way, but eval.every_steps=0 and every_tokens=0; set "
            "one of them"
        )
    can_raise = config.data.order == "cptron" and any(
        source.role == "replay" for source in config.data.sources
    )
    if action == "raise_replay" and not can_raise:
        raise ConfigError(
            "forgetting.action=raise_replay needs a source with role replay and data.order=cptron, here "
            f"{config.data.order}; give a source that role, or use lower_lr"
        )
    if action == "stop_and_keep_best":
        _check_best(config)
    if action == "rollback" and not config.checkpoint.every_steps:
        raise ConfigError(
            "forgetting.action=rollback goes back to a checkpoint of this run, but checkpoint.every_steps=0 makes none "
            "before the end; set it, or use another action"
        )


def _check_best(config: Config) -> None:
    """The best is one of the checkpoints that were evaluated: there must be some from before the stop."""
    saves, evaluates = config.checkpoint.every_steps, config.eval.every_steps
    if not saves or (evaluates and not config.eval.every_tokens and saves % evaluates):
        raise ConfigError(
            f"forgetting.action=stop_and_keep_best chooses among checkpoints that were evaluated, and checkpoint."
            f"every_steps={saves} with eval.every_steps={evaluates} saves none or others; make it a multiple of "
            "that, or use another action"
        )
