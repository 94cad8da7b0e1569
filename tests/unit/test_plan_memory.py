"""The planner's memory: published measurements, and what must hold whatever the layout."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import LLAMA2_7B, LLAMA3_8B, LLAMA3_70B, LLAMA3_405B, ROOT, TINY, recipe

from cptron.config.schema import AdapterConfig, MemoryConfig
from cptron.model.architecture import Architecture
from cptron.plan.activations import Kept, chunks_in_flight, kept_by_layer
from cptron.plan.memory import memory_of, memory_of_stage, static_bytes
from cptron.plan.parameters import Held, held_by_stage
from cptron.runtime.topology import Layout

GIB, MIB = 2**30, 2**20
LOGITS_BYTES = 2 + 4
"""Of engines that hold all logits at once: in bf16, and in fp32 for the loss."""


@pytest.mark.parametrize(
    ("arch", "parameters"), [(LLAMA3_8B, 8.0303e9), (LLAMA3_70B, 7.0554e10), (LLAMA3_405B, 4.0585e11)]
)
def test_published_numbers_of_parameters(arch: Architecture, parameters: float) -> None:
    """Of the three Llama 3.1 models."""
    (held,) = held_by_stage(recipe(), arch)
    assert held.total == held.trained == pytest.approx(parameters, rel=1e-4)


def test_what_megatrons_reporter_says_of_llama_3_8b() -> None:
    """57,438.81 MiB at DP 8: 7.5 bytes a parameter, by its own count of them."""
    (held,) = held_by_stage(recipe(), LLAMA3_8B)
    assert sum(static_bytes(recipe(), held, 8)) == pytest.approx(7.5 * held.total)
    assert sum(static_bytes(recipe(), held, 8)) / MIB == pytest.approx(57438.81, rel=1e-3)


def test_a_gpu_needs_more_than_is_allocated() -> None:
    """Both parts as docs/planning.md states them."""
    memory = memory_of_stage(recipe(), LLAMA3_8B, 64, 0)
    page = (ROOT / "docs/planning.md").read_text()
    lost, context = re.findall(
        r"\*\*Beyond torch\*\*: ([\d.]+) % of all that .*?, and ([\d.]+) GB for CUDA", page
    )[0]
    assert memory.total == pytest.approx(memory.allocated * (1 + float(lost) / 100) + float(context) * 1e9)


@pytest.mark.parametrize(
    ("parameters", "shards", "measured_gib"), [(1_250_961_408, 8, 8.8), (1_250_961_408 // 2, 4, 5.3)]
)
def test_model_and_optimizer_that_mbridge_measured(parameters: int, shards: int, measured_gib: float) -> None:
    """Its table's part without activations, which are those of a mixture of experts; to one decimal."""
    found = sum(static_bytes(recipe(), Held(parameters, parameters), shards))
    assert found / GIB == pytest.approx(measured_gib, rel=0.02)


@pytest.mark.parametrize(
    ("tp", "pp", "dp", "micro", "measured_gib"),
    [(1, 1, 8, 2, 69.1), (2, 1, 4, 4, 55.7), (1, 2, 4, 2, 49.8), (8, 1, 1, 4, 28.8)],
)
def test_peaks_of_llama_2_7b_in_megatron_lm_of_2023(
    tp: int, pp: int, dp: int, micro: int, measured_gib: float
) -> None:
    """Megatron-LM#482: `max_memory_allocated`. Its layers kept other tensors than ours: no sequence parallelism,
    dropout masks, queries, keys and values copied, an unfused SwiGLU. They do not say the sequence length: 2048 is the
    power of two that fits."""
    h, f = LLAMA2_7B.hidden_size, LLAMA2_7B.ffn_hidden_size
    tokens = micro * 2048
    kept = Kept(hidden=(2 + 2 + 2 + 2 + 3) * h, inner=(6 + 2 + 2) * h + 8 * f)
    layout = Layout(tp=tp, pp=pp)
    config = recipe(tp=tp, pp=pp, sequence_parallel=False)
    static = sum(static_bytes(config, held_by_stage(config, LLAMA2_7B)[0], dp))
    layers = LLAMA2_7B.num_layers // pp * chunks_in_flight(layout, 0, 64)
    logits = LOGITS_BYTES * tokens * LLAMA2_7B.vocab_size / tp if pp == 1 else 0
    found = static + layers * tokens * kept.on_rank(layout) + logits
    assert found / GIB == pytest.approx(measured_gib, rel=0.02)


