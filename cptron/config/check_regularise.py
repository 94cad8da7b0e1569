"""Rules of what holds a model near where it started.

Place in the flow: called by `check` for every run, before any rank is started. Invariant: pure functions.
"""

from __future__ import annotations

import re

from cptron.config.schema import Config
from cptron.config.schema_regularise import RegulariseConfig
from cptron.errors import ConfigError


def check_regularise(config: Config) -> None:
    """Raises `ConfigError` on the first rule broken."""
    _check_strengths(config)
    _check_base(config)
    if config.regularise.pulls:
        _check_anchor(config)
    _check_fisher(config)
    _check_projection(config)
    _check_distill(config)
    _check_freeze(config)
    if config.doremi.reference and (config.regularise.pulls or _uses_replay(config)):
        raise ConfigError(
            f"doremi.reference={config.doremi.reference} finds a blend with the loss of its sources alone; remove the "
            "section regularise"
        )


def _uses_replay(config: Config) -> bool:
    """Whether something is done with replay data beside training on them."""
    return bool(config.regularise.agem or config.regularise.distill.weight)


def _check_strengths(config: Config) -> None:
    wanted = config.regularise
    for key, value in (("l2sp", wanted.l2sp), ("ewc", wanted.ewc)):
        if value < 0:
            raise ConfigError(f"regularise.{key}={value} must not be negative; use 0 to turn it off")
    fastest = config.optim.lr * max([group.lr_mult for group in config.optim.groups] + [1.0])
    fastest *= max([stage.lr_scale for stage in config.data.stages], default=1.0)
    if wanted.l2sp * fastest > 1:
        raise ConfigError(
            f"regularise.l2sp={wanted.l2sp} times the highest rate {fastest:g} must be at most 1, or a step would go "
            f"beyond the starting weights; use at most {1 / fastest:g}"
        )
    if wanted.l2sp and config.optim.weight_decay:
        raise ConfigError(
            f"regularise.l2sp={wanted.l2sp} takes the place of weight decay, but optim.weight_decay="
            f"{config.optim.weight_decay} pulls the same weights to 0; set optim.weight_decay=0"
        )
    _check_unused(wanted)


def _check_unused(wanted: RegulariseConfig) -> None:
    """A value that has no effect is a mistake."""
    default = RegulariseConfig()
    for key, needs, is_used in (
        ("ewc_form", "ewc", wanted.ewc),
        ("fisher_precision", "ewc", wanted.ewc),
        ("anchor_precision", "l2sp or regularise.ewc", wanted.pulls),
    ):
        value = getattr(wanted, key)
        if value != getattr(default, key) and not is_used:
            raise ConfigError(
                f"regularise.{key}={value} has no effect without regularise.{needs}; set a strength, or remove it"
            )
    for key in ("teacher", "top_k"):
        value = getattr(wanted.distill, key)
        if value != getattr(default.distill, key) and not wanted.distill.weight:
            raise ConfigError(
                f"regularise.distill.{key}={value} has no effect with regularise.distill.weight=0; set a weight, or "
                "remove it"
            )


def _check_base(config: Config) -> None:
    wanted = config.regularise
    if wanted.base and not wanted.knows_base:
        raise ConfigError(
            f"regularise.base={wanted.base} would not be read with regularise.l2sp=0, regularise.ewc=0 and "
            "regularise.distill.weight=0; set a strength, or remove it"
        )
    if wanted.knows_base and not wanted.base and config.start.mode == "branch":
        raise ConfigError(
            f"regularise.base='' with start.mode=branch: start.checkpoint={config.start.checkpoint} is in the middle "
            "of a run, not what it started from; name that in regularise.base, or turn regularise off"
        )


def _check_anchor(config: Config) -> None:
    asked = "regularise.l2sp" if config.regularise.l2sp else "regularise.ewc"
    if not (config.regularise.base or config.start.checkpoint):
        raise ConfigError(
            f"{asked} holds weights near those of start.checkpoint, and start.checkpoint='' names none (a Hugging Face "
            "model is made one by `cptron convert`); name it, or set the strength to 0"
        )
    if config.adapter.kind != "none":
        raise ConfigError(
            f"{asked} with adapter.kind={config.adapter.kind} would hold weights that do not move; train all weights, "
            "or set the strength to 0"
        )
    _refuse_muon(asked, config)


