"""Rank arithmetic of the tensor, data and pipeline axes.

Place in the flow: between the configuration and the process groups; also used to plan without a cluster. No
torch. Invariant: same rank order as megatron-core's default `tp-cp-ep-dp-pp`: tensor ranks are neighbours,
pipeline ranks far apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Topology:
    """World size cut into tp * dp * pp."""

    world_size: int
    tp: int
    pp: int

    def __post_init__(self) -> None:
        if self.world_size % (self.tp * self.pp):
            raise ConfigError(
                f"world size {self.world_size} must be a multiple of parallel.tp * parallel.pp = {self.tp * self.pp}; "
                f"start such a number of ranks, or lower parallel.tp={self.tp} or parallel.pp={self.pp}"
            )

    @property
    def dp(self) -> int:
        """Data parallel size."""
        return self.world_size // (self.tp * self.pp)

    def tp_rank(self, rank: int) -> int:
        """Position of `rank` on the tensor axis."""
        return rank % self.tp

    def dp_rank(self, rank: int) -> int:
        """Position of `rank` on the data axis."""
        return rank // self.tp % self.dp

    def pp_rank(self, rank: int) -> int:
        """Position of `rank` on the pipeline axis, that is its stage."""
        return rank // (self.tp * self.dp)

    def describe(self) -> str:
        """Short form for logs and file names, such as `tp2_pp1_dp4`."""
        return f"tp{self.tp}_pp{self.pp}_dp{self.dp}"
