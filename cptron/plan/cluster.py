"""The machines that a plan is for: GPUs, how many, how many in a node, and what joins the nodes.

Place in the flow: made by `main` of its arguments. Invariant: bandwidths are of one GPU in one direction, so that
whatever a formula divides by them is what one GPU sends.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.errors import ConfigError, either
from cptron.plan.gpus import Gpu

INTERCONNECTS = {
    "ndr400": (400, "gpu", "InfiniBand NDR, an adapter of 400 Gbit/s a GPU, as in DGX H100"),
    "hdr200": (200, "gpu", "InfiniBand HDR, an adapter of 200 Gbit/s a GPU, as in DGX A100"),
    "efa3200": (3200, "node", "AWS EFA, 3200 Gbit/s a node, as in p5"),
    "efa400": (400, "node", "AWS EFA, 400 Gbit/s a node, as in p4d"),
    "roce100": (100, "gpu", "RoCE, 100 Gbit/s a GPU"),
    "eth100": (100, "node", "Ethernet, 100 Gbit/s a node"),
    "eth25": (25, "node", "Ethernet, 25 Gbit/s a node"),
}
"""Name -> (Gbit/s in one direction, of a GPU or of a node, what it is)."""

LINK_REACHED = 0.75
"""Part of a link's bandwidth that collectives within a node reach: assumed, after NCCL's bus bandwidths."""
NETWORK_REACHED = 0.8
"""The same between nodes: assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What a plan may use."""

    gpu: Gpu
    num_gpus: int
    gpus_per_node: int = 8
    network_gb_per_s: float = 50.0
    """Of one GPU, in one direction, to GPUs of other nodes."""

    def __post_init__(self) -> None:
        if self.num_gpus < 1 or self.gpus_per_node < 1:
            raise ConfigError(
                f"--gpus {self.num_gpus} and --gpus-per-node {self.gpus_per_node} must be at least 1; use e.g. 64 and 8"
            )
        if self.num_gpus > self.gpus_per_node and self.num_gpus % self.gpus_per_node:
            raise ConfigError(
                f"--gpus {self.num_gpus} must be whole nodes of --gpus-per-node {self.gpus_per_node}; "
                f"use {self.num_gpus // self.gpus_per_node * self.gpus_per_node}"
            )

    @property
    def num_nodes(self) -> int:
        """Nodes, the last of which may be shared with others where there is one only."""
        return -(-self.num_gpus // self.gpus_per_node)

    def bytes_per_s(self, ranks_spanned: int) -> float:
        """What one GPU sends a second to a group that spans so many neighbouring ranks."""
        if ranks_spanned <= self.gpus_per_node:
            return self.gpu.link_gb_per_s * 1e9 * LINK_REACHED
        return self.network_gb_per_s * 1e9 * NETWORK_REACHED


def network_of(interconnect: str, gpus_per_node: int) -> float:
    """GB/s of one GPU for the name of an interconnect, or for a number in Gbit/s a GPU. Raises `ConfigError`."""
    if interconnect in INTERCONNECTS:
        gbit_per_s, of, _ = INTERCONNECTS[interconnect]
        return gbit_per_s / 8 / (gpus_per_node if of == "node" else 1)
    try:
        found = float(interconnect)
    except ValueError:
        found = -1.0
    if not 0 < found < 1e6:
        raise ConfigError(
            f"--interconnect {interconnect} is not known; use {either(list(INTERCONNECTS))}, or Gbit/s a GPU"
        )
    return found / 8
