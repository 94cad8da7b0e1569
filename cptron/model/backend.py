"""The one place that chooses how layers are computed.

Place in the flow: `model.build` asks for the layers of a chunk; `cptron doctor` shows the choice. Invariant: asked for
and absent is an error, never a quiet switch to the other backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.options import ModelOptions


def check_backend(backend: str) -> None:
    """Raise `ConfigError` when the backend's package is not installed; imports nothing."""
    if backend == "te" and find_spec("transformer_engine") is None:
        raise ConfigError(
            "model.backend=te needs Transformer Engine, which is not installed; "
            "install transformer_engine[pytorch] or use model.backend=native"
        )


def check_offloading(modules: Sequence[str]) -> None:
    """Raise `ConfigError` when megatron-core cannot offload these: it asks a switch of Transformer Engine, with any
    backend. Imports nothing."""
    if modules and find_spec("transformer_engine") is None:
        raise ConfigError(
            f"memory.offload_modules={list(modules)} needs Transformer Engine with model.backend=native too, and it is "
            "not installed; install transformer_engine[pytorch], or leave it out and use memory.recompute"
        )


def layer_specs(arch: Architecture, layers: Sequence[int], options: ModelOptions) -> Any:
    """megatron-core's description of the layers numbered `layers` (from 0), and of the final norm."""
    check_backend(options.backend)
    if options.backend == "te":
        from cptron.model.specs_te import block_spec
    else:
        from cptron.model.specs_native import block_spec
    return block_spec(arch, layers, options)


def has_apex_weight_gradients() -> bool:
    """Apex's kernel that adds weight gradients straight into the fp32 buffer is installed."""
    return find_spec("fused_weight_gradient_mlp_cuda") is not None
