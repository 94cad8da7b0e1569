"""What a run comes to: days, GPU-hours, money, energy, each with how far it may be off.

Place in the flow: made of an estimate, shown by `main`. Invariant: a range covers the range of everything that goes
into it; evaluations, saves, restarts and waiting in a queue are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster
from cptron.plan.efficiency import Efficiency
from cptron.plan.search import Estimate, seconds_per_token, tokens_per_step
from cptron.plan.step_time import computed_per_token, flops_per_token

DRAW = (0.6, 0.8, 1.0)
"""Part of a server's greatest power that it draws while training: lowest, expected, highest. Assumed."""
OVERHEAD = (1.1, 1.3, 1.6)
"""Power of the building over that of the servers (PUE), likewise."""


@dataclass(frozen=True, slots=True)
class Range:
    """A predicted number."""

    expected: float
    low: float
    high: float

    def times(self, factor: float) -> Range:
        """All three multiplied."""
        return Range(self.expected * factor, self.low * factor, self.high * factor)

    def inverse(self, of: float = 1.0) -> Range:
        """`of` / this."""
        return Range(of / self.expected, of / self.high, of / self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Predictions for a whole run."""

    steps: int
    tokens: int
    tokens_per_s_per_gpu: Range
    mfu_causal: Range
    """Model FLOPs with causal attention, over the peak."""
    mfu_full: Range
    """The same with the full square of scores, as PaLM and Megatron-LM before 25.09 count: more for the same speed."""
    hfu_causal: Range
    """With what is recomputed: what the hardware computes."""
    peak_tflop_per_s: float
    """What these are parts of."""
    days: Range
    gpu_hours: Range
    usd: Range
    kwh: Range


def totals(
    estimate: Estimate,
    arch: Architecture,
    cluster: Cluster,
    efficiency: Efficiency,
) -> Totals:
    """The run of an estimate."""
    config = estimate.config
    tokens = config.train.steps * tokens_per_step(config)
    expected, fastest, slowest = (
        seconds_per_token(config, arch, cluster, *case) for case in efficiency.cases()
    )
    seconds = Range(expected, fastest, slowest).times(tokens)
    gpu_hours = seconds.times(cluster.num_gpus / 3600)
    speed = seconds.inverse(tokens / cluster.num_gpus)
    peak = cluster.gpu.peak(config.train.precision, fp8=config.fp8.recipe != "none")
    low, high = cluster.gpu.usd_per_hour
    return Totals(
        steps=config.train.steps,
        tokens=tokens,
        tokens_per_s_per_gpu=speed,
        mfu_causal=speed.times(flops_per_token(config, arch) / peak),
        mfu_full=speed.times(flops_per_token(config, arch, causal=False) / peak),
        hfu_causal=speed.times(computed_per_token(config, arch) / peak),
        peak_tflop_per_s=peak / 1e12,
        days=seconds.times(1 / 86400),
        gpu_hours=gpu_hours,
        usd=Range(gpu_hours.expected * (low + high) / 2, gpu_hours.low * low, gpu_hours.high * high),
        kwh=_energy(gpu_hours, cluster),
    )


def _energy(gpu_hours: Range, cluster: Cluster) -> Range:
    kw = cluster.gpu.server_w / 1000
    low, expected, high = (kw * draw * over for draw, over in zip(DRAW, OVERHEAD, strict=True))
    return Range(gpu_hours.expected * expected, gpu_hours.low * low, gpu_hours.high * high)
