"""The benchmark of the engine: its table, its results on record, and both CPU peers on a tiny model."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.measure import BenchmarkError
from benchmarks.engine import batches, cases, results, run
from benchmarks.engine.one import PEERS

TINY = replace(
    cases.CPU,
    name="tiny",
    seq_length=64,
    goals=(),
    arch=replace(
        cases.SMOLLM2_135M,
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=128,
        num_attention_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=512,
        max_position_embeddings=128,
    ),
)


def test_the_table_is_consistent() -> None:
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    for case in cases.CASES:
        assert case.peers[0] == "cptron" and set(case.peers) <= set(PEERS)
        assert case.arch.num_attention_heads % case.arch.num_kv_heads == 0
        assert case.fp8 == "none" or case.precision == "bf16"
        assert (case.device == "cpu") == (case.precision == "fp32") == case.same_start
        rows = {f"{other.name}/{peer}" for other in cases.CASES for peer in other.peers}
        assert {against for _, _, against, _ in case.goals if against} <= rows
        assert cases.Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_sizes_are_those_of_the_published_models() -> None:
    assert cases.parameters(cases.SMOLLM2_135M) == 134_515_008
    assert cases.parameters(cases.LLAMA32_1B) == 1_235_814_400
    assert cases.parameters(cases.LLAMA31_8B) == 8_030_261_248


def test_flops_of_a_step() -> None:
    row = results.row_of(_case_8b(), "cptron", [_answer()], 800.0, _COUNTS)
    weights = cases.parameters(cases.LLAMA31_8B) - 128256 * 4096 - 65 * 4096
    flops = 6 * weights * 8192 + 6 * 32 * 32 * 128 * 8192**2
    assert row.model_tflops == pytest.approx(flops / 2.0 / 1e12)
    assert row.tokens_per_s == 4096 and row.share_of_ceiling == pytest.approx(row.model_tflops / 800)


def test_layers_shrink_until_they_fit() -> None:
    case = _case_8b()
    assert cases.layers_that_fit(case, 10**15) == 32
    layers = cases.layers_that_fit(case, 140 << 30)
    assert 8 < layers < 32
    assert cases.bytes_needed(cases.with_layers(case, layers).arch, 8192) <= 140 << 30
    assert cases.layers_that_fit(case, 0) == 1


def test_batches_are_the_same_for_all_and_documents_have_their_length() -> None:
    case = replace(TINY, seq_length=8192, micro_batch=4, mean_document=1024)
    one, again = batches.batches_of(case), batches.batches_of(case)
    assert all(np.array_equal(a.tokens_BS, b.tokens_BS) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0].tokens_BS, one[1].tokens_BS)
    np.testing.assert_array_equal(one[0].labels_BS[:, :-1], one[0].tokens_BS[:, 1:])
    assert 16 <= int(one[0].documents_BS[:, -1].sum()) + 4 <= 64
    positions_BS = one[0].positions_BS
    begins_BS = np.diff(one[0].documents_BS, axis=1, prepend=-1) != 0
    assert (positions_BS[begins_BS] == 0).all() and (np.diff(positions_BS)[~begins_BS[:, 1:]] == 1).all()
    assert batches.squares_of(TINY) == 64**2


def test_goals_compare_with_the_fastest_way_of_a_peer_on_the_same_model() -> None:
    case = _case_8b()
    slow, fast = _answer(3.0), _answer(2.5)
    told = {"cptron": _answer(), "torchtitan": slow, "torchtitan-varlen": fast}
    rows = {}
    for peer, answer in told.items():
        row = results.row_of(case, peer, [answer], 800.0, _COUNTS)
        rows[row.row] = json.loads(json.dumps(results.asdict(row)))
    results.judge(rows)
    goals = {goal["goal"]: goal for goal in rows[f"{case.name}/cptron"]["goals"]}
    assert goals[">= 1.05 x torchtitan"] == {"goal": ">= 1.05 x torchtitan", "value": 1.25, "met": True}
    assert goals[">= 560 TFLOP/s"]["met"] is False
    rows[f"{case.name}/cptron"]["spread_s"] = [1.0, 3.0]
    results.judge(rows)
    assert "1.25 (too unsteady to tell)" in results.table(list(rows.values()))
    for row in rows.values():
        row["layers"] -= row["peer"] != "cptron"
    results.judge(rows)
    assert rows[f"{case.name}/cptron"]["goals"][1]["met"] is None
    assert "1.05 x torchtitan: -" in results.table(list(rows.values()))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_results_on_record_say_where_they_are_from(device: str) -> None:
    for row in results.read(results.results_path(device)):
        assert all(row[key] for key in ("machine", "versions", "command", "date", "flops_formula"))
        assert row["case"] in {case.name for case in cases.CASES if case.device == device}
        assert row["row"] == f"{row['case']}/{row['peer']}" and row["peer"] in PEERS
        if row["step_time_s"] is not None:
            assert row["spread_s"][0] <= row["step_time_s"] <= row["spread_s"][1]
            assert row["tokens_per_s"] == pytest.approx(
                row["sequence"] * row["micro_batch"] / row["step_time_s"]
            )


@pytest.mark.more
def test_both_cpu_peers_end_with_the_same_loss(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        rounds=1, warmup=1, steps=3, threads=1, peers="", layers=0, work_dir=tmp_path / "work"
    )
    rows = run.measure_case(TINY, arguments)
    assert [row.peer for row in rows] == ["cptron", "transformers"]
    ours, theirs = (row.losses for row in rows)
    assert len(ours) == 4 and ours == pytest.approx(theirs, abs=1e-4)
    assert ours[2] < ours[0]  # the same batch again, after two updates
    results.merge(rows, tmp_path / "rows.json")
    assert {row["row"] for row in results.read(tmp_path / "rows.json")} == {
        "tiny/cptron",
        "tiny/transformers",
    }
    with pytest.raises(BenchmarkError, match="did not do the same work"):
        run.require_equal_losses(TINY, {"cptron": [{"losses": [1.0]}], "other": [{"losses": [1.01]}]})


_COUNTS = {"rounds": 1, "warmup_steps": 1, "steps": 1, "threads": 1}


def _case_8b() -> cases.Case:
    (case,) = [case for case in cases.CASES if case.name == "llama-3.1-8b-shape/bf16"]
    return case


def _answer(step_s: float = 2.0) -> dict[str, object]:
    return {"step_s": [step_s], "cpu_s": step_s, "losses": [11.0], "peak_bytes": 1, "precision": "bf16"}
