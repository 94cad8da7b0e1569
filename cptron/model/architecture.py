"""The shape of a model, independent of any framework.

Place in the flow: read from a Hugging Face `config.json` by a family, stored in every checkpoint, used to
build the megatron-core model, to plan and to export. Invariant: two models with equal `Architecture` have
the same parameters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
class Architecture:
    """A decoder-only transformer of the Llama shape (RMSNorm, SwiGLU, rotary, grouped-query attention)."""

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
    rope_scaling: RopeScaling | YarnScaling | None = None
    tied_embeddings: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Rebuild from `to_dict` output; unknown or missing keys raise `TypeError`."""
        scaling = values.get("rope_scaling")
        return cls(**{**values, "rope_scaling": _scaling(scaling) if scaling else None})


def _scaling(values: dict[str, Any]) -> RopeScaling | YarnScaling:
    """The kind of scaling that has these fields; Llama 3's was stored first, without a name of its kind."""
    return YarnScaling(**values) if "beta_fast" in values else RopeScaling(**values)
