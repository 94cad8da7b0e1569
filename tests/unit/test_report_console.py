"""The console: nothing on other ranks, one line a step in a file; what a terminal gets is in test_report_live.py."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptron.report import console as console_module
from cptron.report.console import Console, compact, duration, table
from cptron.report.sinks import Record


def step_record(step: int, loss: float = 2.5) -> Record:
    return {
        "kind": "step",
        "step": step,
        "loss_nats_per_token": loss,
        "lr": 1e-5,
        "grad_norm": 0.83,
        "step_time_s": 2.0,
        "tokens_per_s": 12345.6,
    }


def eval_record(step: int, manual: float) -> Record:
    return {
        "kind": "eval",
        "step": step,
        "valid/manual/loss_nats_per_token": manual,
        "valid/manual/perplexity": 2.718281828**manual,
        "valid/manual/tokens": 100,
        "valid/web/loss_nats_per_token": 3.0,
        "valid/web/perplexity": 20.09,
    }


def test_a_file_gets_one_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(1000, enabled=True)
    console.step(step_record(1))
    console.step(step_record(2, loss=2.25))
    console.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "step    1/1000  0.1%  loss 2.5000  lr 1.00e-05  grad_norm 0.830   12.3k tok/s  2.00 s/step  ETA 33:18"
    )
    assert second.startswith("step    2/1000  0.2%  loss 2.2500")
    assert len(first) == len(second.partition("ETA")[0]) + len("ETA 33:18")


def test_the_time_left_counts_the_wall_time_between_records(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 130.0, 200.0])
    monkeypatch.setattr(console_module, "time", SimpleNamespace(monotonic=lambda: next(times)))
    console = Console(50, enabled=True)
    for step in (11, 12, 31):
        console.step(step_record(step))
    etas = re.findall(r"ETA (\S+)", capsys.readouterr().out)
    assert etas == [duration(39 * 2.0), duration(38 * 30.0), duration(19 * 100.0 / 20)]


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(10, enabled=False)
    console.step(step_record(1))
    console.eval(eval_record(1, 2.0))
    console.note("hello")
    console.close()
    assert capsys.readouterr() == ("", "")


def test_evaluations_show_the_change_since_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(10, enabled=True)
    console.eval(eval_record(0, 2.5))
    console.eval(eval_record(5, 2.25))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "eval at step 0  manual  2.5000 nats/token  perplexity 12.18"
    assert lines[1] == "eval at step 0  web     3.0000 nats/token  perplexity 20.09"
    assert lines[2].endswith("-0.2500 since step 0") and lines[3].endswith("+0.0000 since step 0")


@given(st.floats(0.01, 9e14))
def test_compact_numbers_keep_three_digits(value: float) -> None:
    text = compact(value)
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1.0)
    assert abs(float(text.rstrip("kMGT")) * scale - value) <= 0.0051 * value
    assert len(text) <= 6


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 245, 3723, 86400 * 2 + 3 * 3600 + 240)] == [
        "0:00",
        "1:00",
        "4:05",
        "1:02:03",
        "2d 03:04",
    ]


def test_tables_align_text_left_and_numbers_right() -> None:
    text = table(["set", "loss", "note"], [["manual", 2.5, "-"], ["w", "+12.25", "x y"]])
    assert text.splitlines() == [
        "set       loss  note",
        "------  ------  ----",
        "manual     2.5  -",
        "w       +12.25  x y",
    ]
    assert table(["a", "b"], []).splitlines()[0] == "a  b"
