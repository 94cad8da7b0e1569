"""The live block: what it knows from records, how it fits a terminal, and `cptron watch` on the same records."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from terminal import Terminal, shown

from cptron.plan.device_names import gpu_of_device
from cptron.report.block import block
from cptron.report.follow import Follower
from cptron.report.live import Live
from cptron.report.screen import Screen, is_screen
from cptron.report.sinks import Record, scalars
from cptron.report.status import Status
from cptron.report.watch import Watched
from cptron.report.watch import main as watch

H100 = "NVIDIA H100 80GB HBM3"


def start(device_name: str = H100, **more: Any) -> Record:
    facts = {"device": "cuda", "device_name": device_name, "precision": "bf16", "world_size": 4}
    return {"kind": "start", "step": 0, **facts, **more}


def step(number: int, **more: Any) -> Record:
    return {
        "kind": "step",
        "step": number,
        "tokens_total": number * 1000,
        "loss_nats_per_token": 2.5,
        "loss_nats_per_token/law": 2.25,
        "loss_nats_per_token/web": 2.75,
        "lr": 1e-5,
        "grad_norm": 0.83,
        "step_time_s": 2.0,
        "tokens_per_s": 4000.0,
        "model_tflop_per_s_per_rank": 494.75,
        "mem_peak_gib": 61.25,
        **more,
    }


def evaluation(number: int, loss: float, **more: Any) -> Record:
    return {"kind": "eval", "step": number, "valid/law/loss_nats_per_token": loss, **more}


SLOW = {
    "kind": "straggler",
    "step": 9,
    "event": "slow",
    "rank": 3,
    "host": "n2",
    "local_rank": 1,
    "factor": 1.4,
}


def told(*records: tuple[Record, float | None], **more: Any) -> Status:
    status = Status(total_steps=100, total_tokens=100_000, cycle_steps=10, **more)
    for record, now_s in records:
        status.take(record, now_s)
    return status


def lines(status: Status, now_s: float = 0.0, width: int = 150, height: int = 40) -> dict[str, str]:
    """The block by the word that a line begins with."""
    return {text.split()[0]: text for text, _ in block(status, now_s, width, height)}


def test_every_line_says_what_the_records_say() -> None:
    finding = {"forgetting/finding": "alarm", "forgetting/action": "alert"}
    change = {
        f"forgetting/old/change_{key}": value for key, value in (("nats", 0.1), ("low", 0.05), ("high", 0.2))
    }
    status = told(
        (start(), 0.0),
        (evaluation(0, 2.5), 1.0),
        (step(8), 20.0),
        ({"kind": "save", "step": 8, "checkpoint": "c"}, 21.0),
        (step(9), 24.0),
        (evaluation(9, 2.25, **finding, **change), 30.0),
        (SLOW, 30.0),
        ({"kind": "guard", "step": 9}, 30.0),
    )
    found = lines(status, now_s=31.0)
    assert "9 of 100  9.0%" in found["step"] and "9.00k tokens of 100k" in found["step"]
    assert "1.00k tokens/s/GPU  MFU 50.0% causal  (model FLOPs; h100 bf16, 989.5 TFLOP/s)" in found["speed"]
    assert "2.5000  law 2.2500  web 2.7500  lr 1.00e-05  grad_norm 0.830" in found["loss"]
    assert "law 2.2500 (-0.2500 since 0)  at step 9" in found["valid"]
    assert "61.25 GiB  peak of the GPU of rank 0" in found["memory"]
    assert "step 8  1 steps ago, 0:10" in found["saved"]
    assert "ALARM" in found["forget"] and "+0.1000 [+0.0500, +0.2000]" in found["forget"]
    assert "rank 3 on n2, local rank 1: 1.40 times its peers" in found["slow"] and "guards" in found
    alarms = [text.split()[0] for text, alarm in block(status, 31.0, 150) if alarm]
    assert alarms == ["forget", "slow"]
    assert "no record for 0:07" not in found["time"] and "no record for 1:40" in lines(status, 130.0)["time"]


def test_the_pace_begins_anew_with_a_start() -> None:
    """Days between a stop and the next start at the same step are nobody's pace."""
    status = told((start(), 0.0), (step(1), 2.0), (step(2), 4.0))
    status.take(start(step=2), 2e5)
    status.take(step(3), 2e5 + 2.0)
    assert status.pace_s() == (2.0, False)


def test_time_left_is_a_bound_until_a_whole_cycle_was_seen() -> None:
    """A cycle of ten steps of 2 s, and an evaluation of 30 s in each."""
    status, now_s = told((start(), 0.0)), 0.0
    assert status.time_left_s() == (None, False)
    for number in range(1, 31):
        now_s += 2.0 + (30.0 if number % 10 == 1 and number > 1 else 0.0)
        status.take(step(number), now_s)
        left_s, is_whole = status.time_left_s()
        assert is_whole == (number > 10)
        if number <= 10:
            assert left_s == pytest.approx(2.0 * (100 - number))
            assert f"{'+' if number else ''}" in lines(status, now_s)["time"]
        else:
            assert left_s == pytest.approx(5.0 * (100 - number))
    assert "5.00 with evaluations and saves" in lines(status, now_s)["time"]


