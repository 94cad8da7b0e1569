"""What rank 0 prints while it trains.

Place in the flow: the loop hands it the records it also hands to the sinks. A terminal gets the live block
(`live`), a log file one line a record; both show loss, tokens/s and the time left. Invariant: prints, computes
nothing that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cptron.report.live import Live


class Console:
    """Progress of steps `start_step + 1` to `total_steps`. Not `enabled` (ranks other than 0): prints
    nothing. With a live view, steps and notes go through it.

    `step` in a record is the number of optimizer steps done.
    """

    def __init__(self, total_steps: int, enabled: bool, live: Live | None = None) -> None:
        self.total_steps = total_steps
        self.enabled = enabled
        self._first: tuple[int, float] | None = (
            None  # step and time of the first record: what the ETA counts from
        )
        self._baseline: dict[
            str, tuple[int, float]
        ] = {}  # validation set -> step and loss when first evaluated
        self._live = live

    def take(self, record: dict[str, Any]) -> None:
        """Show in the live view what any record changes; nothing without one."""
        if self._live is not None:
            self._live.take(record)

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a step: loss, learning rate, gradient norm, tokens/s, seconds a step, time left."""
        if not self.enabled or self._live is not None:
            return
        step = int(record["step"])
        left = f"ETA {duration(self._time_left_s(step, record['step_time_s']))}"
        loss, lr = f"loss {record['loss_nats_per_token']:.4f}", f"lr {record['lr']:.2e}"
        speed = f"{compact(record['tokens_per_s'])} tok/s"
        width = len(str(self.total_steps))
        place = f"step {step:>{width}}/{self.total_steps} {step / self.total_steps:5.1%}"
        norm, pace = f"grad_norm {record['grad_norm']:.3f}", f"{record['step_time_s']:.2f} s/step"
        print("  ".join((place, loss, lr, norm, f"{speed:>12}", pace, left)), flush=True)

    def eval(self, record: Mapping[str, Any]) -> None:
        """Show each validation set: loss, perplexity, and the change since it was first evaluated here."""
        step = int(record["step"])
        losses = {name: float(record[f"valid/{name}/loss_nats_per_token"]) for name in valid_sets(record)}
        width = max(map(len, losses), default=0)
        for name, loss in losses.items():
            first_step, first_loss = self._baseline.setdefault(name, (step, loss))
            line = f"eval at step {step}  {name:<{width}}  {loss:.4f} nats/token"
            line += f"  perplexity {record[f'valid/{name}/perplexity']:.2f}"
            self.note(
                line + (f"  {loss - first_loss:+.4f} since step {first_step}" if step > first_step else "")
            )

        for line in forgetting_lines(record):
            self.note(f"eval at step {step}  {line}")

    def note(self, text: str) -> None:
        """Print a line of its own, above the live view where there is one."""
        if self._live is not None:
            self._live.note(text)
        elif self.enabled:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the last state of the live view on the screen."""
        if self._live is not None:
            self._live.close()

    def _time_left_s(self, step: int, step_time_s: float) -> float:
        """Remaining steps at the mean pace so far, evaluations and saves included."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        pace = (now - first_time) / (step - first_step) if step > first_step else step_time_s
        return pace * max(0, self.total_steps - step)


def guard_line(record: Mapping[str, Any]) -> str:
    """What a guard has found and done, in one line."""
    first, batch = record["first"], record["batch"]
    dropped = f"batch {batch}" if first == batch else f"batches {first} to {batch}"
    done = {
        "log": "trained on",
        "skip": f"{dropped} dropped",
        "rollback": f"back to step {record['to_step']}, will drop {dropped}",
        "drop": f"{dropped} dropped",
    }[record["event"]]
    if record["cause"] == "spike":
        z = f"z {record['z_loss']:.1f} and {record['z_grad_norm']:.1f}"
        what = f"loss {record['loss_nats_per_token']:.4f}, grad_norm {record['grad_norm']:.4g} ({z})"
    else:
        what = record["found"]
    return f"{record['cause']} at step {record['tried_step']}, batch {batch}: {what}; {done}"


