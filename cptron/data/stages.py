"""Stages of a run: which blend, sequence length, batch and rate are in force after so many tokens.

Place in the flow: made of the configuration by `open`, asked by `stream` at the start of every global batch.
Invariant: the stage in force is a pure function of the configuration and of the tokens drawn; so reading ahead, a
restart and another number of ranks change nothing of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cptron.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    """What is in force until its end."""

    token_shares: tuple[float, ...]
    """Share of the tokens of each source, any numbers from 0; a source with 0 is not drawn."""
    seq_length: int = 0
    """Tokens predicted in a sequence; 0: as the sources were opened."""
    global_batch_size: int = 0
    """Sequences of a global batch; 0, where it does not end: as many as the loader asks for."""
    lr_scale: float = 1.0
    """The schedule's rate is multiplied by it."""
    until_tokens: int = 0
    """It ends with the global batch by which so many tokens were drawn since the start of the run; 0: not by tokens."""
    until_step: int = 0
    """It ends before this step (from 0), counted by mean batches; 0: not by steps. With neither it does not end."""


def token_bounds(stages: Sequence[Stage], tokens_per_batch: Sequence[float]) -> list[float]:
    """Tokens drawn at which each stage ends; infinity for one that does not.

    `tokens_per_batch` is the mean of each stage. A step becomes the tokens half a batch before it: a batch that holds
    a little less or more than the mean, as the last of an epoch does, does not move the end by a step. Raises
    ConfigError where a stage would end before it begins.
    """
    return [end for end, _ in _ends(stages, tokens_per_batch)]


def stage_steps(stages: Sequence[Stage], tokens_per_batch: Sequence[float]) -> list[float]:
    """Mean batches of each stage; infinity for one that does not end."""
    return [steps for _, steps in _ends(stages, tokens_per_batch)]


def _ends(stages: Sequence[Stage], tokens_per_batch: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Where each stage ends in tokens, and how many mean batches it has; the next one begins after a whole batch."""
    before, tokens, step = 0.0, 0.0, 0.0
    for number, (stage, per_batch) in enumerate(zip(stages, tokens_per_batch, strict=True)):
        end = _end(stage, tokens, step, per_batch)
        if end <= before:
            raise ConfigError(
                f"data.stages.{number} would end at {end:,.0f} tokens, before it begins at {before:,.0f}; give it "
                "a later end, or leave it out"
            )
        steps = max(0, math.ceil((end - tokens) / per_batch)) if end < math.inf else math.inf
        yield end, steps
        before, tokens, step = end, tokens + steps * per_batch, step + steps


def _end(stage: Stage, tokens: float, step: float, per_batch: float) -> float:
    """Where a stage ends that begins at step `step`, after `tokens` tokens."""
    if stage.until_tokens:
        return float(stage.until_tokens)
    if stage.until_step:
        return float(math.floor(tokens + (stage.until_step - step - 0.5) * per_batch))
    return math.inf


def stage_at(bounds: Sequence[float], tokens: int) -> int:
    """Which stage a global batch belongs to at whose start `tokens` tokens were drawn."""
    return min(bisect.bisect_right(bounds, tokens), len(bounds) - 1)


def tokens_per_sample(shares: Sequence[float], predictions_per_sample: Sequence[float]) -> float:
    """Mean tokens of a sample under shares of the tokens: their harmonic mean."""
    total = math.fsum(shares)
    samples = math.fsum(share / mean for share, mean in zip(shares, predictions_per_sample, strict=True))
    return total / samples
