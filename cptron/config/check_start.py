"""Rules of the start: which weights, and what is declared of their learning rate.

Place in the flow: called by `check` for every run, before any rank is started. Invariant: pure functions of the
configuration; what only the starting checkpoint tells is for `train.start_state`.
"""

from __future__ import annotations

from cptron.config.schema import Config, StartConfig
from cptron.errors import ConfigError


def check_start(config: Config) -> None:
    """Raises `ConfigError` on the first rule broken."""
    _check_branch(config.start)
    _check_weights(config)
    _check_declared(config.start)


def _check_branch(start: StartConfig) -> None:
    if start.mode == "branch" and (start.hugging_face or not start.checkpoint):
        named = f"start.hugging_face={start.hugging_face}" if start.hugging_face else "start.checkpoint=''"
        raise ConfigError(
            f"{named}, but start.mode=branch goes on from a run's checkpoint; name it in start.checkpoint alone"
        )


def _check_declared(start: StartConfig) -> None:
    for key, rate in (("lr_at_save", start.lr_at_save), ("lr_peak", start.lr_peak)):
        if rate < 0:
            raise ConfigError(f"start.{key}={rate} must not be negative; use 0 where it is not known")
    declared = start.state != "unknown" or start.lr_at_save or start.lr_peak or start.rewarm
    if start.mode == "random" and declared:
        raise ConfigError(
            f"start.state={start.state}, start.lr_at_save={start.lr_at_save}, start.lr_peak={start.lr_peak} and "
            f"start.rewarm={str(start.rewarm).lower()} speak of a pretraining, and start.mode=random has none; "
            "leave them out"
        )


def _check_weights(config: Config) -> None:
    start, architecture = config.start, config.model.architecture
    if start.mode == "init_from" and not start.checkpoint and not start.hugging_face:
        raise ConfigError(
            "start.checkpoint='' but start.mode=init_from loads weights from it; set it to the output of "
            "`cptron convert`, or start.hugging_face to a model directory, or set start.mode=random"
        )
    if start.checkpoint and start.hugging_face:
        raise ConfigError(
            f"start.checkpoint={start.checkpoint} and start.hugging_face={start.hugging_face} both name weights to "
            "start from; keep one of them"
        )
    if start.hugging_face and config.adapter.kind != "none":
        raise ConfigError(
            f"adapter.kind={config.adapter.kind} belongs to a checkpoint, but start.hugging_face="
            f"{start.hugging_face} is none; `cptron convert` makes one for start.checkpoint"
        )
    if start.mode == "random" and not architecture:
        raise ConfigError(
            "model.architecture='' but start.mode=random has no checkpoint to take the shape from; "
            "set it to a JSON file in the form of Hugging Face's config.json"
        )
    if start.mode == "random" and (start.checkpoint or start.hugging_face):
        key = "checkpoint" if start.checkpoint else "hugging_face"
        raise ConfigError(
            f"start.{key}={start.checkpoint or start.hugging_face} would not be loaded with start.mode=random; "
            "set start.mode=init_from to load it, or remove it"
        )