def gpt3_7b(tp: int, pp: int, vocabulary: int) -> int:
    """Parameters of the first stage of Megatron's functional test: two-matrix MLPs with biases, learned positions."""
    h, kv, f = 4096, 1024, 16384
    matrices = h * (h + 2 * kv) + h * h + 2 * h * f
    vectors = 4 * h + (h + 2 * kv) // tp + h + f // tp + h
    ends = vocabulary * h // tp * (2 if pp == 1 else 1) + 8192 * h
    return 32 // pp * (matrices // tp + vectors) + ends


GPT3_KEPT = Kept(hidden=10 * 4096, inner=2 * (4096 + 2 * 1024) + 4 * 4096 + 4 * 32 + 4 * 16384)
"""Norms, dropout masks; the product of q, k, v, queries, output, log-sum-exp, and the MLP's two inner tensors."""


@pytest.mark.parametrize(
    ("tp", "pp", "virtual", "micro", "vocabulary", "static_measured", "peak_measured"),
    [
        (4, 1, 1, 2, 131072, 20_663_519_232, 57_143_791_616),
        (1, 4, 8, 1, 131200, 24_540_168_192, 60_518_293_504),
    ],
)
def test_memory_that_nvidia_measured_on_h100(
    tp: int, pp: int, virtual: int, micro: int, vocabulary: int, static_measured: int, peak_measured: int
) -> None:
    """Golden values of Megatron-LM's functional tests gpt3_7b_tp4_pp1 and gpt3_7b_tp1_pp4_memory_speed, 8 GPUs each:
    `mem-allocated-bytes` and `mem-max-allocated-bytes`."""
    parameters = gpt3_7b(tp, pp, vocabulary)
    static = sum(static_bytes(recipe(), Held(parameters, parameters), 2))
    assert static == pytest.approx(static_measured, rel=0.05)
    layout = Layout(tp=tp, pp=pp, virtual_stages=virtual)
    tokens, micro_batches = micro * 8192, 8 // (micro * 2)
    layers = 32 // pp // virtual * chunks_in_flight(layout, 0, micro_batches)
    logits = LOGITS_BYTES * tokens * vocabulary / tp if pp == 1 else 0
    found = static + layers * tokens * GPT3_KEPT.on_rank(layout) + logits
    assert found == pytest.approx(peak_measured, rel=0.05)


def test_terms_of_a_layer_by_hand() -> None:
    """Llama 3 8B in bf16: 4 norm tensors and their statistics; q, k rotated, their product with the values, the output;
    gate, up and what the down projection reads."""
    h, q, k, f, n = 4096, 4096, 1024, 14336, 32
    found = kept_by_layer(recipe(), LLAMA3_8B)
    assert found.hidden == 8 * h + 8
    assert found.inner == 2 * (q + k + (q + 2 * k) + q) + 4 * n + 6 * f
    layout = Layout(tp=4, sequence_parallel=True)
    assert found.on_rank(layout) == (found.hidden + found.inner) / 4
    assert found.on_rank(Layout(tp=4)) == found.hidden + found.inner / 4
    reported = 8 * h + 2 * (q + 2 * k) + 2 * q + 6 * f + 4 * n
    assert found.hidden + found.inner - 8 == reported + 2 * q + 2 * k  # values hold the whole product here


@pytest.mark.parametrize(
    ("layout", "stage", "micro_batches", "expected"),
    [
        (Layout(), 0, 64, 1),
        (Layout(pp=4), 0, 64, 4),
        (Layout(pp=4), 3, 64, 1),
        (Layout(pp=4), 0, 2, 2),
        (Layout(pp=4, virtual_stages=5), 0, 64, 23),
        (Layout(pp=4, virtual_stages=5), 3, 64, 17),
        (Layout(pp=4, virtual_stages=8), 0, 4, 32),
    ],
)
def test_chunks_in_flight_by_hand(layout: Layout, stage: int, micro_batches: int, expected: int) -> None:
    """Interleaved: 1 + (p - 1) / (p v) times the stage's layers on the first one, 23 / 20 here."""
    assert chunks_in_flight(layout, stage, micro_batches) == expected


