"""Gradient projection on replay data (A-GEM), experimental.

Place in the flow: `regulariser` runs a step's batches through it. The replay rows of the global batch give a reference
gradient r, the other rows the gradient g. Where g would raise the loss on replay data (g.r < 0) the part that does is
taken away:

    g <- g - (g.r / r.r) r            (Chaudhry et al. 2019)

Invariant: afterwards g.r >= 0 to rounding, and g is untouched where it was; every sequence counts in the ledger and is
computed once, as without it, but for rows that fill micro-batches up.

Shapes: B sequences of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from cptron.data.batch import MicroBatch
from cptron.optim.stretch import Stretch
from cptron.runtime.pipeline import LossSums, blank

Run = Callable[[Sequence[MicroBatch]], LossSums]
"""Zeroes the gradients, runs forward and backward, reduces."""


class Projection:
    """On one rank; 4 bytes more for each weight that the rank updates."""

    def __init__(self, stretches: Sequence[Stretch], is_replay: Sequence[bool], device: torch.device) -> None:
        """`is_replay` by source."""
        self._device = device
        self._stretches = stretches
        self._is_replay = np.array(is_replay)
        self._reference: list[torch.Tensor | None] = []
        self._dots = torch.zeros(3, dtype=torch.float64)

    def forward_backward(
        self, run: Run, optimizer: Any, batches: Sequence[MicroBatch], stop: Callable[[], None]
    ) -> LossSums:
        """Losses of all batches; afterwards the gradient buffers hold g, and r is remembered, as far as `stop` leaves
        it: it takes gradients away from what stands still, which must not count in r.r either."""
        replay, rest = split_rows(batches, self._is_replay)
        sums = run(replay)
        optimizer.prepare_grads()
        stop()
        self._reference = [
            None if stretch.main.grad is None else stretch.main.grad.clone() for stretch in self._stretches
        ]
        return sums + run(rest)

    @torch.no_grad()
    def project(self) -> None:
        """Change the gradients that are ready; collective, three numbers."""
        pairs = [
            (stretch, stretch.main.grad, reference)
            for stretch, reference in zip(self._stretches, self._reference, strict=True)
            if stretch.main.grad is not None and reference is not None
        ]
        dots = torch.zeros(3, dtype=torch.float64, device=self._device)
        for stretch, grad, reference in pairs:
            if stretch.counts:
                for place, (one, other) in enumerate(
                    ((grad, reference), (reference, reference), (grad, grad))
                ):
                    dots[place] += (one * other).sum(dtype=torch.float64)
        dist.all_reduce(dots)
        self._dots = dots.cpu()
        along, squared, _ = self._dots.tolist()
        if along < 0 < squared:
            for _, grad, reference in pairs:
                grad.add_(reference, alpha=-along / squared)
        self._reference = []

    def measures(self) -> dict[str, float]:
        """Of the last step: the cosine of g and r, and whether g was changed."""
        along, squared, own = self._dots.tolist()
        lengths = (squared * own) ** 0.5
        return {
            "agem/cosine": along / lengths if lengths else 0.0,
            "agem/projected": float(along < 0 < squared),
        }


def split_rows(
    batches: Sequence[MicroBatch], is_replay: npt.NDArray[np.bool_]
) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """The rows of replay sources and the others, in micro-batches of the same size, which blank rows fill up: at least
    one of each."""
    replay_B = np.concatenate([is_replay[batch.source_B] for batch in batches])
    names = MicroBatch._fields
    whole = batches[0]._replace(
        **{name: _joined([getattr(batch, name) for batch in batches]) for name in names}
    )
    rows = len(batches[0].source_B)
    return _regroup(whole, np.flatnonzero(replay_B), rows), _regroup(whole, np.flatnonzero(~replay_B), rows)


def _joined(fields: list[Any]) -> Any:
    return np.concatenate(fields) if isinstance(fields[0], np.ndarray) else fields[0]


def _regroup(whole: MicroBatch, chosen: npt.NDArray[np.int64], rows: int) -> list[MicroBatch]:
    found = []
    for start in range(0, max(len(chosen), 1), rows):
        places = chosen[start : start + rows]
        filler = np.zeros(rows - len(places), np.int64)
        batch = _picked(whole, np.concatenate([places, filler]))
        mask = blank(batch).loss_mask_BS
        mask[: len(places)] = batch.loss_mask_BS[: len(places)]
        found.append(batch._replace(loss_mask_BS=mask))
    return found


def _picked(whole: MicroBatch, places: npt.NDArray[np.int64]) -> MicroBatch:
    arrays: dict[str, Any] = {
        name: field[places] for name, field in whole._asdict().items() if isinstance(field, np.ndarray)
    }
    return whole._replace(**arrays)
