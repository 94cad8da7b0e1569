"""Estimates every accepted layout, keeps what fits in memory, and ranks it by the predicted step time.

Place in the flow: `main` shows the best. Invariant: nothing in the ranking exceeds the GPU's memory by the formula, and
what was rejected is said with its reason and by how much.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from cptron.config.check_mixing import staged_configs
from cptron.config.schema import Config
from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster
from cptron.plan.efficiency import Efficiency
from cptron.plan.layouts import layouts
from cptron.plan.memory import Memory, memory_of
from cptron.plan.step_time import StepTime, step_time


@dataclass(frozen=True, slots=True)
class Estimate:
    """A layout with what is predicted of it."""

    config: Config
    memory: Memory
    """Of the fullest rank, in the stage of the run that needs most."""
    time: StepTime
    """Of a step of the recipe's own batch and sequence length, as expected."""
    seconds_per_token: float
    """Over all stages of the run, as expected."""


@dataclass(slots=True)
class Found:
    """What a search came to."""

    fitting: list[Estimate] = field(default_factory=list)
    """From the fastest on."""
    too_large: list[Estimate] = field(default_factory=list)
    """Those that do not fit, from the fastest on."""
    refused: Counter[str] = field(default_factory=Counter)
    """What the trainer would refuse: rule -> number of layouts."""


def search(config: Config, arch: Architecture, cluster: Cluster, efficiency: Efficiency) -> Found:
    """All accepted layouts of the recipe on the cluster."""
    found = Found()
    for variants in layouts(config, arch, cluster, found.refused):
        for candidate in variants:
            estimate = estimated(candidate, arch, cluster, efficiency)
            fits = estimate.memory.total <= cluster.gpu.memory_bytes
            (found.fitting if fits else found.too_large).append(estimate)
            if fits and candidate.memory.recompute == "none":
                break  # recomputing would only cost time
    for group in (found.fitting, found.too_large):
        group.sort(key=_rank)
    return found


def _rank(estimate: Estimate) -> tuple[float, ...]:
    """By time; of equals the one with less memory."""
    return estimate.seconds_per_token, estimate.memory.total


def estimated(config: Config, arch: Architecture, cluster: Cluster, efficiency: Efficiency) -> Estimate:
    """One layout."""
    case = efficiency.cases()[0]
    time = step_time(config, arch, cluster, reached=case[0], messages_factor=case[1])
    memories = (
        memory_of(staged, arch, cluster.num_gpus, factor=efficiency.memory_factor)
        for staged in [config, *(staged for staged, _ in staged_configs(config))]
    )
    fullest = max(memories, key=lambda memory: memory.total)
    per_token = time.total / tokens_per_step(config)
    if config.data.stages:
        per_token = seconds_per_token(config, arch, cluster, *case)
    return Estimate(config, fullest, time, per_token)


def seconds_per_token(
    config: Config, arch: Architecture, cluster: Cluster, reached: float, messages_factor: float
) -> float:
    """Of the whole cluster, over all stages of the run by their tokens."""
    return sum(
        part
        * step_time(staged, arch, cluster, reached=reached, messages_factor=messages_factor).total
        / tokens_per_step(staged)
        for staged, part in weighted_stages(config)
    )


def tokens_per_step(config: Config) -> int:
    """Tokens of a global batch."""
    return config.train.global_batch_size * config.data.seq_length


def weighted_stages(config: Config) -> list[tuple[Config, float]]:
    """The configuration as each stage of the run has it, with its part of the tokens. A stage that ends by the learning
    rate shares what is left with those after it: a plan does not resolve where that is."""
    stages = config.data.stages
    if not stages:
        return [(config, 1.0)]
    total = config.train.steps * tokens_per_step(config)
    ends: list[float | None] = [float(stage.until_tokens) or None for stage in stages]
    ends[-1] = float(max(total, max((end for end in ends if end), default=0.0)))
    for number in range(len(ends) - 2, -1, -1):
        if ends[number] is None:
            before = next((end for end in reversed(ends[:number]) if end), 0.0)
            following = ends[number + 1]
            assert following is not None
            ends[number] = (before + following) / 2
    lengths = [
        max(0.0, min(float(end or 0.0), total) - min(float(start or 0.0), total))
        for start, end in zip([0.0, *ends[:-1]], ends, strict=True)
    ]
    whole = sum(lengths) or 1.0
    return [
        (staged, length / whole) for (staged, _), length in zip(staged_configs(config), lengths, strict=True)
    ]


def with_tokens(config: Config, tokens: float) -> Config:
    """The recipe with as many steps as `tokens` take, whole ones."""
    steps = max(1, -(-int(tokens) // tokens_per_step(config)))
    return replace(config, train=replace(config.train, steps=steps))
