"""Layer specs on Transformer Engine, where it is installed.

Place in the flow: `model.build` uses them for `model.spec: te`. Invariant: asked for and absent is an
error, never a quiet switch to the native spec.
"""

from __future__ import annotations

import importlib.util

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.transformer.spec_utils import ModuleSpec

from cptron.errors import ConfigError


def layer_spec() -> ModuleSpec:
    """megatron-core's own Transformer Engine layer spec. Raises `ConfigError` when the package is missing."""
    if importlib.util.find_spec("transformer_engine") is None:
        raise ConfigError(
            "model.spec=te needs Transformer Engine, which is not installed; "
            "install transformer_engine[pytorch] or use model.spec=native"
        )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    return get_gpt_layer_with_transformer_engine_spec()
