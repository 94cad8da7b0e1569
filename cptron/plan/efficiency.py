"""How much of a GPU's peak the engine is expected to reach: assumptions, or a fit to a real log.

Place in the flow: `step_time` multiplies with it. Invariant: every number says whether it was measured; nothing of
this project has been measured on GPUs, so the defaults are wide.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """Part of the peak that large matrix products reach, all else (messages, bubbles, pointwise work) counted apart."""

    low: float
    expected: float
    high: float
    memory_factor: float = 1.0
    """Measured / predicted bytes that torch allocated."""
    source: str
    """Where it is from."""
    is_measured: bool = False

    def cases(self) -> tuple[tuple[float, float], ...]:
        """(part of the peak, factor on all messages' time): expected, fastest, slowest."""
        return (self.expected, 1.0), (self.high, 1 / MESSAGES_UNCERTAIN), (self.low, MESSAGES_UNCERTAIN)


MESSAGES_UNCERTAIN = 1.5
"""Factor by which the time of messages may be wrong, either way."""

BF16 = Efficiency(
    low=0.35,
    expected=0.58,
    high=0.72,
    source="assumed: between torchtitan's and NVIDIA's published H100 rows, 30 to 53 % of the peak; cptron was not "
    "measured on GPUs",
)
FP8 = Efficiency(
    low=0.28,
    expected=0.46,
    high=0.70,
    source="assumed: between torchtitan's and NVIDIA's published H100 FP8 rows; cptron was not measured on GPUs",
)


def assumed(*, fp8: bool) -> Efficiency:
    """The default for matrix products of the layers in bf16 or FP8."""
    return FP8 if fp8 else BF16
