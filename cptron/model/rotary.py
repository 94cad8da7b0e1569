"""Rotary embedding applied: the table kept on the device, and the rotation of queries and keys.

Place in the flow: `model.build` keeps one table a model chunk; attention of either backend rotates. Invariant: the
same arithmetic as `transformers`, so that fp32 results agree to the last bit where sums are added in one order.

Shapes: S tokens of a row on this rank, B rows, N heads, D head size, P positions.
"""

from __future__ import annotations

import torch

from cptron.model.architecture import Architecture, LongRopeScaling
from cptron.model.fused import fused
from cptron.model.rope import rotary_table


class RotaryTable:
    """Cosines and sines by position, made as far as they are needed; `local`: those of layers with a window."""

    def __init__(self, arch: Architecture, dtype: torch.dtype, *, local: bool = False) -> None:
        self._arch = arch
        self._dtype = torch.float32 if arch.rotation_in_fp32 else dtype
        self._local = local
        scaling = None if local else arch.rope_scaling
        self.original_context = (
            scaling.original_max_position_embeddings if isinstance(scaling, LongRopeScaling) else None
        )
        """Where positions are counted over more tokens than this, their rows follow those of the others."""
        self._cos_PD = self._sin_PD = torch.empty(0)
        self._num_positions = 0

    def at(
        self,
        positions_BS: torch.Tensor,
        num_positions: int,
        device: torch.device,
        long_BS: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[S, B, 1, D / 2]` of `positions_BS`, all below `num_positions`; B is 1 where all rows
        stand at the same positions. `long_BS`: which of them are counted over more than `original_context`."""
        if self._num_positions < num_positions:
            self._make(num_positions, device)
        assert (long_BS is None) == (self.original_context is None)
        if long_BS is not None:
            positions_BS = positions_BS + long_BS * self._num_positions
        positions_SB = positions_BS.t()
        return self._cos_PD[positions_SB].unsqueeze(2), self._sin_PD[positions_SB].unsqueeze(2)

    def _make(self, num_positions: int, device: torch.device) -> None:
        kinds = (False,) if self.original_context is None else (False, True)
        tables = [rotary_table(self._arch, num_positions, local=self._local, long=long) for long in kinds]
        self._cos_PD, self._sin_PD = (
            torch.cat(parts).to(device, self._dtype) for parts in zip(*tables, strict=True)
        )
        self._num_positions = num_positions


@fused
def rotate(x_SBND: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + R / 2) of each head's first R channels, as many as the table is for, by its position's
    angle (Su et al. 2021)."""
    half = cos.size(-1)
    first, second, kept = x_SBND.split((half, half, x_SBND.size(-1) - 2 * half), dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*(part.to(x_SBND.dtype) for part in turned), kept), dim=-1)
