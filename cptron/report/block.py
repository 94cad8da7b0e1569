"""The block of a few lines that shows a run: the same for `cptron train` on a terminal and for `cptron watch`.

Place in the flow: `screen` draws what is made here of a `Status`. Invariant: no line is longer than asked for, and what
is not known is not shown: no guess, no zero in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cptron.report.console import compact, duration, finding_text
from cptron.report.status import Status, eval_losses, number, source_losses

BAR = 30
LABEL = 9
FRESH_S = 5.0
"""A record that is older than this, and than some steps take, is told its age."""


class Line(NamedTuple):
    """One line: what it is about, its parts from the most to the least important, and whether to be alarmed."""

    label: str
    parts: Sequence[str]
    alarm: bool = False


def block(status: Status, now_s: float, width: int, height: int = 100) -> list[tuple[str, bool]]:
    """Lines of at most `width` characters, at most `height` of them, each with whether it is an alarm. Parts of a line
    that have no room are left out whole; `now_s` is of the clock that the status was told."""
    lines = [line for line in _lines(status, now_s) if line.parts]
    if len(lines) > height:  # alarms stay
        kept = [line for line in lines if line.alarm][: max(0, height - 1)]
        calm = [line for line in lines if not line.alarm][: max(0, height - len(kept))]
        lines = [line for line in lines if line in calm or line in kept]
    return [(_fitted(line, width), line.alarm) for line in lines]


def _lines(status: Status, now_s: float) -> list[Line]:
    return [
        Line("step", _progress(status)),
        Line("time", _time(status, now_s)),
        Line("speed", _speed(status)),
        Line("loss", _loss(status)),
        Line("valid", _valid(status)),
        Line("memory", _memory(status)),
        Line("saved", _saved(status, now_s)),
        Line("forget", *_forgetting(status)),
        Line("guards", [f"{status.guarded} batch(es) judged, see the lines above"] if status.guarded else []),
        *(Line("slow", [_slow(record)], alarm=True) for _, record in sorted(status.slow.items())),
    ]


def _fitted(line: Line, width: int) -> str:
    text = line.label.ljust(LABEL) + line.parts[0]
    for part in line.parts[1:]:
        if len(text) + 2 + len(part) > width:
            break
        text += f"  {part}"
    return text if len(text) <= width else text[: max(0, width - 1)] + "~" * (width > 0)


def _progress(status: Status) -> list[str]:
    done = min(1.0, status.step / max(1, status.total_steps))
    filled = int(done * BAR)
    parts = [
        f"{status.step:,} of {status.total_steps:,}",
        f"{done:.1%}",
        f"[{'#' * filled}{'.' * (BAR - filled)}]",
    ]
    if status.last:
        tokens = f"{compact(status.last['tokens_total'])} tokens" if "tokens_total" in status.last else ""
        parts.append(
            f"{tokens} of {compact(status.total_tokens)}" if tokens and status.total_tokens else tokens
        )
    return parts


def _time(status: Status, now_s: float) -> list[str]:
    if status.ending:
        return [status.ending]
    left_s, is_whole = status.time_left_s()
    parts = []
    if left_s is not None and status.last:
        # a mean over less than a cycle has not seen what an evaluation and a save take
        parts.append(f"ETA {duration(left_s)}" if is_whole else f"ETA {duration(left_s)}+")
        parts.append(f"{number(status.last, 'step_time_s'):.2f} s/step")
        pace_s, _ = status.pace_s()
        if is_whole:
            parts.append(f"{pace_s:.2f} with evaluations and saves")
        else:
            parts.append("(+ evaluations and saves, not measured yet)")
    if status.seen_s is not None and status.last:
        quiet_s = now_s - status.seen_s
        if quiet_s > max(FRESH_S, 3 * number(status.last, "step_time_s")):
            parts.insert(0, f"no record for {duration(quiet_s)}")
    return parts


def _speed(status: Status) -> list[str]:
    last = status.last
    if "tokens_per_s" not in last:
        return []
    unit = "GPU" if status.on_gpu else "rank"
    parts = [f"{compact(number(last, 'tokens_per_s') / max(1, status.world_size))} tokens/s/{unit}"]
    if (used := status.utilisation()) is not None:
        parts += [f"MFU {used:.1%} causal", f"(model FLOPs; {status.peak_of})"]
    elif "model_tflop_per_s_per_rank" in last:
        tflop = number(last, "model_tflop_per_s_per_rank")
        parts.append(f"{tflop:.3g} TFLOP/s/{unit} (model FLOPs, causal)")
    return [*parts, f"{compact(number(last, 'tokens_per_s'))} tokens/s in all"]


def _loss(status: Status) -> list[str]:
    last = status.last
    if not last:
        return []
    by_source = [f"{name} {loss:.4f}" for name, loss in source_losses(last).items()]
    grad_norm = f"grad_norm {number(last, 'grad_norm'):.3f}"
    total = f"{number(last, 'loss_nats_per_token'):.4f}"
    return [total, *(by_source if len(by_source) > 1 else []), f"lr {number(last, 'lr'):.2e}", grad_norm]


def _valid(status: Status) -> list[str]:
    parts = []
    for name, loss in eval_losses(status.evaluated).items():
        first_step, first = status.first_losses[name]
        change = f" ({loss - first:+.4f} since {first_step})" if first_step < status.evaluated["step"] else ""
        parts.append(f"{name} {loss:.4f}{change}")
    return [*parts, f"at step {status.evaluated['step']:,}"] if parts else []


def _memory(status: Status) -> list[str]:
    if "mem_peak_gib" not in status.last:
        return []
    what = "peak of the GPU of rank 0" if status.on_gpu else "peak of the process of rank 0"
    return [f"{number(status.last, 'mem_peak_gib'):.2f} GiB", what]


def _saved(status: Status, now_s: float) -> list[str]:
    if status.saved_step is None:
        return ["nothing yet"] if status.last else []
    ago = f"{max(0, status.step - status.saved_step):,} steps ago"
    if status.saved_at_s is not None and not status.ending:
        ago += f", {duration(max(0.0, now_s - status.saved_at_s))}"
    return [f"step {status.saved_step:,}", ago]


def _forgetting(status: Status) -> tuple[list[str], bool]:
    record = status.evaluated
    if "forgetting/finding" not in record:
        return [], False
    parts = [finding_text(record)]
    if "forgetting/old/change_nats" in record:
        change, low, high = (
            number(record, f"forgetting/old/change_{end}") for end in ("nats", "low", "high")
        )
        parts.append(f"old data {change:+.4f} [{low:+.4f}, {high:+.4f}]")
    return parts, record["forgetting/finding"] in ("alarm", "hold")


def _slow(record: dict[str, object]) -> str:
    return (
        f"rank {record['rank']} on {record['host']}, local rank {record['local_rank']}: "
        f"{float(str(record['factor'])):.2f} times its peers"
    )
