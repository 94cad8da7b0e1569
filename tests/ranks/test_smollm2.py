"""The real model of the quickstart, SmolLM2-135M (9 heads, 3 key/value groups, tied): logits equal `transformers`.

`make test` fetches the model once; run by hand without it, these tests say so and are skipped.
"""

from __future__ import annotations

from pathlib import Path

import engine_calls
import numpy as np
import pytest
from conftest import convert
from test_parity import transformers_logits

from cptron.testing import run_ranks

MODEL = Path(__file__).parents[2] / ".cache" / "smollm2-135m"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODEL / "complete.json").is_file(), reason=f"{MODEL} is absent; `make test` fetches it"
    ),
]
TOKEN_IDS = [504, 216, 1174, 282, 253, 3488, 314, 253, 2155, 338, 3339, 624, 28, 284, 260, 905] * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted model."""
    target = tmp_path_factory.mktemp("smollm2") / "checkpoint"
    run_ranks(convert, 1, str(MODEL), str(target))
    return target


def export(checkpoint: str, target: str) -> None:
    """Export a checkpoint; on a rank."""
    from cptron.convert.hf_export import export_hugging_face

    export_hugging_face(Path(checkpoint), Path(target))


def test_logits_equal_transformers(checkpoint: Path) -> None:
    """At TP 1 and 3 and PP 1 and 2, no logit is off by more than 1e-4 in fp32."""
    expected = transformers_logits(MODEL, TOKEN_IDS)
    for world_size, tp, pp in [(1, 1, 1), (3, 3, 1), (2, 1, 2)]:
        found = run_ranks(engine_calls.first_logits, world_size, str(checkpoint), TOKEN_IDS, tp=tp, pp=pp)
        for logits in found:
            if logits is not None:
                assert np.abs(logits - expected).max() <= 1e-4, (world_size, tp, pp)


def test_export_is_bit_identical(checkpoint: Path, tmp_path: Path) -> None:
    """Import and export return every tensor bit for bit, and the config describes the same model."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig

    run_ranks(export, 1, str(checkpoint), str(tmp_path / "exported"))
    source, exported = (load_file(d / "model.safetensors") for d in (MODEL, tmp_path / "exported"))
    assert exported.keys() == source.keys()
    assert all(tensor.dtype == source[name].dtype for name, tensor in exported.items())
    assert all(torch.equal(tensor, source[name]) for name, tensor in exported.items())
    before, after = (AutoConfig.from_pretrained(d).to_dict() for d in (MODEL, tmp_path / "exported"))
    assert {**before, "_name_or_path": ""} == {**after, "_name_or_path": ""}
