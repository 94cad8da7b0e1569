"""How a model is built beside its architecture and layout: precision, backend, memory, FP8, adapters.

Place in the flow: made from the configuration, handed to `model.build`. Invariant: nothing here changes which
parameters the base model has, so any options load any checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cptron.config.schema import AdapterConfig, AttentionConfig, Config, Fp8Config, MemoryConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Everything `build_model` needs to know that is no shape and no layout."""

    precision: Literal["bf16", "fp32"] = "fp32"
    backend: Literal["native", "te"] = "native"
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    fp8: Fp8Config = field(default_factory=Fp8Config)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    random_weights: bool = True
    """False where all weights are loaded next: drawing those of a large model takes minutes."""

    @classmethod
    def of(cls, config: Config) -> ModelOptions:
        """The options of a run."""
        return cls(
            precision=config.train.precision,
            backend=config.model.backend,
            attention=config.attention,
            memory=config.memory,
            fp8=config.fp8,
            adapter=config.adapter,
            random_weights=config.start.mode == "random",
        )
