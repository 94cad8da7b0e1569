"""Choices about what holds the model near its start: regularisers where there are no old data, and freezing.

Place in the flow: called by `advice`. Invariant: pure; no regulariser is chosen where replay can be had.
"""

from __future__ import annotations

from dataclasses import replace

from cptron.advise.choice import Choice
from cptron.advise.facts import Facts

L2SP = 1.0


def keep_choices(facts: Facts) -> list[Choice]:
    """Decay to the start without old data; nothing frozen."""
    if pulled_to_start(facts):
        return [_nothing_frozen(), _decay_to_start()]
    if not facts.replay and not facts.chat:
        return [
            replace(
                _nothing_frozen(),
                unknown="whether decay to the start (`regularise.l2sp`) would help, as there are no old data: "
                "it needs a checkpoint, which `cptron convert` makes of the model",
            )
        ]
    return [_nothing_frozen()]


def pulled_to_start(facts: Facts) -> bool:
    """There are no old data, and a checkpoint to be held to."""
    return not facts.replay and not facts.chat and facts.base.kind == "checkpoint"


def _nothing_frozen() -> Choice:
    return Choice(
        sets={"optim.frozen": ()},
        why="All parameters are trained: freezing costs what is learned and was reported not to prevent "
        "forgetting.",
        evidence=("freezing", "tiny-freezing"),
    )


def _decay_to_start() -> Choice:
    return Choice(
        sets={"regularise.l2sp": L2SP, "optim.weight_decay": 0.0},
        why="There are no old data, so weights decay towards those of the base instead of to 0. It does far "
        "less than a little replay. After training, `cptron merge-weights` interpolates between the base and "
        "the model for nothing, which did better.",
        evidence=("tiny-regularisers", "tiny-replay"),
        unknown="the strength: 0.1, 1 and 10 in short runs",
    )
