"""Sinks: what was written can be read back by each format's own reader, and a resume leaves no step twice."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cptron.config.load import config_to_dict
from cptron.config.schema import Config, DataConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from cptron.errors import ConfigError, DataError
from cptron.report.sinks import JsonlSink, Record, TensorBoardSink, open_sinks, read_records, scalars


def step(number: int, loss: float = 2.0) -> Record:
    return {"kind": "step", "step": number, "loss_nats_per_token": loss, "loss_nats_per_token/web": loss + 1}


def evaluation(number: int) -> Record:
    return {"kind": "eval", "step": number, "tokens_total": 640, "valid/v/loss_nats_per_token": 1.5}


def config(log: LogConfig, dir: str = "runs/a") -> Config:
    return Config(
        run=RunConfig(dir=dir),
        data=DataConfig(seq_length=8, sources=()),
        train=TrainConfig(steps=1, global_batch_size=1),
        optim=OptimConfig(lr=1e-4),
        log=log,
    )


VALUES = st.one_of(
    st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.integers(0, 9), max_size=12),
    extra=st.dictionaries(st.text("abc/", min_size=1), VALUES, max_size=3),
    resume=st.integers(1, 10),
    torn=st.sampled_from([b"", b"{", b'{"kind": "step", "step": 1']),
)
def test_a_resumed_file_holds_exactly_the_records_up_to_the_resumed_step(
    tmp_path: Path, steps: list[int], extra: dict[str, Any], resume: int, torn: bytes
) -> None:
    path = tmp_path / "metrics.jsonl"
    records: list[Record] = [{"kind": "step", "step": number} | extra for number in steps]
    sink = JsonlSink(path, 0)
    for record in records:
        sink.write(record)
        assert read_records(path)[-1] == record  # flushed at once
    sink.close()
    with path.open("ab") as file:
        file.write(torn)  # a crash in the middle of a line
    again = JsonlSink(path, resume)
    again.write(step(resume + 1))
    again.close()
    assert read_records(path) == [r for r in records if r["step"] <= resume] + [step(resume + 1)]
    assert [name.name for name in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_starts_over_starts_an_empty_file(tmp_path: Path) -> None:
    for _ in range(2):
        sink = JsonlSink(tmp_path / "m" / "metrics.jsonl", 0)
        sink.write(evaluation(0))
        sink.close()
    assert read_records(tmp_path / "m" / "metrics.jsonl") == [evaluation(0)]


def test_lines_are_strict_json_even_for_non_finite_numbers(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "m.jsonl", 0)
    sink.write({"kind": "step", "step": 1, "a": math.nan, "b": -math.inf, "c": "é"})
    sink.close()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "m.jsonl").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == {
        "kind": "step",
        "step": 1,
        "a": "nan",
        "b": "-inf",
        "c": "é",
    }


@pytest.mark.parametrize("line", ["not json", "[]", "3", '{"step": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(step(1)) + "\n" + line + "\n" + json.dumps(step(2)) + "\n")
    with pytest.raises(DataError, match=r"m\.jsonl:2: not a metrics record"):
        JsonlSink(path, 5)
    assert path.read_text().count("\n") == 3


def test_scalars_leave_out_what_is_no_number() -> None:
    record = step(3) | {"checkpoint": "a", "flag": True}
    assert dict(scalars(record)) == {"train/loss_nats_per_token": 2.0, "train/loss_nats_per_token/web": 3.0}
    assert dict(scalars(evaluation(3))) == {"eval/tokens_total": 640.0, "valid/v/loss_nats_per_token": 1.5}


def test_tensorboard_reads_back_the_values_once_after_a_resume(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("torch.utils.tensorboard")
    first = TensorBoardSink(tmp_path, 0)
    for number in (1, 2, 3):
        first.write(step(number, loss=float(number)))
    first.write(evaluation(2))
    first.write({"kind": "save", "step": 2, "checkpoint": "c"})
    first.close()
    os.rename(
        next(tmp_path.iterdir()), tmp_path / "events.out.tfevents.1.host"
    )  # names hold seconds: keep the order
    second = TensorBoardSink(tmp_path, 2)
    for number in (3, 4):
        second.write(step(number, loss=10.0 * number))
    second.close()
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss_nats_per_token")] == [
        (1, 1),
        (2, 2),
        (3, 30),
        (4, 40),
    ]
    assert [(e.step, e.value) for e in events.Scalars("valid/v/loss_nats_per_token")] == [(2, 1.5)]
    assert not any(tag.startswith("save") for tag in events.Tags()["scalars"])


WANDB_RUN = """
import json, socket, sys
from pathlib import Path
from cptron.report.sinks import WandbSink