def forgetting_lines(record: Mapping[str, Any]) -> list[str]:
    """What the forgetting monitor has found and done at an evaluation; nothing without one."""
    lines = [f"forgetting monitor, {record['forgetting/base']}"] if "forgetting/base" in record else []
    for what, key in (("old", "forgetting/old"), ("new", "learning/new")):
        for against, prefix in (("base", f"{key}/change"), ("control", f"{key}/control_change")):
            if f"{prefix}_nats" in record:
                change, low, high = (record[f"{prefix}_{end}"] for end in ("nats", "low", "high"))
                lines.append(
                    f"{what} data {change:+.4f} nats/token against the {against} [{low:+.4f}, {high:+.4f}]"
                )
    for key, score in record.items():
        if key.startswith("probe/") and key.endswith("/score_nats"):
            change = record.get(key.replace("score_nats", "change_nats"))
            since = "" if change is None else f" ({change:+.4f} against the base)"
            lines.append(f"probe {key.split('/')[1]} {score:+.4f} nats/token{since}")
    if record.get("forgetting/finding") in ("above", "alarm", "hold", "clear"):
        lines.append(f"forgetting: {finding_text(record)}")
    lines += record.get("forgetting/unknown", ())
    return [*lines, *(f"alarm, {alarm}" for alarm in record.get("forgetting/alarms", ()))]


FINDINGS = {
    "none": "not measured",
    "grace": "in the grace window",
    "quiet": "within epsilon",
    "above": "beyond epsilon, not yet for long enough",
    "alarm": "ALARM, beyond epsilon",
    "hold": "the alarm goes on",
    "clear": "the alarm is over",
}
"""Of the forgetting monitor, in words."""


def finding_text(record: Mapping[str, Any]) -> str:
    """A finding of the forgetting monitor with what is done about it."""
    text, action = FINDINGS[record["forgetting/finding"]], record.get("forgetting/action", "none")
    why = record.get("forgetting/why", "")
    return text if action == "none" else f"{text}: {action.replace('_', ' ')}{f' ({why})' if why else ''}"


def mix_line(record: Mapping[str, Any]) -> str:
    """What an online mixer asks for from now on, in one line."""
    asked = {key.partition("/")[2]: value for key, value in record.items() if key.startswith("asked/")}
    shares = ", ".join(f"{name} {share:.3f}" for name, share in asked.items())
    refused = f" ({record['refused']}; kept)" if record["refused"] else ""
    return f"mix after batch {record['batch']}: {shares}{refused}"


def straggler_line(record: Mapping[str, Any]) -> str:
    """A slow rank with its machine, or that it is slow no more, in one line."""
    who = f"rank {record['rank']} ({record['host']}, local rank {record['local_rank']}; {record['place']})"
    how = f"{record['own_time_s']:.3f} s of its own in a step, {record['factor']:.2f} times its peers' "
    how += f"{record['peers_time_s']:.3f} s"
    found = "straggler" if record["event"] == "slow" else "no straggler any more"
    return f"{found} at step {record['step']}: {who}: {how}"


def valid_sets(record: Mapping[str, Any]) -> list[str]:
    """Names of the validation sets in an evaluation record, in its order."""
    return [
        key.split("/")[1]
        for key in record
        if key.startswith("valid/") and key.endswith("/loss_nats_per_token")
    ]


def duration(seconds: float) -> str:
    """`4:05`, `1:02:03` or `2d 03:04`."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def compact(value: float) -> str:
    """Three digits and a unit: `812`, `12.3k`, `1.24M`."""
    for limit, unit in ((999.5e9, "T"), (999.5e6, "G"), (999.5e3, "M"), (999.5, "k")):
        if value >= limit:
            scaled = value / {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}[unit]
            return f"{scaled:#.3g}".rstrip(".") + unit
    return f"{value:.0f}" if value >= 99.5 or value == int(value) else f"{value:.3g}"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Plain text columns under `headers`; columns of numbers are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *cells, strict=True))
    lines = [[""] * len(headers) for _ in range(len(cells) + 1)]
    for i, column in enumerate(columns):
        width = max(map(len, column))
        numeric = bool(cells) and all(_is_number(cell) for cell in column[1:])
        for line, cell in zip(lines, column, strict=True):
            line[i] = cell.rjust(width) if numeric else cell.ljust(width)
    rule = ["-" * len(cell) for cell in lines[0]]
    return "\n".join("  ".join(line).rstrip() for line in [lines[0], rule, *lines[1:]])


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:2].lstrip("+-")[:1].isdigit() or text in ("", "-", "nan", "inf")
