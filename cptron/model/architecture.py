"""The shape of a model, independent of any framework.

Place in the flow: read from a Hugging Face `config.json` by a family, stored in every checkpoint, used to
build the megatron-core model, to plan and to export. Invariant: two models with equal `Architecture` have
the same parameters and compute the same function of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cptron.typed import require_types


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama-3 rotary frequency scaling (Hugging Face `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnScaling:
    """YaRN rotary frequency scaling (Peng et al. 2023; Hugging Face `rope_type: yarn`)."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    """Multiplies cosines and sines; always a number, also where the Hugging Face config leaves it to a rule."""
    beta_fast: float = 32.0
    """Pairs of channels that turn more often than this in the original context are not scaled."""
    beta_slow: float = 1.0
    """Pairs that turn less often than this are scaled by the whole factor."""
    truncate: bool = True
    """Whether the ramp between the two begins and ends at whole numbers of pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearScaling:
    """All rotary frequencies divided by one number (Chen et al. 2023; Hugging Face `rope_type: linear`)."""

    linear_factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LongRopeScaling:
    """A divisor for each rotary frequency (Ding et al. 2024; Hugging Face `rope_type: longrope`)."""

    short_factor: tuple[float, ...]
    """Divisors where positions are counted over at most `original_max_position_embeddings` tokens."""
    long_factor: tuple[float, ...]
    """Divisors where they are counted over more."""
    original_max_position_embeddings: int
    attention_factor: float
    """Multiplies cosines and sines of both; always a number, also where the config leaves it to a rule."""


MOST = {
    "num_layers": 10_000,
    **dict.fromkeys(
        ("hidden_size", "ffn_hidden_size", "head_dim", "num_attention_heads", "num_kv_heads"), 2**24
    ),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 2**31 - 1),
}
"""Far beyond any model; what a damaged file says beyond it would only fill a memory."""

Scaling = RopeScaling | YarnScaling | LinearScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A decoder-only transformer: RMSNorm, gated MLP, rotary embedding, grouped-query attention. The defaults are
    those of Llama. Layers are numbered from 0."""

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Scaling | None = None
    tied_embeddings: bool = False
    qkv_bias: bool = False
    """Queries, keys and values have a bias."""
    qk_norm: Literal["none", "head", "projection"] = "none"
    """RMSNorm of queries and keys before their rotation: of each head, or of all heads together."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """Norms before attention and MLP, of their outputs before these are added to the residual, or both."""
    zero_centered_norm: bool = False
    """Norms multiply by 1 + weight."""
    embedding_scale: float | None = None
    """Multiplies embeddings, rounded to the dtype of the weights."""
    attention_scale: float | None = None
    """Multiplies the scores of attention; None: 1 / sqrt(head_dim)."""
    sliding_window: int | None = None
    """In `windowed_layers` a token sees itself and the `sliding_window - 1` tokens before it."""
    windowed_layers: tuple[int, ...] = ()
    unrotated_layers: tuple[int, ...] = ()
    """Layers whose queries and keys are not rotated."""
    rope_local_theta: float | None = None
    """Base of the rotary embedding of `windowed_layers`, which is not scaled; None: that of the others."""
    rotary_dim: int | None = None
    """Channels of a head that are rotated, the first ones; None: all."""
    rotation_in_fp32: bool = False
    """Cosines and sines are not rounded to the dtype of the weights."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError on what no model has."""
        require_types(self)
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, must be from 1 to {most}")

    @property
    def rotated_channels(self) -> int:
        """Channels of a head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    def window_of(self, layer: int) -> int | None:
        """Tokens that a token of this layer sees at most, itself included; None: all of its document."""
        return self.sliding_window if layer in self.windowed_layers else None

    def rotary_of(self, layer: int) -> Literal["global", "local", "none"]:
        """Which rotary table turns queries and keys of this layer."""
        if layer in self.unrotated_layers:
            return "none"
        return "local" if self.rope_local_theta is not None and layer in self.windowed_layers else "global"

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; `from_dict` inverts it."""
        return asdict(self, dict_factory=_plain)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Rebuild from `to_dict` output; unknown or missing keys raise `TypeError`."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        scaling = fields.get("rope_scaling")
        return cls(**{**fields, "rope_scaling": _scaling(scaling) if scaling else None})


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Tuples as the lists that JSON has."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def _scaling(values: dict[str, Any]) -> Scaling:
    """The kind of scaling that has these fields; Llama 3's was stored first, without a name of its kind."""
    if "beta_fast" in values:
        return YarnScaling(**values)
    if "linear_factor" in values:
        return LinearScaling(**values)
    if "short_factor" in values:
        divisors: dict[str, Any] = {
            name: tuple(values[name]) for name in ("short_factor", "long_factor") if name in values
        }
        return LongRopeScaling(**{**values, **divisors})
    return RopeScaling(**values)
