"""Rotary embedding frequencies.

Place in the flow: `model.build` puts the table into megatron-core's rotary module. Invariant: equal to
`transformers` for the same configuration, since the weights were trained with that very table.
"""

from __future__ import annotations

import math

import torch

from cptron.model.architecture import Architecture


def inverse_frequencies(arch: Architecture) -> torch.Tensor:
    """Inverse frequencies, float32 `[head_dim / 2]`, on the CPU.

    Plain: theta^(-2i/d) (Su et al. 2021, RoFormer). With `rope_scaling`: the Llama-3.1 rule; long
    wavelengths are divided by `factor`, short ones kept, those between interpolated linearly in
    original_context / wavelength.
    """
    exponents_D = torch.arange(0, arch.head_dim, 2, dtype=torch.int64).float() / arch.head_dim
    inv_freq_D = 1.0 / (arch.rope_theta**exponents_D)
    scaling = arch.rope_scaling
    if scaling is None:
        return inv_freq_D
    context = scaling.original_max_position_embeddings
    wavelength_D = 2 * math.pi / inv_freq_D
    smooth_D = (context / wavelength_D - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    interpolated_D = (1 - smooth_D) * inv_freq_D / scaling.factor + smooth_D * inv_freq_D
    low_D = wavelength_D > context / scaling.low_freq_factor
    high_D = wavelength_D < context / scaling.high_freq_factor
    return torch.where(low_D, inv_freq_D / scaling.factor, torch.where(high_D, inv_freq_D, interpolated_D))
