"""Rank arithmetic of the tensor, context, data and pipeline axes.

Place in the flow: between the configuration and the process groups; also used to plan without a cluster. No
torch. Invariant: same rank order as megatron-core's default `tp-cp-ep-dp-pp`: tensor ranks are neighbours,
pipeline ranks far apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.config.schema import ParallelConfig
from cptron.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How one copy of the model and its sequences are cut; what is left of the world is data parallel."""

    tp: int = 1
    cp: int = 1
    pp: int = 1
    sequence_parallel: bool = False
    """Means nothing at tp 1, and is then False, so that equal layouts are equal."""
    virtual_stages: int = 1
    first_stage_layers: int = 0
    last_stage_layers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sequence_parallel", self.sequence_parallel and self.tp > 1)

    @classmethod
    def of(cls, parallel: ParallelConfig) -> Layout:
        """The layout of a run."""
        return cls(
            tp=parallel.tp,
            cp=parallel.cp,
            pp=parallel.pp,
            sequence_parallel=parallel.sequence_parallel,
            virtual_stages=parallel.virtual_stages,
            first_stage_layers=parallel.first_stage_layers,
            last_stage_layers=parallel.last_stage_layers,
        )

    @property
    def ranks(self) -> int:
        """Ranks that hold one copy of the model and work on the same samples."""
        return self.tp * self.cp * self.pp

    @property
    def sequence_unit(self) -> int:
        """A sequence's length must be a multiple of this: two chunks for each context rank, cut over tensor ranks."""
        chunks = 2 * self.cp if self.cp > 1 else 1
        return chunks * (self.tp if self.sequence_parallel else 1)

    def describe(self) -> str:
        """Short form for logs and file names, such as `tp2_sp_pp2_vp2`."""
        parts = [f"tp{self.tp}"]
        parts += ["sp"] if self.sequence_parallel else []
        parts += [f"cp{self.cp}"] if self.cp > 1 else []
        parts += [f"pp{self.pp}"]
        parts += [f"vp{self.virtual_stages}"] if self.virtual_stages > 1 else []
        uneven = self.first_stage_layers or self.last_stage_layers
        return "_".join([*parts, f"l{self.first_stage_layers}-{self.last_stage_layers}"] if uneven else parts)


@dataclass(frozen=True, slots=True)
class Topology:
    """World size cut into tp * cp * dp * pp."""

    world_size: int
    layout: Layout

    def __post_init__(self) -> None:
        if self.world_size % self.layout.ranks:
            raise ConfigError(
                f"world size {self.world_size} must be a multiple of parallel.tp * parallel.cp * parallel.pp = "
                f"{self.layout.ranks}; start such a number of ranks, or lower parallel.tp={self.layout.tp}, "
                f"parallel.cp={self.layout.cp} or parallel.pp={self.layout.pp}"
            )

    @property
    def dp(self) -> int:
        """Data parallel size."""
        return self.world_size // self.layout.ranks

    def tp_rank(self, rank: int) -> int:
        """Position of `rank` on the tensor axis."""
        return rank % self.layout.tp

    def cp_rank(self, rank: int) -> int:
        """Position of `rank` on the context axis."""
        return rank // self.layout.tp % self.layout.cp

    def dp_rank(self, rank: int) -> int:
        """Position of `rank` on the data axis."""
        return rank // (self.layout.tp * self.layout.cp) % self.dp

    def pp_rank(self, rank: int) -> int:
        """Position of `rank` on the pipeline axis, that is its stage."""
        return rank // (self.layout.tp * self.layout.cp * self.dp)

    def place(self, rank: int) -> str:
        """Where `rank` stands, for people: `tp 1, pp 0, dp 3`."""
        cp = f"cp {self.cp_rank(rank)}, " if self.layout.cp > 1 else ""
        return f"tp {self.tp_rank(rank)}, {cp}pp {self.pp_rank(rank)}, dp {self.dp_rank(rank)}"

    def describe(self) -> str:
        """Short form for logs and file names, such as `tp2_pp1_dp4`."""
        return f"{self.layout.describe()}_dp{self.dp}"
