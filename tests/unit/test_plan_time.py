"""The planner's FLOPs and step time against published rows, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_cases import LLAMA3_8B, LLAMA3_70B, LLAMA3_405B, h100s, recipe

from cptron.config.schema import AdapterConfig, MemoryConfig
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.plan.calibrate import _solve
from cptron.plan.cluster import network_of
from cptron.plan.efficiency import BF16, assumed
from cptron.plan.gpus import GPUS, gpu_named
from cptron.plan.search import estimated
from cptron.plan.step_time import computed_per_token, flops_per_token, step_time
from cptron.plan.totals import totals


@pytest.mark.parametrize(
    ("arch", "tflop_per_s", "tokens_per_s"),
    [(LLAMA3_8B, 744, 14451), (LLAMA3_70B, 719, 1602), (LLAMA3_70B, 736, 1639), (LLAMA3_405B, 822, 326)],
)
def test_published_pairs(arch: Architecture, tflop_per_s: float, tokens_per_s: float) -> None:
    """NVIDIA's H100 rows of 2025 and 2026: TFLOP/s over tokens/s, causal."""
    assert flops_per_token(recipe(), arch) == pytest.approx(tflop_per_s * 1e12 / tokens_per_s, rel=0.005)


def test_both_conventions() -> None:
    """Llama 3 8B at 8192: 51.5 and 57.9 GFLOP a token; full recomputation adds a third."""
    assert flops_per_token(recipe(), LLAMA3_8B) == pytest.approx(51.5e9, rel=0.002)
    assert flops_per_token(recipe(), LLAMA3_8B, causal=False) == pytest.approx(57.9e9, rel=0.002)
    assert computed_per_token(recipe(), LLAMA3_8B) == flops_per_token(recipe(), LLAMA3_8B)
    again = replace(recipe(), memory=MemoryConfig(recompute="full"))
    head = 6 * 4096 * 128256
    layers = flops_per_token(recipe(), LLAMA3_8B) - head
    assert computed_per_token(again, LLAMA3_8B) == pytest.approx(head + layers * 4 / 3)


def test_frozen_weights_have_no_gradients() -> None:
    """With LoRA four FLOPs a weight in place of six, and two more for what is computed again; the same in time."""
    plain, matrices = recipe(batch=32), 32 * (2 * 4096 * 5120 + 3 * 4096 * 14336)
    attention = 6 * 32 * 4096 * 8192
    lora = replace(plain, adapter=AdapterConfig(kind="lora", rank=1))
    four = 4 * (matrices + 4096 * 128256) + attention
    assert computed_per_token(lora, LLAMA3_8B) == pytest.approx(four, rel=1e-3)
    again = replace(lora, memory=MemoryConfig(recompute="full"))
    assert computed_per_token(again, LLAMA3_8B) == pytest.approx(
        four + 2 * matrices + attention / 3, rel=1e-3
    )
    assert flops_per_token(lora, LLAMA3_8B) == flops_per_token(plain, LLAMA3_8B)
    slow = 1e-3  # of the peak, so that products take all the time; attention reaches 0.7 of what others do
    whole, part = (step_time(one, LLAMA3_8B, h100s(1), reached=slow).compute for one in (plain, lora))
    products = 6 * (matrices * (1 + 128 / 4096) + 4096 * 128256)
    assert 1 - part / whole == pytest.approx(products / 3 / (products + attention / 0.7), rel=2e-3)
    for frozen, left in (("embedding.*", 0), ("output_layer.*", 2 * 4096 * 128256)):
        partly = replace(plain, optim=replace(plain.optim, frozen=(frozen,)))
        assert computed_per_token(partly, LLAMA3_8B) == pytest.approx(
            flops_per_token(plain, LLAMA3_8B) - left, rel=1e-3
        )


PUBLISHED_BF16 = [
    (LLAMA3_8B, 8, 128, {"cp": 2}, 10153),
    (LLAMA3_8B, 128, 2048, {"cp": 2}, 10006),
    (LLAMA3_70B, 64, 128, {"tp": 4, "pp": 4, "cp": 2, "virtual_stages": 5}, 1113),
    (LLAMA3_70B, 1024, 2048, {"tp": 4, "pp": 4, "cp": 2, "virtual_stages": 5}, 1098),
    (LLAMA3_70B, 2048, 4096, {"tp": 4, "pp": 4, "cp": 2, "virtual_stages": 5}, 1098),
]
"""NVIDIA dgxc-benchmarking, nemo 24.09, H100: tokens/s/GPU."""


@pytest.mark.parametrize(("arch", "gpus", "batch", "parallel", "published"), PUBLISHED_BF16)
def test_published_speeds_are_within_the_range(
    arch: Architecture, gpus: int, batch: int, parallel: dict[str, int], published: float
) -> None:
    """Of the assumed efficiency, which is below NVIDIA's on purpose."""
    found = totals(
        estimated(recipe(batch=batch, **parallel), arch, h100s(gpus), BF16), arch, h100s(gpus), BF16
    )
    speed = found.tokens_per_s_per_gpu
    assert speed.low < speed.expected < published < speed.high


