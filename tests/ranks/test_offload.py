"""Activations that wait in host memory change nothing, whatever the model does between training steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from offload_calls import losses_with_evaluation

from cptron.config.schema import MemoryConfig
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks


@pytest.mark.core_ranks
@pytest.mark.parametrize(
    "layout", [pytest.param(Layout(), marks=pytest.mark.more), Layout(pp=2)], ids=Layout.describe
)
@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(("core_attn",), marks=pytest.mark.more),
        ("attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm"),
    ],
)
def test_offloading_goes_on_after_an_evaluation(
    modules: tuple[str, ...], layout: Layout, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """Before the first step, as the gate does, and between steps; two models one after the other in a process."""
    arguments = (str(checkpoints["untied"]), tokens_NGS1[:3], layout)
    plain = run_ranks(losses_with_evaluation, layout.ranks, *arguments, MemoryConfig())[0]
    memory = MemoryConfig(offload_modules=modules)
    for _ in range(2):
        found = run_ranks(losses_with_evaluation, layout.ranks, *arguments, memory)
        np.testing.assert_allclose(found[0], plain, rtol=1e-6)
