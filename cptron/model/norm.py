"""RMSNorm as a megatron-core submodule, on torch's fused kernel.

Place in the flow: part of the native layer spec. Invariant: the weight carries `sequence_parallel`, so that
its gradient is summed over tensor ranks when they hold different parts of the sequence.
"""

from __future__ import annotations

from typing import Any

import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