def _check_fisher(config: Config) -> None:
    wanted = config.regularise
    if wanted.ewc and not wanted.fisher:
        raise ConfigError(
            f"regularise.ewc={wanted.ewc} weighs weights by their Fisher information, and regularise.fisher='' names "
            "none; make it with `cptron fisher`, or use regularise.l2sp, which needs none"
        )
    if wanted.fisher and not wanted.ewc:
        raise ConfigError(
            f"regularise.fisher={wanted.fisher} would not be read with regularise.ewc=0; set a strength, or remove it"
        )


def _check_projection(config: Config) -> None:
    if not config.regularise.agem:
        return
    _refuse_muon("regularise.agem=true", config)
    if config.adapter.kind != "none":
        raise ConfigError(
            f"regularise.agem=true with adapter.kind={config.adapter.kind} would hold gradients of adapters against "
            "each other, which nobody has measured; train all weights, or use replay alone"
        )
    roles = {source.role for source in config.data.sources}
    for role in ("new", "replay"):
        if role not in roles:
            raise ConfigError(
                f"regularise.agem=true holds a gradient of new data against one of replay data, and no source has role="
                f"{role}; set data.sources.*.role, or regularise.agem=false"
            )

    is_new = {source.name for source in config.data.sources if source.role == "new"}
    for number, stage in enumerate(config.data.stages):
        if stage.shares and not any(stage.shares.get(name) for name in is_new):
            raise ConfigError(
                f"regularise.agem=true with data.stages.{number}.shares={dict(stage.shares)} would train on nothing "
                "there, since replay data only hold the gradient back; draw a source of role new, or use agem=false"
            )


def _check_distill(config: Config) -> None:
    wanted = config.regularise.distill
    if not (wanted.weight >= 0 and wanted.top_k >= 1):
        raise ConfigError(
            f"regularise.distill has weight={wanted.weight} and top_k={wanted.top_k}; use 0 or more, and 1 or more"
        )
    if not wanted.weight:
        return
    asked = f"regularise.distill.weight={wanted.weight}"
    if not any(source.role == "replay" for source in config.data.sources):
        raise ConfigError(
            f"{asked} asks the teacher about replay sources, and there is none; set data.sources.*.role"
        )
    base = config.regularise.base or config.start.checkpoint
    if not base or config.adapter.kind != "none":
        raise ConfigError(
            f"{asked} has the weights of start.checkpoint for a teacher, and start.checkpoint="
            f"{base!r} with adapter.kind={config.adapter.kind} is no such start; name whole weights "
            "and train them, or set it to 0"
        )
    if wanted.teacher == "cached" and config.data.order == "megatron":
        raise ConfigError(
            f"{asked} with teacher=cached finds a sample's tokens by data.order=cptron, not by {config.data.order}; "
            "use teacher=live"
        )
    lengths = {stage.seq_length or config.data.seq_length for stage in config.data.stages}
    if wanted.teacher == "cached" and not lengths <= {config.data.seq_length}:
        raise ConfigError(
            f"{asked} with teacher=cached finds tokens in samples of data.seq_length={config.data.seq_length}, and "
            f"data.stages have {', '.join(map(str, sorted(lengths)))}; use teacher=live"
        )


def _check_freeze(config: Config) -> None:
    if config.optim.freeze:
        _refuse_muon("optim.freeze", config)
    for number, rule in enumerate(config.optim.freeze):
        key = f"optim.freeze.{number}"
        try:
            re.compile(rule.match)
        except re.error as error:
            raise ConfigError(
                f"{key}.match={rule.match!r} is no regular expression ({error}); correct it"
            ) from None
        if not rule.match:
            raise ConfigError(f"{key}.match='' would fit every parameter; name some, as word_embeddings")
        if rule.until_tokens < 1:
            raise ConfigError(
                f"{key}.until_tokens={rule.until_tokens} must be at least 1; for the whole run use optim.frozen"
            )
        if rule.rows_below < 0:
            raise ConfigError(f"{key}.rows_below={rule.rows_below} must not be negative; use 0 for all rows")


def _refuse_muon(asked: str, config: Config) -> None:
    if config.optim.name == "muon":
        raise ConfigError(
            f"{asked} works on the stretches of a distributed optimizer, and optim.name={config.optim.name} has none; "
            "use optim.name=adamw or sgd, or leave it out"
        )
