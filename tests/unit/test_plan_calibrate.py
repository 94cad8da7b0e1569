"""Calibration: what it recovers from a log, what it writes down, and which logs it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_cases import HUGGING_FACE_8B, LLAMA3_8B, h100s, recipe

from cptron.config.load import resolved_yaml
from cptron.errors import CptronError, DataError
from cptron.plan.calibrate import fit
from cptron.plan.fit_file import fit_record, read_fit, write_fit
from cptron.plan.gpus import GPUS
from cptron.plan.memory import memory_of_stage
from cptron.plan.steady import LEAST_STEPS, LEFT_OUT
from cptron.plan.step_time import step_time
from cptron.runtime.topology import Layout, Topology

REACHED, MEMORY = 0.47, 1.06


def log_of(
    directory: Path, *, steps: int = 60, noise: float = 0.02, restarts: tuple[int, ...] = (), **parallel: Any
) -> Path:
    """The log of a run on 8 GPUs that reaches 47 % of the peak and allocates 6 % more than the formula, with slow steps
    after each start."""
    directory.mkdir()
    config = recipe(batch=64, **parallel)
    (directory / "config.yaml").write_text(resolved_yaml(config))
    seconds = step_time(config, LLAMA3_8B, h100s(8), reached=REACHED).total
    peak = memory_of_stage(config, LLAMA3_8B, 8, 0).allocated * MEMORY / 2**30
    layout = Topology(8, Layout.of(config.parallel)).describe()
    begins = {"kind": "start", "layout": layout, "world_size": 8, "device": "cuda"}
    random = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for step in range(steps):
        if step == 0 or step in restarts:
            records.append({**begins, "step": step})
            slow = LEFT_OUT
        slow -= 1
        time = seconds * (1 + noise * random.standard_normal()) * (5 if slow >= 0 else 1)
        records.append({"kind": "step", "step": step + 1, "step_time_s": time, "mem_peak_gib": peak})
        if step % 20 == 0:
            records.append({"kind": "eval", "step": step + 1})
    path = directory / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A config.json."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(HUGGING_FACE_8B))
    return path


def test_recovers_what_the_log_was_made_with(tmp_path: Path, model: Path) -> None:
    """Within the noise, though every start begins with slow steps; residuals of both logs, one of another layout, are
    written down, and the file plans as the fit does."""
    logs = [log_of(tmp_path / "a", restarts=(30,), cp=2), log_of(tmp_path / "b", tp=2)]
    found = fit(logs, h100s(64), model, None)
    efficiency = found.efficiency
    assert efficiency.expected == pytest.approx(REACHED, rel=0.02)
    assert efficiency.memory_factor == pytest.approx(MEMORY, rel=0.001)
    assert efficiency.low <= 0.9 * efficiency.expected < 1.1 * efficiency.expected <= efficiency.high
    assert efficiency.is_measured and str(logs[0]) in efficiency.source
    assert [log.steps_left_out for log in found.logs] == [2 * LEFT_OUT, LEFT_OUT]
    record = fit_record(found)
    assert all(
        abs(log["residual_step_time"]) < 0.02 and abs(log["residual_memory"]) < 0.001
        for log in record["logs"]
    )
    assert [log["layout"] for log in record["logs"]] == ["tp1_cp2_pp1_dp4", "tp2_sp_pp1_dp4"]
    write_fit(tmp_path / "fit.json", found)
    assert read_fit(tmp_path / "fit.json", "h100") == efficiency
    with pytest.raises(DataError, match="is of h100, but --gpu is h200"):
        read_fit(tmp_path / "fit.json", "h200")


def test_a_restart_without_a_record_is_seen(tmp_path: Path, model: Path) -> None:
    """Steps that go back are a new start."""
    path = log_of(tmp_path / "run", steps=40)
    lines = path.read_text().splitlines()
    steps = [line for line in lines if '"step"' in line and json.loads(line)["kind"] == "step"]
    path.write_text("\n".join([*lines, *steps]) + "\n")
    assert fit([path], h100s(8), model, 8).logs[0].steps_left_out == 2 * LEFT_OUT


def test_memory_of_a_process_is_not_that_of_a_gpu(tmp_path: Path, model: Path) -> None:
    """It is left alone, and said."""
    path = log_of(tmp_path / "run")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["kind"] == "step":
            record["mem_peak_gib"] = 1.5
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = fit([path], h100s(8), model, 8)
    assert found.efficiency.memory_factor == 1.0 and "memory is not calibrated" in found.notes[0]
    on_cpus = log_of(tmp_path / "cpus")
    on_cpus.write_text(on_cpus.read_text().replace('"cuda"', '"cpu"'))
    assert fit([on_cpus], h100s(8), model, 8).notes


@pytest.mark.parametrize(
    ("log", "num_gpus", "said"),
    [
        (
            {"steps": LEFT_OUT + LEAST_STEPS - 1},
            8,
            f"has {LEAST_STEPS - 1} steps of one layout after warming up",
        ),
        ({"noise": 0.4}, 8, "a spread of"),
        ({}, 1, "ends with steps of tp1_pp1_dp8"),
        ({}, 3, "world size 3|multiple of"),
    ],
    ids=["short", "noisy", "another-world", "impossible-world"],
)
def test_logs_that_do_not_suffice(
    log: dict[str, Any], num_gpus: int | None, said: str, tmp_path: Path, model: Path
) -> None:
    """Each with the number that is missing."""
    with pytest.raises(CptronError, match=said):
        fit([log_of(tmp_path / "run", **log)], h100s(8), model, num_gpus)


def test_a_log_that_is_faster_than_the_peak(tmp_path: Path, model: Path) -> None:
    """It was another GPU's."""
    slow = replace(h100s(8), gpu=replace(GPUS["h100"], bf16_tflop_per_s=300))
    with pytest.raises(DataError, match=r"8 h100 at their peak take .* give the GPU it ran on"):
        fit([log_of(tmp_path / "run")], slow, model, None)


