"""What happened to a run, as marks in its charts: resumes, repeated steps, faults, policy actions, gaps, checkpoints.

Place in the flow: `view` -> here -> `figure` and the table of events. Invariant: everything that the log, the journal
and the folder of checkpoints tell is there, once.
"""

from __future__ import annotations

from collections.abc import Iterator

from cptron.report.console import guard_line
from cptron.report.forgetting import action_text
from cptron.report.sinks import Record
from cptron.report.spec import Event
from cptron.report.view import View


def events_of(view: View) -> list[Event]:
    """In the order of their steps."""
    found = [*_starts(view), *_replays(view), *_faults(view), *_policies(view), *_gaps(view), *_saves(view)]
    return sorted(found, key=lambda event: event.step)


def _event(view: View, kind: str, text: str, step: float, until: float | None = None) -> Event:
    tokens, hours = view.places.one(step)
    end = None if until is None else (until, *view.places.one(until))
    return Event(kind=kind, text=text, step=step, tokens=tokens, hours=hours, run=view.index, until=end)


def _starts(view: View) -> Iterator[Event]:
    """Every start but the first, and every stop but at the end of the run."""
    first = True
    for record in view.log.events:
        if record["kind"] == "start":
            if not first or record["step"] > 0:
                yield _event(view, "resume", _start_text(record), record["step"])
            first = False
        if record["kind"] == "stop" and record["step"] != view.log.config.train.steps:
            yield _event(view, "resume", str(record["reason"]), record["step"])


def _start_text(record: Record) -> str:
    size, layout = record.get("world_size"), record.get("layout")
    ranks = f", {size} rank(s)" if size else ""
    return f"started again at step {record['step']}{ranks}{f', {layout}' if layout else ''}"


def _replays(view: View) -> Iterator[Event]:
    for left in view.log.replayed:
        first, last = left.steps[0], left.steps[-1]
        yield _event(view, "replay", f"steps {first:.0f} to {last:.0f} were made again", first, last)


def _faults(view: View) -> Iterator[Event]:
    for record in view.log.of_kind("guard"):
        yield _event(view, "fault", guard_line(record), record["tried_step"])


def _policies(view: View) -> Iterator[Event]:
    for verdict in view.log.verdicts:
        if verdict.action != "none":
            yield _event(view, "policy", action_text(verdict), verdict.step)


def _gaps(view: View) -> Iterator[Event]:
    for before, after in view.log.gaps():
        text = f"no records between step {before} and step {after}"
        yield _event(view, "gap", text, before, after)


def _saves(view: View) -> Iterator[Event]:
    """What the log says was saved, and what is there; the one that was selected."""
    states = {facts["step"]: str(facts["state"]) for facts in view.log.checkpoints}
    saved = {record["step"] for record in view.log.of_kind("save")}
    listed = {step for step in states if isinstance(step, int)}
    for step in sorted(saved | listed):
        state = states.get(step, "no longer there")
        yield _event(view, "save", f"checkpoint of step {step}: {state}", step)
    if (step := view.log.selected_step) is not None:
        yield _event(view, "selected", f"checkpoint of step {step}: chosen by cptron select", step)
