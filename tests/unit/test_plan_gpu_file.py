"""GPUs that a user describes: read as written, and refused in one line where a plan could not use them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cptron.errors import ConfigError
from cptron.plan.gpus import GPUS, gpu_named, read_gpus

WHOLE = (
    "memory_gib: 20, bf16_tflop_per_s: 100, fp32_tflop_per_s: 50, memory_gb_per_s: 800, link_gb_per_s: 25, "
    "board_w: 300, server_w: 500, usd_per_hour: 0.5, source: measured"
)


def described(tmp_path: Path, text: str) -> Path:
    """A file of GPUs."""
    path = tmp_path / "gpus.yaml"
    path.write_text(text)
    return path


def test_like_another_and_whole(tmp_path: Path) -> None:
    """What is left out is the other's; sections that share an alias are each read whole; the table stays known."""
    text = f"a: &a {{like: h100, memory_gib: 94, usd_per_hour: [1.9, 2.2]}}\nb: *a\nc: {{{WHOLE}}}\n"
    path = described(tmp_path, text)
    found = read_gpus(path)
    assert (found["a"].memory_gib, found["a"].bf16_tflop_per_s) == (94, GPUS["h100"].bf16_tflop_per_s)
    assert found["b"].link_gb_per_s == GPUS["h100"].link_gb_per_s
    assert found["c"].usd_per_hour == (0.5, 0.5) and found["c"].fp8_tflop_per_s == 0
    assert found["c"].source == "measured"
    assert gpu_named("c", path) == found["c"] and gpu_named("h200", path) == GPUS["h200"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "must hold a section for each GPU"),
        ("a: 3", "must hold a section for each GPU"),
        ("", "must hold a section for each GPU"),
        ("a: {like: h101}", "like=h101 is not in the table"),
        ("a: {like: h100, memmory: 3}", "has memmory, which no GPU has"),
        ("a: {like: h100, memory_gib: many}", "memory_gib='many' must be a number"),
        ("a: {like: h100, memory_gib: .nan}", "memory_gib='.nan' must be a number"),
        ("a: {like: h100, memory_gib: 1e400}", "must be a number"),
        ("a: {like: h100, memory_gib: 0}", "memory_gib of 0 must be above 0"),
        ("a: {like: h100, memory_gib: [1]}", "memory_gib is a list"),
        ("a: {like: h100, usd_per_hour: [3, 2]}", "one price or the lowest and the highest"),
        ("a: {like: h100, usd_per_hour: []}", "one price or the lowest and the highest"),
        ("a: {memory_gib: 3}", "lacks bf16_tflop_per_s"),
        ("a: {like: h100}\na: {like: a100}", "twice"),
        ("? [x]\n: {like: h100}", "a key that is no name"),
        ("a: {like: h100", "not valid YAML"),
    ],
)
def test_refused(text: str, said: str, tmp_path: Path) -> None:
    """One line that says where."""
    with pytest.raises(ConfigError) as caught:
        read_gpus(described(tmp_path, text))
    assert said in str(caught.value) and "gpus.yaml" in str(caught.value) and "\n" not in str(caught.value)