def test_a_new_start_and_a_step_back_forget_what_they_have_left() -> None:
    status = told(
        (start(), 0.0), *((step(n), 2.0 * n) for n in range(1, 20)), (evaluation(19, 2.0), 40.0), (SLOW, 41.0)
    )
    status.take({"kind": "save", "step": 15, "checkpoint": "late"}, 42.0)  # written while training went on
    assert status.step == 19 and status.saved_step == 15
    status.take(step(6), 50.0)  # after a rollback
    assert status.step == 6 and not status.evaluated and status.pace_s() == (2.0, False)
    status.take(start(step=5), 60.0)
    assert status.step == 5 and not status.slow and not status.last and status.starts == 2


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (H100, "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_a_utilisation_needs_a_gpu_that_is_known(name: str, known: str | None) -> None:
    gpu = gpu_of_device(name)
    assert (gpu.name if gpu else None) == known
    speed = lines(told((start(name), 0.0), (step(1), 1.0)))["speed"]
    assert ("MFU" in speed) == (known is not None)


@given(st.integers(1, 200), st.integers(1, 20))
def test_the_block_fits_whatever_the_terminal(width: int, height: int) -> None:
    status = told((start(), 0.0), (evaluation(0, 2.5), 1.0), (step(8), 20.0), (SLOW, 21.0))
    found = block(status, 22.0, width, height)
    assert 0 < len(found) <= height and all(len(text) <= width for text, _ in found)
    assert any(alarm for _, alarm in found) or height == 1


class FakeTty(io.StringIO):
    """A stream that is a terminal of a size which can change."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


def test_notes_stay_above_the_block_also_where_the_terminal_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    size = [os.terminal_size((100, 30))]
    monkeypatch.setattr(os, "get_terminal_size", lambda _: size[0])
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = FakeTty()
    live = Live(told((start(), 0.0)), Screen(stream))
    for number in (1, 2, 3):
        live.take(step(number))
        live.note(f"note {number}")
    live.take(SLOW)
    terminal = shown(stream.getvalue().replace("\n", "\r\n"), 100, 30)
    assert [row for row in terminal.rows if row.startswith("note")] == ["note 1", "note 2", "note 3"]
    assert sum(row.startswith("step ") for row in terminal.rows) == 1 and terminal.rows[3].startswith(
        "step     3 of"
    )
    assert terminal.colours == ["31", "0"]

    # a terminal of 40 columns has spread the old block over more rows
    size[0] = os.terminal_size((40, 60))
    narrow = Terminal(40, 60)
    narrow.write("\r\n".join(terminal.rows))
    stream.truncate(0)
    stream.seek(0)
    live.note("note 4")
    narrow.write(stream.getvalue().replace("\n", "\r\n"))
    assert sum(row.startswith("step ") for row in narrow.rows) == 1
    assert [row for row in narrow.rows if row.startswith("note")] == [f"note {n}" for n in (1, 2, 3, 4)]

    monkeypatch.setenv("NO_COLOR", "1")
    plain = FakeTty()
    Screen(plain).draw([("alarm", True)])
    assert plain.getvalue() == "alarm\n"


def test_what_is_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    sizes = {"usual": (80, 24), "of a job's console": (80, 0)}
    found = {}
    for name, size in sizes.items():
        monkeypatch.setattr(os, "get_terminal_size", lambda _, size=size: os.terminal_size(size))
        found[name] = is_screen(FakeTty())
    assert found == {"usual": True, "of a job's console": False} and not is_screen(io.StringIO())
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    monkeypatch.setenv("TERM", "dumb")
    assert not is_screen(FakeTty())


def test_a_file_is_followed_through_partial_lines_replacement_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == ([], False)
    text = [json.dumps({"kind": "step", "step": number}) + "\n" for number in range(4)]
    path.write_text(text[0] + text[1][:9])
    assert follower.read() == ([{"kind": "step", "step": 0}], True)
    with path.open("a") as file:
        file.write(text[1][9:] + "\x00\x00\n" + text[2])
    records, is_new = follower.read()
    assert [record["step"] for record in records] == [1, 2] and not is_new and follower.bad_lines == 1
    assert follower.read() == ([], False)
    replaced = tmp_path / "new"  # as a rollback does
    replaced.write_text(text[0] + text[3])
    replaced.replace(path)
    records, is_new = follower.read()
    assert [record["step"] for record in records] == [0, 3] and is_new and follower.bad_lines == 0
    path.write_text(text[2])  # cut off in place
    assert follower.read() == ([{"kind": "step", "step": 2}], True)


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cptron.report.follow.MOST_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"kind": "step", "step": number}) + "\n" for number in range(1000)))
    records, _ = Follower(path).read()
    assert [record["step"] for record in records] == [997, 998, 999]


CONFIG = """\
run: {dir: runs/x}
start: {checkpoint: base}
data: {seq_length: 10, sources: [{name: law, path: law, token_share: 1.0}]}
train: {steps: 100, global_batch_size: 100, micro_batch_size: 1}
"""


def test_watch_shows_the_block_of_a_run_and_its_age(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    made = 1.7e9
    monkeypatch.setattr("cptron.report.watch.time", SimpleNamespace(time=lambda: made + 100))
    written = [
        start(unix_s=made),
        *(step(n, unix_s=made + n) for n in range(1, 31)),
        {"kind": "eval", "step": 30},
    ]
    save = {"kind": "save", "step": 30, "unix_s": made + 40}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*written, save]) + "{}\n")
    assert watch([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "30 of 100  30.0%" in printed and "30.0k tokens of 100k" in printed
    assert "saved    step 30  0 steps ago, 1:00" in printed and "no record for 1:00" in printed
    assert "ETA 1:10" in printed and "1 line(s) of metrics.jsonl are no records" in printed
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "stop", "step": 30, "reason": "stopped by SIGTERM"}) + "\n")
    watched = Watched(tmp_path)
    watched.look()
    assert watched.status.ending == "stopped by SIGTERM"


def test_times_of_day_are_no_metrics() -> None:
    assert "train/unix_s" not in dict(scalars(step(1, unix_s=1.0)))
