"""Choices about the learning rate: schedule, peak, start, and what the optimizer is given beside it.

Place in the flow: called by `advice` with the amounts. Invariant: pure; rates come from the presets, which `cptron
train` knows too, and no rate of the pretraining is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cptron.advise.amounts import Amounts
from cptron.advise.choice import Choice, Value
from cptron.advise.facts import Facts
from cptron.advise.rules_keep import pulled_to_start
from cptron.advise.shift import Shift
from cptron.config.presets import PRESETS
from cptron.config.schema import Config, DataConfig, OptimConfig, RunConfig, StartConfig, TrainConfig
from cptron.errors import ConfigError

ANNEALED_PART = 0.2
"""Of a run that goes on at a constant rate."""
STRONG_FROM_TOKENS = 10_000_000_000
"""A strong shift of fewer tokens gets half of the pretraining's peak."""
SMALL_DOMAIN = {"strong": (5e-5, 5.0), "moderate": (1e-5, 10.0), "weak": (1e-5, 10.0)}
"""Shift -> peak rate of a small run, and the divisor of the pretraining's peak where that is known."""
NOTHING_LEARNED = 1e-6
"""A rate below it teaches hardly anything."""
OF_RATES_ALONE = ("nemotron-steps", "code-llama", "small-5e-6", "tiny-rate")
"""Entries that say nothing of a schedule's shape."""
INTERMEDIATE_FROM_TOKENS = 10_000_000_000


@dataclass(frozen=True, slots=True)
class _Rate:
    """A preset with its peak, and why."""

    preset: str
    lr: float
    why: str
    evidence: tuple[str, ...]
    unknown: str = ""


def rate_choices(facts: Facts, shift: Shift, amounts: Amounts) -> list[Choice]:
    """Schedule, rates, the declared start and the optimizer. Raises `ConfigError` where a rate of the pretraining is
    needed and not known."""
    if facts.base.state == "constant_phase":
        schedule = _constant_phase(facts, amounts)
    else:
        schedule = _preset(facts, amounts, _rate(facts, shift, amounts))
    return [_start(facts), *schedule, _optimizer(facts)]


def _rate(facts: Facts, shift: Shift, amounts: Amounts) -> _Rate:
    base, tokens = facts.base, amounts.tokens
    if facts.goal == "long-context":
        values = PRESETS["long-context"].values(_config(facts, amounts, "long-context"), None)
        return _Rate(
            "long-context",
            values["lr"],
            "Longer sequences are learned at a low rate.",
            ("prolong-scripts", "nemotron-ultra"),
        )
    if amounts.is_small:
        return _small(facts, shift, amounts)
    if shift.kind == "weak":
        low = "" if base.lr_at_save >= NOTHING_LEARNED else _DECAYED_TO_NOTHING.format(rate=base.lr_at_save)
        return _Rate(
            "weak-shift",
            _known(
                base.lr_at_save,
                facts,
                "--lr-at-save",
                "a weak shift goes on at the last rate of the pretraining",
            ),
            "A weak shift with many tokens: the pretraining goes on at its last rate, without a warm-up.",
            ("parmar", "ibrahim-rate"),
            low,
        )
    part = 1.0 if shift.kind == "strong" and tokens >= STRONG_FROM_TOKENS else 0.5
    peak = _known(
        base.lr_peak, facts, "--lr-peak", f"a {shift.kind} shift begins at the peak of the pretraining"
    )
    return _Rate(
        "strong-shift",
        float(f"{part * peak:.6g}"),
        f"A {shift.kind} shift with {tokens:,} tokens: {'' if part == 1 else 'half of '}the peak of the "
        f"pretraining, {peak:g}. The whole of it is for a strong shift of at least 10 B tokens. Common advice "
        "is ten times less; the projects with a large shift kept the peak.",
        ("ibrahim-rate", "poro2-rates", "llemma-config", "code-llama", "nemotron-steps"),
        "the best peak for these data: some hundred steps at half of it and at twice",
    )


def _small(facts: Facts, shift: Shift, amounts: Amounts) -> _Rate:
    usual, divisor = SMALL_DOMAIN[shift.kind]
    peak = facts.base.lr_peak
    lr = float(f"{peak / divisor:.6g}") if peak else usual
    of_peak = (
        f"It is the pretraining's peak of {peak:g} divided by {divisor:g}."
        if peak
        else f"{usual:g} is what is usual for models of some billion parameters."
    )
    unknown = "whether half or twice the rate is better: a few short runs with `optim.lr` overridden"
    if not peak:
        unknown = f"the peak of the pretraining: --lr-peak, which would be divided by {divisor:g}; {unknown}"
    evidence = ["nova-docs", "nemotron-steps", "small-5e-6", "tiny-rate"]
    if shift.kind == "strong":
        evidence.append("ibrahim-rate")
    why = (
        f"{amounts.tokens:,} tokens are few, so the rate is low: a small corpus does not need more, and more "
        f"forgets more. {of_peak}"
    )
    return _Rate("small-domain", lr, why, tuple(evidence), unknown)


