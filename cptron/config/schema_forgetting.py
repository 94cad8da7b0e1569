"""Section of the configuration about forgetting: what is measured, and what is done about it.

Place in the flow: part of `schema`. Invariant: as there, plain values and no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgettingConfig:
    """The [forgetting monitor](forgetting.md): in force where a validation set has a suite, or a probe is on."""

    action: Literal["alert", "raise_replay", "lower_lr", "rollback", "stop_and_keep_best"] = "alert"
    """What an alarm does. `alert`: says so. `raise_replay`: doubles the shares of sources with role `replay`, up to
    half of the tokens. `lower_lr`: halves the learning rate. `rollback`: goes back to before it, and does one of these
    two. `stop_and_keep_best`: saves and ends the run, and marks its best checkpoint."""
    epsilon_nats: float = 0.05
    """Change of the loss on the `old` sets, in nats per token, that is no alarm; the lower end of its interval has to
    be beyond it."""
    patience: int = 2
    """Evaluations in a row beyond `epsilon_nats` until there is an alarm."""
    grace_tokens: int = 0
    """Trained tokens, since the run or branch began, before which nothing is decided, since the loss on old data
    overshoots at first; 0: the larger of what is left of the warm-up and 2 % of the steps to come."""
    max_actions: int = 4
    """After so many actions alarms only alert."""
    confidence: float = 0.95
    """Of the intervals."""
    resamples: int = 1000
    """Draws of the bootstrap that makes them; its seed is `run.seed`."""
    base: str = ""
    """What changes are counted from. Empty: what the starting checkpoint carries, if it does for all sets, else this
    run's step 0. `step0`: that in any case. Or a run or checkpoint that has a base."""
    control: str = ""
    """Run directory of a control run, as one on old data alone: changes are also counted from its evaluations at the
    same number of tokens (within 1 %)."""
    gap_nats: float = 0.1
    """Overfitting alarm: the `new` sets' loss minus the training loss of sources with role `new` is so much above its
    lowest since the grace window, for `patience` evaluations in a row; 0 is off."""
    repetition_epochs: float = 4.0
    """Repetition alarm: a source has been seen so often; also while it repeats, when its loss in training falls and
    that of the validation set of its name does not. 0 is off."""
    induction_sequences: int = 0
    """Probe `induction`: so many sequences of random tokens, each twice in a row; shown is the loss on the second half
    minus that on the first. 0 is off."""
    mapping_sequences: int = 0
    """Probe `mapping`: so many sequences of pairs from a random table; shown is the loss on answers that the sequence
    has given before minus that on the others. 0 is off."""
    mapping_pairs: int = 8
    """Pairs in the table of the probe `mapping`."""
    probe_tokens: int = 128
    """Length of a probe's sequence; at most what the model has positions for."""
