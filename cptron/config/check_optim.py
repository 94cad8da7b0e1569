"""Rules of the optimizer's choices: name, moments, momentum, groups and frozen parameters.

Place in the flow: called by `check` for every run, before any rank is started. Invariant: pure, but for asking
whether a package is installed; nothing is imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cptron.config.schema import OptimConfig
from cptron.errors import ConfigError

MAX_BETA2_OF_BF16_MOMENTS = 0.99
"""bf16 has 8 bits of mantissa: a relative change below 2^-9 to 2^-8 rounds away, and with it the updates of a
second moment that moves by 1 - beta2 a step. At this limit it stops a fifth short of a constant gradient's square
and still decays to 0; at 0.999 it stops below half of it and never decays."""


def check_optim_choices(optim: OptimConfig) -> None:
    """Raises `ConfigError` on the first rule broken."""
    _check_moments(optim)
    _check_momentum(optim)
    _check_groups(optim)
    _check_patterns("optim.frozen", optim.frozen)
    if optim.name == "muon":
        _check_muon_installed()


def _check_moments(optim: OptimConfig) -> None:
    if optim.moments != "bf16":
        return
    if optim.name != "adamw":
        raise ConfigError(
            f"optim.moments=bf16 is for optim.name=adamw, not {optim.name}; leave optim.moments at fp32"
        )
    if optim.beta2 > MAX_BETA2_OF_BF16_MOMENTS:
        raise ConfigError(
            f"optim.beta2={optim.beta2} with optim.moments=bf16: updates of 1 - beta2 = {1 - optim.beta2:.2g} "
            f"are lost in bf16's 8 bits; use beta2 up to {MAX_BETA2_OF_BF16_MOMENTS}, or optim.moments=fp32"
        )


def _check_momentum(optim: OptimConfig) -> None:
    if not 0 <= optim.momentum < 1:
        raise ConfigError(f"optim.momentum={optim.momentum} must be from 0 to below 1; use e.g. 0.9")


def _check_groups(optim: OptimConfig) -> None:
    _check_patterns("optim.groups match", [group.match for group in optim.groups])
    for group in optim.groups:
        if not (math.isfinite(group.lr_mult) and group.lr_mult >= 0):
            raise ConfigError(
                f"optim.groups {group.match!r}: lr_mult={group.lr_mult} must be 0 or more; use e.g. 0.1"
            )


def _check_patterns(key: str, patterns: Sequence[str]) -> None:
    for number, pattern in enumerate(patterns):
        if not pattern.strip():
            raise ConfigError(
                f"{key} has an empty pattern at place {number + 1}; name parameters, as *word_embeddings*, "
                "or leave it out"
            )
        if pattern in patterns[:number]:
            raise ConfigError(f"{key} has {pattern!r} twice, and only the first counts; leave one out")


def _check_muon_installed() -> None:
    if find_spec("emerging_optimizers") is None:
        raise ConfigError(
            "optim.name=muon needs NVIDIA's package emerging_optimizers, which is not installed; install it "
            "(https://github.com/NVIDIA-NeMo/Emerging-Optimizers) or use optim.name=adamw"
        )
    where = _megatron_core()
    if where is None or not (where / "optimizer" / "muon.py").is_file():
        raise ConfigError(
            f"optim.name=muon: the installed megatron-core ({where}) has no Muon; install 0.16.1 or later, "
            "or use optim.name=adamw"
        )


def _megatron_core() -> Path | None:
    """Its directory; found, not imported: `megatron` itself is an empty namespace."""
    try:
        core = find_spec("megatron.core")
    except ModuleNotFoundError:
        return None
    return Path(core.origin).parent if core is not None and core.origin else None