def _preset(facts: Facts, amounts: Amounts, rate: _Rate) -> list[Choice]:
    config = _config(facts, amounts, rate.preset)
    values: dict[str, Any] = PRESETS[rate.preset].values(config, rate.lr)
    shape: dict[str, Value] = {
        "optim.preset": rate.preset,
        "optim.schedule": values["schedule"],
        "optim.warmup_steps": values["warmup_steps"],
    }
    of_shape = tuple(name for name in rate.evidence if name not in OF_RATES_ALONE)
    return [
        Choice(
            sets=shape,
            why=f"As the preset {rate.preset} has it (docs/schedules.md). Where this will not be the last "
            "continued pretraining of the model, optim.schedule=infinite leaves a checkpoint that never has to "
            "be warmed up again.",
            evidence=(*of_shape, "infinite-shift", "hagele", "poro2-wsd"),
        ),
        Choice(
            sets={"optim.lr": values["lr"], "optim.lr_min": values["lr_min"]},
            why=rate.why,
            evidence=rate.evidence,
            unknown=rate.unknown,
        ),
    ]


def _constant_phase(facts: Facts, amounts: Amounts) -> list[Choice]:
    rate = _known(
        facts.base.lr_at_save,
        facts,
        "--lr-at-save",
        "a base from the constant phase goes on at the rate that it was saved with",
    )
    anneal = max(1, round(ANNEALED_PART * amounts.steps))
    unknown = ""
    if amounts.tokens < INTERMEDIATE_FROM_TOKENS:
        unknown = (
            "whether the finished model would be the better start: for less than about 10 B tokens Amazon's "
            "documentation advises that"
        )
    return [
        Choice(
            sets={
                "optim.schedule": "wsd",
                "optim.warmup_steps": 0,
                "optim.anneal_steps": anneal,
                "optim.decay_form": "minus_sqrt",
            },
            why="The base was saved while its rate was constant: no warm-up, on at that rate, and a decay over "
            "the last fifth. `cptron anneal` makes further finished models from any checkpoint before the decay.",
            evidence=(
                "hagele",
                "minicpm",
                "infinite-shift",
                "poro2-wsd",
                "tiny-constant-start",
                "nova-forge",
            ),
            unknown=unknown,
        ),
        Choice(
            sets={"optim.lr": rate, "optim.lr_min": float(f"{rate / 10:.6g}")},
            why="The rate of the constant phase; a higher one would be a warm-up, which costs what was learned.",
            evidence=("tiny-constant-start", "ibrahim-rate", "nova-forge"),
        ),
    ]


def _start(facts: Facts) -> Choice:
    base = facts.base
    if base.state == "unknown":
        return Choice(
            sets={"start.state": "unknown"},
            why="Nothing tells whether the base's rate was decayed. Finished models that are published are "
            "decayed as a rule; nothing is refused for either.",
            evidence=("nova-forge", "tiny-constant-start"),
            unknown="the state of the base's learning rate: its report has it, declare it by --state",
        )
    source = "its checkpoint tells" if base.state_from == "checkpoint" else "as declared"
    other = (
        "From a base before its decay both losses would end lower, where there is one."
        if base.state == "decayed"
        else "That is the better start for many tokens."
    )
    return Choice(
        sets={"start.state": base.state},
        why=f"{base.state}, {source}. {other}",
        evidence=("tiny-constant-start", "nova-forge"),
    )


def _optimizer(facts: Facts) -> Choice:
    decay: dict[str, Value] = {} if pulled_to_start(facts) else {"optim.weight_decay": 0.1}
    return Choice(
        sets={**decay, "optim.beta1": 0.9, "optim.beta2": 0.95, "optim.clip_grad_norm": 1.0},
        why="As most published scripts have it; Amazon's documentation has no weight decay. The optimizer "
        "begins anew with weights of others.",
        evidence=("decay-tenth", "decay-none"),
    )


def _known(rate: float, facts: Facts, flag: str, why: str) -> float:
    if rate <= 0:
        raise ConfigError(
            f"{facts.base.path}: {why}, and {flag}={rate:g} does not tell it; give {flag} from the model's "
            "report (`cptron inspect` shows it for a checkpoint of a run)"
        )
    return rate


def _config(facts: Facts, amounts: Amounts, preset: Any) -> Config:
    """What presets look at."""
    return Config(
        run=RunConfig(dir=facts.run_dir),
        start=StartConfig(lr_peak=facts.base.lr_peak, lr_at_save=facts.base.lr_at_save),
        data=DataConfig(seq_length=amounts.seq_length, sources=()),
        train=TrainConfig(steps=amounts.steps, global_batch_size=amounts.global_batch_size),
        optim=OptimConfig(preset=preset),
    )


_DECAYED_TO_NOTHING = (
    "whether anything is learned at {rate:g}, which the pretraining had decayed to: the published run of this "
    "kind began at 4.5e-5; try optim.lr ten times higher in a short run"
)
