"""Presets of the learning rate, each with its evidence and how sure that is.

Place in the flow: `load` fills in what a configuration leaves open; `preflight` says what was filled in and why.
Invariant: a written key wins, and what a preset gives is a pure function of the other keys, so that the resolved
configuration holds explicit values and reads back equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from cptron.config.schema import Config
from cptron.errors import ConfigError

LONGEST_AT_64K = 65_536
"""ProLong's stages are of 64K and 512K tokens; beyond the first the rate of the second is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Values for a kind of continued pretraining."""

    purpose: str
    values: Callable[[Config, float | None], dict[str, Any]]
    """Keys of `optim` and their values, given the configuration and its `optim.lr`, which is None where not written."""
    evidence: tuple[str, ...]
    """What it rests on; each says whether source code or documentation was read, or the number is second-hand."""


def apply_preset(config: Config, provenance: MutableMapping[str, str], default: str) -> Config:
    """The configuration with what its preset gives for keys of `optim` whose provenance is `default`; their provenance
    is then the preset. Raises `ConfigError` where the preset needs a rate that is not there."""
    name = config.optim.preset
    if name == "none":
        return config
    values = preset_values(config, None if provenance["optim.lr"] == default else config.optim.lr)
    given = {key: value for key, value in values.items() if provenance[f"optim.{key}"] == default}
    provenance.update({f"optim.{key}": f"preset {name}" for key in given})
    return replace(config, optim=replace(config.optim, **given))


def preset_values(config: Config, lr: float | None) -> dict[str, Any]:
    """What the configuration's preset gives, with a peak of `lr`, or of its own."""
    return PRESETS[config.optim.preset].values(config, lr)


def preset_note(config: Config) -> str:
    """One line: what the preset gives, what is configured otherwise, and the evidence; empty without a preset."""
    if config.optim.preset == "none":
        return ""
    values = preset_values(config, config.optim.lr)
    words = []
    for key, value in values.items():
        found = getattr(config.optim, key)
        words.append(f"{key} {value}" if found == value else f"{key} {found} (the preset's is {value})")
    evidence = "; ".join(PRESETS[config.optim.preset].evidence)
    return f"optim.preset={config.optim.preset}: {', '.join(words)}. Evidence: {evidence}"


def _strong_shift(config: Config, lr: float | None) -> dict[str, Any]:
    peak = (
        lr
        if lr is not None
        else _needed(config, "lr_peak", config.start.lr_peak, "the peak rate of the pretraining")
    )
    return _cosine(peak, peak / 10, _part_of_steps(config, 0.01))


def _weak_shift(config: Config, lr: float | None) -> dict[str, Any]:
    ended = "the rate at which the pretraining ended"
    first = lr if lr is not None else _needed(config, "lr_at_save", config.start.lr_at_save, ended)
    return _cosine(first, first / 100, 0)


def _small_domain(config: Config, lr: float | None) -> dict[str, Any]:
    peak = 1e-5 if lr is None else lr
    return _cosine(peak, peak / 10, min(10, config.train.steps - 1))


def _long_context(config: Config, lr: float | None) -> dict[str, Any]:
    own = 1e-5 if config.data.seq_length <= LONGEST_AT_64K else 5e-6
    peak = own if lr is None else lr
    return _cosine(peak, peak / 10, _part_of_steps(config, 0.1))


def _cosine(lr: float, lr_min: float, warmup_steps: int) -> dict[str, Any]:
    rounded = float(f"{lr_min:.6g}")  # a tenth of 3e-4 is 3e-5 to people
    return {"schedule": "cosine", "lr": lr, "lr_min": rounded, "warmup_steps": max(warmup_steps, 0)}


def _part_of_steps(config: Config, part: float) -> int:
    """At least one step, and never all of them."""
    return min(max(1, round(part * config.train.steps)), config.train.steps - 1)


def _needed(config: Config, key: str, value: float, meaning: str) -> float:
    if value <= 0:
        raise ConfigError(
            f"optim.preset={config.optim.preset} begins at {meaning}, and start.{key}={value} does not tell it; set "
            f"start.{key} (`cptron inspect` shows it for a checkpoint of a run), or optim.lr"
        )
    return value


PRESETS: Mapping[str, Preset] = {
    "strong-shift": Preset(
        purpose="a new language or modality, from about 10 billion tokens",
        values=_strong_shift,
        evidence=(
            "Poro 2 scripts (read): 8B 3e-4, 70B 1.5e-4, cosine, warm-up 5 %",
            "Llemma-7B configuration (read): 1e-4 to 3.3 % of it, warm-up 500 steps",
            "Ibrahim et al. 2024 (second-hand): peak of the pretraining, a tenth at the end, 0 to 2 % warm-up alike "
            "after 50 B tokens",
            "Code Llama (from memory): the peak of Llama 2 kept",
        ),
    ),
    "weak-shift": Preset(
        purpose="more or better general data",
        values=_weak_shift,
        evidence=(
            "Parmar et al. 2024 (second-hand): a 15B model goes on at the last rate of its pretraining, 4.5e-5, "
            "without warm-up, cosine to a hundredth, 300 B tokens",
        ),
    ),
    "small-domain": Preset(
        purpose="one domain, below about 5 billion tokens",
        values=_small_domain,
        evidence=(
            "Amazon Nova documentation (read): 1e-5 to 1e-6, warm-up 10 steps",
            "NVIDIA Nemotron steps (read): 1e-5 to 5e-5, 5 to 10 times below the pretraining",
            "EntiGraph and ChipNeMo (second-hand): 5e-6",
        ),
    ),
    "long-context": Preset(
        purpose="longer sequences",
        values=_long_context,
        evidence=(
            "ProLong scripts (read): 1e-5 at 64K tokens, 5e-6 at 512K, a tenth at the end, warm-up 10 %",
            "Nemotron Ultra (second-hand): constant 2.5e-6",
        ),
    ),
}
"""Name -> preset. None of these numbers was measured by this project."""