SMALL_LAYOUTS = st.fixed_dictionaries(
    {
        "tp": st.sampled_from([1, 2, 4]),
        "cp": st.sampled_from([1, 2]),
        "pp": st.sampled_from([1, 2, 4]),
        "sequence_parallel": st.booleans(),
        "micro": st.sampled_from([1, 2, 4]),
        "recompute": st.sampled_from(["none", "selective", "full"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(drawn=SMALL_LAYOUTS, arch=st.sampled_from([TINY, LLAMA3_8B, replace(LLAMA3_8B, tied_embeddings=True)]))
def test_more_gpus_never_need_more_each(drawn: dict[str, object], arch: Architecture) -> None:
    """At the same layout, with the batch that keeps the micro-batches of a rank; a larger micro-batch needs more, and
    so does less recomputation."""
    memory = MemoryConfig(recompute=drawn.pop("recompute"), recompute_modules=("mlp",))  # type: ignore[arg-type]
    micro = int(drawn.pop("micro"))  # type: ignore[call-overload]
    config = replace(recipe(micro=micro, batch=512, **drawn), memory=memory)
    ranks = Layout.of(config.parallel).ranks
    totals = [memory_of(config, arch, ranks * dp).total for dp in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    larger = replace(config, train=replace(config.train, micro_batch_size=2 * micro))
    assert memory_of(larger, arch, ranks).total > totals[0]
    leaner = replace(config, memory=replace(memory, recompute="full"))
    assert memory_of(leaner, arch, ranks).activations <= memory_of(config, arch, ranks).activations


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
def test_fullest_stage_is_the_fullest(pp: int) -> None:
    """Only the first two and the last are looked at."""
    config = recipe(pp=pp)
    found = [memory_of_stage(config, LLAMA3_8B, pp * 8, stage).total for stage in range(pp)]
    assert memory_of(config, LLAMA3_8B, pp * 8).total == max(found)


@pytest.mark.parametrize(
    ("overrides", "bytes_per_parameter"),
    [
        ((), 2 + 4 + 12 / 8),
        (("optim.moments=bf16",), 2 + 4 + 8 / 8),
        (("optim.name=sgd",), 2 + 4 + 8 / 8),
        (("optim.name=muon",), 2 + 4 + 12),
        (("train.precision=fp32",), 4 + 4 + 8 / 8),
        (("regularise.l2sp=0.1",), 2 + 4 + 14 / 8),
        (("regularise.ewc=0.1",), 2 + 4 + 18 / 8),
        (("optim.frozen=['*']",), 2),
    ],
)
def test_bytes_of_a_parameter(overrides: tuple[str, ...], bytes_per_parameter: float) -> None:
    """Weights and gradients on every rank, the rest over data and context ranks."""
    config = recipe(overrides=overrides)
    (held,) = held_by_stage(config, LLAMA3_8B)
    assert sum(static_bytes(config, held, 8)) == pytest.approx(bytes_per_parameter * held.total)


def test_adapters_keep_the_base_without_gradients() -> None:
    """Two bytes of a base weight; eighteen of an adapter's on one rank."""
    config = replace(recipe(), adapter=AdapterConfig(kind="lora", targets=("o_proj",), rank=16))
    (held,) = held_by_stage(config, LLAMA3_8B)
    assert held.trained == 32 * 16 * (4096 + 4096)
    base = held.total - held.trained
    assert sum(static_bytes(config, held, 1)) == 2 * base + 18 * held.trained


def test_calibrated_factor_multiplies_what_torch_allocates() -> None:
    """And leaves the context as it is."""
    plain, scaled = (memory_of(recipe(), LLAMA3_8B, 8, factor=factor) for factor in (1.0, 1.1))
    assert scaled.total - scaled.context == pytest.approx(1.1 * (plain.total - plain.context))