@pytest.mark.parametrize(("arch", "gpus", "batch", "parallel", "published"), PUBLISHED_BF16[1:])
def test_fitted_to_one_row_it_predicts_the_others(
    arch: Architecture, gpus: int, batch: int, parallel: dict[str, int], published: float
) -> None:
    """The part of the peak from the first row alone: 8 GPUs and 8 billion parameters predict 2048 and 70 billion."""
    first = PUBLISHED_BF16[0]
    config = recipe(batch=first[2], **first[3])
    seconds = first[2] * 8192 / first[4] / first[1]
    reached = _solve(config, first[0], h100s(first[1]), seconds, first[0])  # type: ignore[arg-type]
    config = recipe(batch=batch, **parallel)
    predicted = batch * 8192 / gpus / step_time(config, arch, h100s(gpus), reached=reached).total
    assert predicted == pytest.approx(published, rel=0.10)


def test_the_arithmetic_of_a_run() -> None:
    """Days, hours, money and energy are of the same seconds; the ranges hold the expected."""
    config = recipe(batch=256, tp=2)
    found = totals(estimated(config, LLAMA3_8B, h100s(64), BF16), LLAMA3_8B, h100s(64), BF16)
    seconds = found.tokens / (64 * found.tokens_per_s_per_gpu.expected)
    assert found.days.expected == pytest.approx(seconds / 86400)
    assert found.gpu_hours.expected == pytest.approx(64 * seconds / 3600)
    peak = found.peak_tflop_per_s * 1e12
    by_formula = found.tokens * flops_per_token(config, LLAMA3_8B) / (peak * found.mfu_causal.expected * 3600)
    assert found.gpu_hours.expected == pytest.approx(by_formula)
    assert found.mfu_full.expected / found.mfu_causal.expected == pytest.approx(57.91 / 51.47, rel=0.001)
    for value in (found.days, found.gpu_hours, found.usd, found.kwh, found.mfu_causal):
        assert 0 < value.low < value.expected < value.high
    assert found.usd.low == pytest.approx(2 * found.gpu_hours.low)


def test_what_slows_a_step() -> None:
    """Recomputing, slower networks, fewer micro-batches in a pipeline, messages that nothing hides."""

    def seconds(config: object = None, gpus: int = 64, network: float = 50.0) -> float:
        chosen = config or recipe(batch=256, tp=2)
        return step_time(chosen, LLAMA3_8B, h100s(gpus, network_gb_per_s=network), reached=0.5).total  # type: ignore[arg-type]

    plain = seconds()
    assert seconds(replace(recipe(batch=256, tp=2), memory=MemoryConfig(recompute="full"))) > 1.2 * plain
    assert seconds(network=1.5) > plain
    shown = recipe(batch=256, tp=2, overlap=False)
    assert seconds(shown) > plain
    assert seconds(recipe(batch=256, pp=4)) > seconds(recipe(batch=256, pp=4, virtual_stages=4))
    parts = step_time(recipe(batch=256, pp=4), LLAMA3_70B, h100s(64), reached=0.5)
    assert parts.bubble / (parts.total - parts.bubble) == pytest.approx(3 / 16, rel=0.15)  # (p - 1) / m


def test_gpus_are_named_or_described(tmp_path: object) -> None:
    """A near name is offered; a file may build on the table; FP8 is not invented."""
    with pytest.raises(ConfigError, match=r"--gpu h10 .*did you mean h100\?"):
        gpu_named("h10")
    with pytest.raises(ConfigError, match="no FP8"):
        GPUS["a100"].peak("bf16", fp8=True)
    path = tmp_path / "gpus.yaml"  # type: ignore[operator]
    path.write_text("ours: {like: h100, memory_gib: 94, usd_per_hour: [1.5, 2]}\n")
    ours = gpu_named("ours", path)
    assert (ours.memory_gib, ours.usd_per_hour, ours.bf16_tflop_per_s) == (94, (1.5, 2), 989.5)
    for text, said in (
        ("ours: {like: h101}", "like=h101"),
        ("ours: {like: h100, memory: 1}", "memory, which no GPU has"),
        ("ours: {memory_gib: 80}", "lacks .*bf16_tflop_per_s"),
        ("ours: {like: h100, memory_gib: many}", "'many' must be a number"),
        ("ours: {like: h100, memory_gib: 0}", "above 0"),
        ("- h100", "must hold a section"),
        ("a: [", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            gpu_named("ours", path)


def test_every_gpu_says_where_its_numbers_are_from() -> None:
    """And is plausible: bandwidths in GB/s, prices in order, the server draws more than the board."""
    for gpu in GPUS.values():
        assert len(gpu.source) > 20
        assert 20 < gpu.memory_gib < 300 and 50 < gpu.bf16_tflop_per_s < 3000
        assert gpu.fp8_tflop_per_s in (0, pytest.approx(2 * gpu.bf16_tflop_per_s, rel=0.02))
        assert gpu.usd_per_hour[0] < gpu.usd_per_hour[1] and gpu.server_w > gpu.board_w


def test_interconnects() -> None:
    """Of a GPU, of a node, or a number."""
    assert network_of("ndr400", 8) == 50
    assert network_of("efa3200", 8) == 50
    assert network_of("eth100", 4) == pytest.approx(3.125)
    assert network_of("100", 8) == 12.5
    with pytest.raises(ConfigError, match="--interconnect fast is not known"):
        network_of("fast", 8)


def test_assumed_efficiencies_say_so() -> None:
    """They are no measurements."""
    for fp8 in (False, True):
        found = assumed(fp8=fp8)
        assert not found.is_measured and "assumed" in found.source and found.low < found.expected < found.high