def test_a_log_that_does_not_say_where_it_ran(tmp_path: Path, model: Path) -> None:
    """Or says another layout than the configuration beside it; steps of an earlier layout are left out."""
    path = log_of(tmp_path / "run", restarts=(30,), tp=2)
    text = path.read_text()
    path.write_text(text.replace('"world_size": 8, ', ""))
    with pytest.raises(DataError, match=r"does not say on how many GPUs .* --calibrate-gpus"):
        fit([path], h100s(8), model, None)
    path.write_text(text.replace("tp2_sp_pp1_dp4", "tp4_sp_pp1_dp2"))
    with pytest.raises(DataError, match=r"ends with steps of tp4_sp_pp1_dp2, but .* says tp2_sp_pp1_dp4"):
        fit([path], h100s(8), model, None)
    path.write_text(text.replace("tp2_sp_pp1_dp4", "tp4_sp_pp1_dp2", 1))
    (log,) = fit([path], h100s(8), model, None).logs
    assert (log.steps_used, log.steps_left_out) == (30 - LEFT_OUT, 30 + LEFT_OUT)


@pytest.mark.parametrize("value", [None, "nan", -1.0, True])
def test_step_times_that_are_no_times(value: object, tmp_path: Path, model: Path) -> None:
    """Refused, not averaged."""
    path = log_of(tmp_path / "run")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[20]["step_time_s"] = value
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match="step_time_s="):
        fit([path], h100s(8), model, 8)


FIT = (
    '{"format": 1, "gpu": "h100", "efficiency": {"low": %g, "expected": 0.5, '
    '"high": 0.6, "memory_factor": %g, "source": ""}}'
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        FIT % (1, 1),
        FIT % (0.1, 0),
    ],
)
def test_damaged_fits(text: str, tmp_path: Path) -> None:
    """One line each."""
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"--fit .* cannot be read"):
        read_fit(path, "h100")
