"""Reporting as hooks: console, metrics and the HTML report, on rank 0 only.

Place in the flow: handed to the loop by `cptron train`. Invariant: never changes a run, so every rank's
actions stay equal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cptron.checkpoint.layout import saved_step
from cptron.config.load import config_to_dict
from cptron.data.log import DATA_LOG, log_record
from cptron.report.console import Console, guard_line, mix_line, straggler_line
from cptron.report.html import write_report
from cptron.report.live import open_live
from cptron.report.sinks import METRICS_FILE, JsonlSink, open_sinks, read_records
from cptron.report.status import Status
from cptron.runtime.device import device_name
from cptron.train.hooks import Action, Hook, Record
from cptron.versions import installed_versions

if TYPE_CHECKING:
    from cptron.train.setup import Run


TIMED = ("start", "step", "save", "stop")
"""Kinds of records that say when they were made."""


def report_hooks(run: Run) -> Sequence[Hook]:
    """The hooks of this rank: one on rank 0, none elsewhere."""
    return [ReportHook(run)] if run.session.ranks.is_main else []


class ReportHook(Hook):
    """Console lines, metric sinks and `report.html`."""

    def __init__(self, run: Run) -> None:
        config = run.config
        self._every_steps = max(1, config.log.every_steps)
        self._metrics = open_sinks(config, run.directory, run.state.step, config_to_dict(config))
        self._data_log = JsonlSink(run.directory / DATA_LOG, run.state.batches_drawn, key="batch")
        self._evaluated_step = _last_evaluated(run.directory)
        self._shares: dict[str, float] = {}
        status = Status.of(config, str(run.directory), run.state.step)
        if run.plan.resume_from is not None:
            status.saved_step = run.state.step
        self._console = Console(config.train.steps, enabled=True, live=open_live(status))

    def on_start(self, run: Run) -> None:
        """Say what runs, on what, from where."""
        plan, session = run.plan, run.session
        for note in plan.notes:
            self._console.note(note)
        origin = f"starting from {plan.base or plan.hugging_face or 'random weights'}"
        if plan.resume_from:
            origin = f"resuming {plan.resume_from}"
        elif plan.branch_from:
            origin = f"branching from {plan.branch_from}, with its optimizer and position in the data"
        self._console.note(
            f"{origin}; {session.ranks.world_size} rank(s), {session.topology.describe()}, {session.device.kind}/"
            f"{session.device.backend}, {run.config.train.precision}"
        )
        if run.base is not None:
            self._console.note(
                f"step-0 gate passed: probe loss {run.base.probe.loss_nats_per_token:.4f} nats per token"
            )
        self._write(
            {
                "kind": "start",
                "step": run.state.step,
                "layout": session.topology.describe(),
                "world_size": session.ranks.world_size,
                "device": session.device.kind,
                "device_name": device_name(session.device),
                "precision": run.config.train.precision,
                **{f"version/{name}": version for name, version in installed_versions().items()},
            }
        )

    def on_step(self, run: Run, record: Record) -> Action:
        """Every step is counted; every `log.every_steps`-th is written; what was drawn is always written."""
        self._drawn(run, skipped=False)
        if run.state.step % self._every_steps == 0:
            self._write(record)
            self._console.step(record)
        return Action.CONTINUE

    def _write(self, record: Record) -> None:
        """Keep a record, with the time of day where what happened between two of them is asked for, and show it."""
        if record["kind"] in TIMED:
            record = {**record, "unix_s": round(time.time(), 3)}
        self._metrics.write(record)
        self._console.take(record)

    def on_drop(self, run: Run) -> None:
        """What was drawn is always written."""
        self._drawn(run, skipped=True)

    def on_guard(self, run: Run, record: Record) -> None:
        """Always written; after a rollback the steps that were lost are cut off, as a resume does."""
        if record["event"] == "rollback":
            self._rewind(run)
        self._write(record)
        self._console.note(guard_line(record))

    def on_rewind(self, run: Run, why: str) -> None:
        """The steps that are left are cut off; what was found of them stays in the monitor's journal."""
        self._rewind(run)
        self._console.note(f"back to step {run.state.step}: {why}")

    def _rewind(self, run: Run) -> None:
        self._metrics.rewind(run.state.step)
        self._data_log.rewind(run.state.batches_drawn)
        self._shares, self._evaluated_step = {}, _last_evaluated(run.directory)
        for note in run.plan.notes:  # on the checkpoint that it went back to
            self._console.note(note)

    def on_mix(self, run: Run, record: Record) -> None:
        """Always written."""
        self._write(record)
        self._console.note(mix_line(record))

    def on_straggler(self, run: Run, record: Record) -> None:
        """Always written."""
        self._write(record)
        self._console.note(straggler_line(record))

    def _drawn(self, run: Run, *, skipped: bool) -> None:
        state = run.state
        record = log_record(
            state.step, state.ledger, self._shares, batch=state.batches_drawn, skipped=skipped
        )
        self._data_log.write(record)
        self._shares = {name: entry.share for name, entry in state.ledger.entries.items()}
        for note in run.loader.notes:
            self._console.note(note)

    def on_eval(self, run: Run, record: Record) -> Action:
        """Always written; once, where a run is started again from a step at which it owes the evaluation."""
        if record["step"] != self._evaluated_step:
            self._write(record)
        self._console.eval(record)
        return Action.CONTINUE

    def on_save(self, run: Run, directory: Path) -> None:
        """Name the checkpoint."""
        self._write({"kind": "save", "step": saved_step(directory), "checkpoint": str(directory)})
        self._console.note(f"saved {directory}")

    def on_stop(self, run: Run, reason: str) -> None:
        """Write the report and say where it is."""
        self._write({"kind": "stop", "step": run.state.step, "reason": reason})
        self._console.note(f"{reason}; report: {write_report(run.directory)}")

    def close(self) -> None:
        """Flush everything."""
        self._console.close()
        self._metrics.close()
        self._data_log.close()


def _last_evaluated(run: Path) -> int | None:
    """Step of the last evaluation in the metrics."""
    records = read_records(run / METRICS_FILE)
    return max((record["step"] for record in records if record["kind"] == "eval"), default=None)
