"""When a run stops for its time: early enough for what a save and a few steps have been seen to take, by a clock that
nobody sets."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cptron.config.schema import RuntimeConfig
from cptron.runtime import pace as pace_module
from cptron.runtime.deadline import JOB_END, STARTED, Deadline, Limit
from cptron.runtime.pace import EVALUATION, SAVE, Pace


class Clock:
    """`time.monotonic` in the test's hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Monotonic time that passes when told to."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    assert pace_module.time.monotonic is clock
    yield clock


def stepped(pace: Pace, clock: Clock, *durations_s: float) -> None:
    """Take steps of these durations."""
    for duration_s in durations_s:
        clock.now_s += duration_s
        pace.step_done()


def when_near(deadline: Deadline, clock: Clock, *, evaluation_is_due: bool = False) -> float:
    """Seconds until the deadline is called near, by trying every one."""
    start_s = clock.now_s
    while not deadline.near(evaluation_is_due=evaluation_is_due):
        clock.now_s += 1.0
        assert clock.now_s < start_s + 1e4
    return clock.now_s - start_s


def test_without_limits_never(clock: Clock) -> None:
    """However long it takes."""
    deadline = Deadline(RuntimeConfig(), Pace(), {})
    clock.now_s += 1e9
    assert deadline.near() == Limit.NONE and deadline.notes == []


def test_the_margin_before_anything_was_seen(clock: Clock) -> None:
    """Ten minutes and a margin of one leave nine."""
    deadline = Deadline(RuntimeConfig(time_limit_minutes=10, stop_margin_s=60), Pace(), {})
    assert when_near(deadline, clock) == 540


def test_saves_steps_and_evaluations_that_were_seen(clock: Clock) -> None:
    """The longest save, three of the longest steps, and the evaluation where one comes first."""
    pace = Pace()
    deadline = Deadline(RuntimeConfig(time_limit_minutes=60, stop_margin_s=60), pace, {})
    stepped(pace, clock, 500.0, 20.0, 10.0, 10.0)  # the first belongs to the start
    for phase, durations_s in ((SAVE, (200.0, 300.0, 100.0)), (EVALUATION, (80.0, 50.0))):
        for duration_s in durations_s:
            with pace.during(phase):
                clock.now_s += duration_s
    spent_s = clock.now_s - pace.started_s
    kept_s = clock.now_s
    assert when_near(deadline, clock) == 3600 - spent_s - 300 - 3 * 20
    clock.now_s = kept_s
    assert when_near(deadline, clock, evaluation_is_due=True) == 3600 - spent_s - 300 - 3 * 20 - 80


def test_a_save_that_goes_on_beside_the_steps(clock: Clock) -> None:
    """It counts until it is published; and while one is unfinished, the last save has to wait for it."""
    pace = Pace()
    deadline = Deadline(RuntimeConfig(time_limit_minutes=60, stop_margin_s=60), pace, {})
    stepped(pace, clock, 500.0)
    pace.save_begins()
    with pace.during(SAVE):
        clock.now_s += 5
    clock.now_s += 195
    pace.save_ended()
    kept_s = clock.now_s
    assert when_near(deadline, clock) == 3600 - 700 - 200
    clock.now_s = kept_s
    pace.save_begins()
    assert when_near(deadline, clock) == 3600 - 700 - 2 * 200


def test_the_end_of_the_job(clock: Clock) -> None:
    """From SLURM's environment, said in a note; the machine's clock is read once."""
    deadline = Deadline(RuntimeConfig(stop_margin_s=100), Pace(), {JOB_END: "50600"}, now_s=50000.0)
    (note,) = deadline.notes
    assert "10 min" in note and JOB_END in note and "100 s" in note
    assert when_near(deadline, clock) == 500
    assert deadline.near() == Limit.JOB_END


@pytest.mark.parametrize("text", ["49999", "0", "-1", "soon", "nan", "inf", "", "1e300", "50600000000"])
def test_a_job_end_that_is_none(text: str, clock: Clock) -> None:
    """Past, no number, or milliseconds: said, and not obeyed."""
    deadline = Deadline(RuntimeConfig(), Pace(), {JOB_END: text}, now_s=50000.0)
    (note,) = deadline.notes
    assert f"{JOB_END}={text}" in note and "not watched" in note
    clock.now_s += 1e9
    assert deadline.near() == Limit.NONE


def test_the_end_of_the_job_can_be_left_alone(clock: Clock) -> None:
    """`runtime.stop_before_job_end: false`."""
    deadline = Deadline(RuntimeConfig(stop_before_job_end=False), Pace(), {JOB_END: "50001"}, now_s=50000.0)
    assert deadline.near() == Limit.NONE and deadline.notes == []


def test_a_restart_has_what_is_left(clock: Clock) -> None:
    """The limit is of the command, not of the ranks that were started again."""
    runtime = RuntimeConfig(time_limit_minutes=10, stop_margin_s=0)
    assert when_near(Deadline(runtime, Pace(), {STARTED: str(clock.now_s - 400)}), clock) == 200


def test_a_phase_is_no_part_of_the_step_around_it(clock: Clock) -> None:
    """An evaluation between two steps does not make the next one slow."""
    pace = Pace()
    stepped(pace, clock, 1.0, 2.0)
    with pace.during(EVALUATION):
        assert pace.entered == (EVALUATION, clock.now_s)
        clock.now_s += 100
    stepped(pace, clock, 2.0)
    assert pace.slow_step_s() == pace.median_step_s() == 2.0
    assert pace.longest_s(EVALUATION) == 100 and pace.longest_s(SAVE) == 0
