"""Where a run stands, from its records: what the live block and `cptron watch` show.

Place in the flow: rank 0's console hands in each record as it is made, `watch` as it is read from the disk. Invariant:
made of records and the clock alone, so that both show the same; a record of an earlier step means that the run went
back, and what was known of later steps is forgotten.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cptron.config.schema import Config
from cptron.plan.device_names import gpu_of_device

Record = dict[str, Any]

LEAST_STEPS = 20
"""Steps that a pace is taken over, at least; more where evaluations or saves are further apart."""
MOST_RECORDS = 512
STEP_TIMES = 32


@dataclass
class Status:
    """What is known of a run. Times are seconds of one clock, whichever the caller has."""

    total_steps: int
    start_step: int = 0
    total_tokens: int = 0
    """Of the whole run, if no batch is dropped; 0: unknown."""
    cycle_steps: int = 0
    """Steps in which everything happens once: the longer interval of evaluations and saves."""
    run: str = ""
    peak_tflop_per_s: float = 0.0
    """Of the matrix products of one GPU; 0: unknown."""
    peak_of: str = ""
    """What the peak is that of."""
    on_gpu: bool = False
    world_size: int = 0
    step: int = 0
    last: Record = field(default_factory=dict)
    """The last step."""
    evaluated: Record = field(default_factory=dict)
    first_losses: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Validation set -> step and loss where it was first evaluated."""
    saved_step: int | None = None
    saved_at_s: float | None = None
    slow: dict[int, Record] = field(default_factory=dict)
    """Stragglers by rank."""
    guarded: int = 0
    """Batches that a guard had something to say of."""
    starts: int = 0
    ending: str = ""
    seen_s: float | None = None
    """When the last record came."""
    _marks: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=MOST_RECORDS))
    _step_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=STEP_TIMES))

    @classmethod
    def of(cls, config: Config, run: str, start_step: int = 0) -> Status:
        """Of a run that has not taken a step here."""
        return cls(
            total_steps=config.train.steps,
            start_step=start_step,
            step=start_step,
            total_tokens=config.train.steps * config.train.global_batch_size * config.data.seq_length,
            cycle_steps=max(LEAST_STEPS, config.eval.every_steps, config.checkpoint.every_steps),
            run=run,
        )

    def take(self, record: Record, now_s: float | None) -> None:
        """Learn of one record. `now_s` is when it was made, if that is known."""
        kind = record["kind"]
        if (
            kind in ("start", "step") and record["step"] < self.step
        ):  # an asynchronous save is of an earlier step
            self._go_back(record["step"])
        if now_s is not None:
            self.seen_s = now_s
        if kind == "start":
            self._start(record)
        elif kind == "step":
            self.step, self.last = record["step"], record
            self._step_times_s.append(number(record, "step_time_s"))
            if now_s is not None:
                self._marks.append((self.step, now_s))
        elif kind == "eval":
            self.evaluated = record
            for name, loss in eval_losses(record).items():
                self.first_losses.setdefault(name, (record["step"], loss))
        elif kind == "save":
            self.saved_step, self.saved_at_s = record["step"], now_s
        elif kind == "guard":
            self.guarded += 1
        elif kind == "straggler":
            if record["event"] == "slow":
                self.slow[record["rank"]] = record
            else:
                self.slow.pop(record["rank"], None)
        elif kind == "stop":
            self.ending = str(record["reason"])

    def pace_s(self) -> tuple[float, bool]:
        """Seconds a step, evaluations and saves included, over the last whole cycle; and whether it saw a whole one.
        Before two records are there, the time of the step alone. 0: nothing is known."""
        if not self._marks or self._marks[-1][0] == self._marks[0][0]:
            times = sorted(self._step_times_s)
            return (times[len(times) // 2] if times else 0.0), False
        last_step, last_s = self._marks[-1]
        begin = self._marks[0]
        for mark in self._marks:  # the latest that is a whole cycle ago
            if last_step - mark[0] < self.cycle_steps:
                break
            begin = mark
        return (last_s - begin[1]) / (last_step - begin[0]), last_step - begin[0] >= self.cycle_steps

    def time_left_s(self) -> tuple[float | None, bool]:
        """Of the whole run at that pace, None if nothing is known; and whether evaluations and saves are in it."""
        pace_s, is_whole = self.pace_s()
        left = max(0, self.total_steps - self.step)
        return (pace_s * left if pace_s or not left else None), is_whole

    def utilisation(self) -> float | None:
        """Model FLOPs utilisation, from 0 to 1, causal attention; None without a known peak."""
        if not self.peak_tflop_per_s or "model_tflop_per_s_per_rank" not in self.last:
            return None
        return number(self.last, "model_tflop_per_s_per_rank") / self.peak_tflop_per_s

    def _start(self, record: Record) -> None:
        """The processes of the run have begun, or begun again: the pace starts anew."""
        self.starts += 1
        self.ending = ""
        self.start_step = record["step"]
        self.world_size = int(record.get("world_size", 0))
        self.on_gpu = record.get("device") == "cuda"
        self._marks.clear()
        self._step_times_s.clear()
        self.slow.clear()
        gpu = gpu_of_device(str(record.get("device_name", "")))
        precision = str(record.get("precision", "bf16"))
        if gpu is not None:
            self.peak_tflop_per_s = gpu.peak(precision) / 1e12
            self.peak_of = f"{gpu.name} {precision}, {self.peak_tflop_per_s:g} TFLOP/s"

    def _go_back(self, step: int) -> None:
        self.step = step
        if self.last and self.last["step"] > step:
            self.last = {}
        if self.evaluated and self.evaluated["step"] > step:
            self.evaluated = {}
        self._marks.clear()


def number(record: Record, key: str) -> float:
    """A value of a record as a number: those that JSON lacks are stored as text."""
    return float(record[key])


def eval_losses(record: Record) -> dict[str, float]:
    """Validation set -> nats per token, in the record's order."""
    return {
        key.split("/")[1]: number(record, key)
        for key in record
        if key.startswith("valid/") and key.endswith("/loss_nats_per_token")
    }


def source_losses(record: Record) -> dict[str, float]:
    """Source -> nats per token in the step, in the record's order."""
    head = "loss_nats_per_token/"
    return {key.removeprefix(head): number(record, key) for key in record if key.startswith(head)}
