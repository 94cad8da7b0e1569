"""Sections of the configuration that hold a model near its starting weights, or parts of it still.

Place in the flow: part of `schema`. Invariant: as there, plain values and no I/O; every default is off
and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezeConfig:
    """Parameters, or rows of a vocabulary matrix, that stand still until so many tokens were trained on."""

    match: str
    """Regular expression, searched in parameter names, as `word_embeddings|output_layer` or `layers\\.[0-3]\\.`."""
    until_tokens: int
    """They stand still while `tokens_total` is below this."""
    rows_below: int = 0
    """Only rows with a token id below this stand still (embedding and output matrix); 0 means all of the parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """On sequences of replay sources: keep the next-token probabilities of the model as it started."""

    weight: float = 0.0
    """Nats of divergence KL(start, model) count this much beside nats of loss; 0 is off."""
    teacher: Literal["live", "cached"] = "live"
    """`live`: the starting weights are in memory once more, for a forward pass of the replay sequences in each step.
    `cached`: read what `cptron teach` wrote beside the replay sources' token files."""
    top_k: int = 32
    """The teacher's most likely tokens that are compared one by one; all others count as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegulariseConfig:
    """Holds the model near where it started; where there are old data, replay does more ([page](regularisers.md))."""

    base: str = ""
    """Checkpoint with the starting weights that all keys here mean; empty is `start.checkpoint`. A run of `start.mode:
    branch`, whose `start.checkpoint` is in the middle of another run, must name it."""

    l2sp: float = 0.0
    """L2-SP: weights decay towards the starting weights instead of to 0, by the rate times this; 0 is off."""
    ewc: float = 0.0
    """EWC: the same, each weight by its Fisher information, which `regularise.fisher` holds; 0 is off."""
    ewc_form: Literal["gradient", "proximal"] = "gradient"
    """`gradient`: the penalty's gradient is added before clipping, as published; AdamW scales it away where gradients
    are large. `proximal`: a step of its own after the optimizer's, stable at any strength."""
    fisher: str = ""
    """Directory that `cptron fisher` made of the starting weights."""
    anchor_precision: Literal["train", "bf16"] = "train"
    """How the starting weights are kept: `train` loses nothing of what the run started with (2 or 4 bytes for each
    weight that a rank updates), `bf16` rounds them."""
    fisher_precision: Literal["fp32", "bf16"] = "fp32"
    """How the Fisher information is kept: 4 or 2 bytes for each weight that a rank updates."""
    agem: bool = False
    """Experimental. A-GEM: sources of role `replay` are not trained on; where a step would raise their loss, the part
    of the gradient that does is taken away. Costs 4 bytes for each weight that a rank updates, and no further pass."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Distillation from the starting weights on replay sequences; a section of its own, below."""

    @property
    def pulls(self) -> bool:
        """Weights are held near where they started."""
        return bool(self.l2sp or self.ewc)

    @property
    def needs_base(self) -> bool:
        """The starting weights are read at every start, also at a resume."""
        return bool(self.pulls or (self.distill.weight and self.distill.teacher == "live"))

    @property
    def knows_base(self) -> bool:
        """What is done depends on which weights the starting ones are."""
        return bool(self.pulls or self.distill.weight)
