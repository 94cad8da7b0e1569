"""Rotary embedding frequencies and tables.

Place in the flow: `model.rotary` keeps the table on the device and rotates queries and keys by it. Invariant: equal
to `transformers` for the same configuration (same float32 operations in the same order), since the weights were
trained with that very table.

Shapes: D half of the rotated channels of a head (one entry a pair of them), P positions.
"""

from __future__ import annotations

import math

import torch

from cptron.model.architecture import Architecture, LinearScaling, LongRopeScaling, RopeScaling, YarnScaling


def inverse_frequencies(arch: Architecture, *, local: bool = False, long: bool = False) -> torch.Tensor:
    """Inverse frequencies, float32 `[rotated channels / 2]`, on the CPU: theta^(-2i/d) (Su et al. 2021, RoFormer),
    scaled as `arch.rope_scaling` says.

    `local`: those of layers with a window, where they have their own. `long`: LongRope's beyond the original context.
    """
    channels = arch.rotated_channels
    exponents_D = torch.arange(0, channels, 2, dtype=torch.int64).float() / channels
    if local and arch.rope_local_theta is not None:
        return 1.0 / arch.rope_local_theta**exponents_D
    powers_D = arch.rope_theta**exponents_D
    match arch.rope_scaling:
        case RopeScaling() as scaling:
            return _llama3(1.0 / powers_D, scaling)
        case YarnScaling() as scaling:
            return _yarn(powers_D, arch, scaling)
        case LinearScaling() as scaling:
            return 1.0 / powers_D / scaling.linear_factor
        case LongRopeScaling() as scaling:
            return 1.0 / (torch.tensor(scaling.long_factor if long else scaling.short_factor) * powers_D)
        case None:
            return 1.0 / powers_D


def rotary_table(
    arch: Architecture, num_positions: int, *, local: bool = False, long: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions 0, 1, ..., float32 `[P, rotated channels / 2]`, on the CPU.

    Both carry the attention factor of YaRN and LongRope, so that the logits of attention carry its square.
    """
    inv_freq_D = inverse_frequencies(arch, local=local, long=long)
    angles_PD = torch.arange(num_positions).float()[:, None] * inv_freq_D
    scaling = None if local else arch.rope_scaling
    factor = scaling.attention_factor if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0
    return angles_PD.cos() * factor, angles_PD.sin() * factor


def _llama3(inv_freq_D: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """The rule of Llama 3.1 (Grattafiori et al. 2024): long wavelengths are divided by `factor`, short ones kept,
    those between interpolated linearly in original_context / wavelength."""
    context = scaling.original_max_position_embeddings
    wavelength_D = 2 * math.pi / inv_freq_D
    smooth_D = (context / wavelength_D - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    interpolated_D = (1 - smooth_D) * inv_freq_D / scaling.factor + smooth_D * inv_freq_D
    low_D = wavelength_D > context / scaling.low_freq_factor
    high_D = wavelength_D < context / scaling.high_freq_factor
    return torch.where(low_D, inv_freq_D / scaling.factor, torch.where(high_D, inv_freq_D, interpolated_D))


def _yarn(powers_D: torch.Tensor, arch: Architecture, scaling: YarnScaling) -> torch.Tensor:
    """YaRN (Peng et al. 2023, "NTK-by-parts"), with the ramp of its public code.

    Pairs that turn more than `beta_fast` times in the original context are kept, those that turn less than
    `beta_slow` times are divided by `factor`. The ramp between is linear in the number of the pair; in the paper's
    text it is linear in the number of turns.
    """
    low = _pair_turning(scaling.beta_fast, arch, scaling)
    high = _pair_turning(scaling.beta_slow, arch, scaling)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, arch.rotated_channels - 1)
    if low == high:
        high += 0.001  # as in the public code: a step instead of a division by zero
    ramp_D = torch.clamp((torch.arange(len(powers_D), dtype=torch.float32) - low) / (high - low), 0, 1)
    kept_D = 1 - ramp_D
    return 1.0 / (scaling.factor * powers_D) * (1 - kept_D) + 1.0 / powers_D * kept_D


def _pair_turning(turns: float, arch: Architecture, scaling: YarnScaling) -> float:
    """Number, with a fraction, of the pair of channels that turns so often within the original context."""
    context = scaling.original_max_position_embeddings
    ratio = math.log(context / (turns * 2 * math.pi)) / (2 * math.log(arch.rope_theta))
    return arch.rotated_channels * ratio