real = socket.getaddrinfo
def local_only(host, *args, **kwargs):
    assert host in ("localhost", "127.0.0.1", None), host
    return real(host, *args, **kwargs)
socket.getaddrinfo = local_only

for first in (1, 3):  # the second is a resume
    sink = WandbSink("offline", "cptron", "my-run", Path(sys.argv[1]), {"optim": {"lr": 0.5}})
    for number in (first, first + 1):
        sink.write({"kind": "step", "step": number, "loss_nats_per_token": 2.0 * number})
    sink.write({"kind": "stop", "step": number, "reason": "x"})
    sink.close()
"""


def test_wandb_offline_writes_its_files_without_account_or_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "HOME": str(tmp_path / "home")
    }
    command = [sys.executable, "-c", WANDB_RUN, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one id, two parts
    history = [row for file in files for row in wandb_history(file)]
    assert [(row["step"], row["train/loss_nats_per_token"]) for row in history] == [
        (n, 2.0 * n) for n in (1, 2, 3, 4)
    ]


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """Logged rows of a .wandb file: a 7-byte header, then protobuf records in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    blob, rows = file.read_bytes(), []
    assert blob[:4] == b":W&B" and len(blob) < 32768  # one block: no record is split or padded
    place = 7
    while place < len(blob):
        _crc, length, kind = struct.unpack_from("<IHB", blob, place)
        assert kind == 1
        record = wandb_internal_pb2.Record()
        record.ParseFromString(blob[place + 7 : place + 7 + length])
        place += 7 + length
        if record.HasField("history"):
            items = record.history.item
            rows.append(
                {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            )
    return rows


def test_open_sinks_opens_what_the_configuration_asks_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    plain = open_sinks(config(LogConfig()), tmp_path / "a", 0, {})
    plain.write(step(1))
    plain.close()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["metrics.jsonl"]
    wanted = config(LogConfig(tensorboard=True))
    both = open_sinks(wanted, tmp_path / "b", 0, config_to_dict(wanted))
    both.write(step(1))
    both.close()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize(
    ("log", "blocked", "remedy"),
    [
        (LogConfig(tensorboard=True), "torch.utils.tensorboard", "run `pip install tensorboard`"),
        (LogConfig(wandb="offline"), "wandb", "run `pip install wandb`"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: LogConfig, blocked: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(ConfigError, match=remedy):
        open_sinks(config(log), tmp_path, 0, {})


def test_a_file_that_is_rewound_goes_on_from_there(tmp_path: Path) -> None:
    """What came after is gone at once, by whatever key the file is ordered; what is written next follows."""
    path = tmp_path / "log.jsonl"
    sink = JsonlSink(path, 0, key="batch")
    for batch in range(1, 6):
        sink.write({"kind": "data", "step": 1, "batch": batch})
    sink.rewind(3)
    assert [record["batch"] for record in read_records(path)] == [1, 2, 3]
    sink.write({"kind": "data", "step": 1, "batch": 4, "again": True})
    sink.close()
    assert [record.get("again", False) for record in read_records(path)] == [False] * 3 + [True]


def test_what_cannot_be_cut_off_is_an_error_in_one_line(tmp_path: Path) -> None:
    """The disk is full, or a line has no such position."""
    path = tmp_path / "data_log.jsonl"
    sink = JsonlSink(path, 0, key="batch")
    sink.write({"kind": "data", "step": 1, "batch": 1})
    (tmp_path / "data_log.jsonl.tmp").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        sink.rewind(1)
    (tmp_path / "data_log.jsonl.tmp").rmdir()
    for value in ({}, {"batch": "1"}, {"batch": None}):
        path.write_text(json.dumps({"kind": "data", "step": 1, **value}) + "\n")
        with pytest.raises(DataError, match="batch"):
            JsonlSink(path, 1, key="batch")
