"""What holds a model near where it started, between the gradient and the update.

Place in the flow: made by `train.setup`, called by `train.step`. `before_update` works on gradients that are reduced
and ready, before their norm is taken: so the norm that is logged, watched by the guards and clipped is that of the
gradient that the optimizer gets. `after_update` runs inside the optimizer's step, after the masters have moved and
before they are copied to the weights: so bf16 weights follow. Invariant: element by element on this rank's stretches;
nothing of it is state, so a resume needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from cptron.config.schema_regularise import RegulariseConfig
from cptron.data.batch import MicroBatch
from cptron.optim.stretch import KINDS, Stretch, kind_of
from cptron.regularise import pull
from cptron.regularise.freeze import Freezer
from cptron.regularise.projection import Projection, Run
from cptron.regularise.teacher import Teacher
from cptron.runtime.pipeline import LossSums


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where weights started, and what they are worth, by the numbers of their stretches."""

    starts: Sequence[torch.Tensor]
    fishers: Sequence[torch.Tensor] = ()
    """Empty without EWC."""

    def fisher(self, number: int) -> torch.Tensor | None:
        """Of one stretch."""
        return self.fishers[number] if self.fishers else None


@dataclass
class Regulariser:
    """All that the configuration asks for, on one rank."""

    config: RegulariseConfig = field(default_factory=RegulariseConfig)
    stretches: Sequence[Stretch] = ()
    anchor: Anchor | None = None
    """None where nothing is pulled."""
    freezer: Freezer | None = None
    projection: Projection | None = None
    teacher: Teacher | None = None
    tokens_total: int = 0
    """Tokens trained on before this step."""

    def __post_init__(self) -> None:
        if self.anchor is None and self.freezer is None:
            return
        for inner in {id(stretch.inner): stretch.inner for stretch in self.stretches}.values():
            inner.register_step_post_hook(lambda *_: self.after_update())

    def at(self, tokens_total: int) -> Regulariser:
        """Itself, at a step that comes after so many tokens."""
        self.tokens_total = tokens_total
        return self

    def forward_backward(self, run: Run, optimizer: Any, batches: Sequence[MicroBatch]) -> LossSums:
        """Leave the step's gradients, reduced, in the buffers, by calls of `run`; returns the losses."""
        teacher = self.teacher

        def asked(part: Sequence[MicroBatch]) -> LossSums:
            return run(part if teacher is None else teacher.attach(part))

        if self.projection is None:
            return asked(batches)
        return self.projection.forward_backward(asked, optimizer, batches, self._stop_gradients)

    def before_update(self) -> None:
        """Change the gradients that are ready, before their norm is taken."""
        self._stop_gradients()
        if self.projection is not None:
            self.projection.project()
        config = self.config
        if self.anchor is not None and config.ewc and config.ewc_form == "gradient":
            for number, stretch in enumerate(self.stretches):
                if stretch.main.grad is not None:
                    start, fisher = self.anchor.starts[number], self.anchor.fishers[number]
                    pull.add_gradient(stretch.main, start, fisher, config.ewc)
        self._stop_gradients()  # rows may have been pulled, too
        if self.freezer is not None:
            self.freezer.keep(self.tokens_total)

    def _stop_gradients(self) -> None:
        if self.freezer is not None:
            self.freezer.stop_gradients(self.tokens_total)

    def after_update(self) -> None:
        """Change the masters that have just moved."""
        if self.anchor is not None:
            self._pull_masters(self.anchor)
        if self.freezer is not None:
            self.freezer.put_back()

    def _pull_masters(self, anchor: Anchor) -> None:
        config = self.config
        for number, stretch in enumerate(self.stretches):
            if stretch.main.grad is None:
                continue
            start, rate = anchor.starts[number], stretch.group["lr"]
            if config.l2sp:
                pull.decay(stretch.main, start, rate, config.l2sp)
            if config.ewc and config.ewc_form == "proximal":
                pull.proximal(stretch.main, start, anchor.fishers[number], rate, config.ewc)

    def measures(self, device: torch.device) -> dict[str, float]:
        """`drift/KIND`, the L2 distance from the start by kind of parameter, the penalties, and what the projection
        did; collective where weights are pulled (one small sum), so to be asked for when it is logged."""
        found = {} if self.projection is None else self.projection.measures()
        return found if self.anchor is None else {**found, **self._drift(self.anchor, device)}

    def _drift(self, anchor: Anchor, device: torch.device) -> dict[str, float]:
        sums_K3 = torch.zeros(len(KINDS), 3, dtype=torch.float64, device=device)
        for number, stretch in enumerate(self.stretches):
            if stretch.counts:
                row = sums_K3[KINDS.index(kind_of(stretch.name))]
                start, fisher = anchor.starts[number], anchor.fisher(number)
                row[:2] += torch.stack(pull.squares(stretch.main, start, fisher))
                row[2] += stretch.main.numel()
        dist.all_reduce(sums_K3)
        plain_K, weighted_K, count_K = sums_K3.cpu().unbind(1)
        drifts = zip(KINDS, plain_K.sqrt().tolist(), count_K.tolist(), strict=True)
        found = {f"drift/{kind}": drift for kind, drift, count in drifts if count}
        found["drift/all"] = float(plain_K.sum().sqrt())
        if self.config.l2sp:
            found["penalty/l2sp"] = 0.5 * self.config.l2sp * float(plain_K.sum())
        if self.config.ewc:
            found["penalty/ewc"] = 0.5 * self.config.ewc * float(weighted_K.sum())
        return found


NOTHING = Regulariser()
"""Asks for nothing and does nothing."""
