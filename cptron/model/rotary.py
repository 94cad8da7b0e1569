"""Rotary embedding applied: the table kept on the device, and the rotation of queries and keys.

Place in the flow: `model.build` keeps one table a model chunk; attention of either backend rotates. Invariant: the
same arithmetic as `transformers`, so that fp32 results agree to the last bit where sums are added in one order.

Shapes: S tokens of a row on this rank, B rows, N heads, D head size, P positions.
"""

from __future__ import annotations

import torch

from cptron.model.architecture import Architecture
from cptron.model.fused import fused
from cptron.model.rope import rotary_table


class RotaryTable:
    """Cosines and sines by position, made as far as they are needed."""

    def __init__(self, arch: Architecture, dtype: torch.dtype) -> None:
        self._arch = arch
        self._dtype = dtype
        self._cos_PD = self._sin_PD = torch.empty(0)

    def at(
        self, positions_BS: torch.Tensor, num_positions: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `[S, B, 1, D / 2]` of `positions_BS`, all below `num_positions`; B is 1 where all rows
        stand at the same positions."""
        if len(self._cos_PD) < num_positions:
            cos_PD, sin_PD = rotary_table(self._arch, num_positions)
            self._cos_PD = cos_PD.to(device, self._dtype)
            self._sin_PD = sin_PD.to(device, self._dtype)
        positions_SB = positions_BS.t()
        return self._cos_PD[positions_SB].unsqueeze(2), self._sin_PD[positions_SB].unsqueeze(2)


@fused
def rotate(x_SBND: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + D / 2) of each head by its position's angle (Su et al. 2021)."""
    first, second = x_SBND.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
