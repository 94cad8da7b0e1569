"""The guards: which batches may change the weights, and what happens to the others.

Place in the flow: the loop draws its batches here; `accept` is asked between a batch's gradient norm and its update,
`settle` does what was decided. Invariant: every rank decides alike, an action is in the journal before it takes
effect, and a batch that the journal names has the same fate whenever it is drawn again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from cptron.data.batch import MicroBatch
from cptron.data.open import mix_of
from cptron.errors import CheckpointError, TrainingError
from cptron.runtime.dist import agree, from_main
from cptron.train.diagnose import Diagnosis, diagnose
from cptron.train.hooks import Hook, Record
from cptron.train.journal import JOURNAL, Entry, Journal, append_entry, read_journal
from cptron.train.rollback import newest_checkpoint, roll_back
from cptron.train.setup import Run
from cptron.train.spikes import NOT_KNOWN, Scores, SpikeHistory


class _Verdict(NamedTuple):
    """What is to be done about a batch, and why."""

    action: Literal["train", "log", "skip", "rollback", "stop"]
    cause: Literal["spike", "nonfinite"]
    loss: float
    grad_norm: float
    scores: Scores


class Guards:
    """Watches one run; collective in all that it does."""

    def __init__(
        self,
        run: Run,
        hooks: Sequence[Hook],
        finish_saves: Callable[[], None],
        before_draw: Callable[[], None],
    ) -> None:
        """`finish_saves` waits until a checkpoint that is being written is complete; `before_draw` is called ahead of
        every global batch.

        Raises `CheckpointError` on every rank where the journal is damaged or is not that of the state.
        """
        self._run, self._hooks, self._finish_saves = run, hooks, finish_saves
        self._before_draw = before_draw
        self._path = run.directory / JOURNAL
        self._data = data_settings(run)
        self._journal = Journal(from_main(lambda: read_journal(self._path)), self._data)
        self._verdict: _Verdict | None = None
        self._journal.require_follows(run.state.batches_drawn, run.state.journal_entries)
        run.state.journal_entries = len(self._journal)
        if count := self._journal.not_repeated:
            note = f"{JOURNAL} has {count} action(s) about other data (batch size, sources or shares have changed)"
            run.plan = replace(run.plan, notes=(*run.plan.notes, f"{note}: they are not repeated"))

    def next_batches(self) -> list[MicroBatch]:
        """This rank's part of the next global batch to be trained on. Those that the journal drops are drawn and
        counted; empty when the sources leave no further one."""
        while batches := self._next_step():
            self._run.state.batches_drawn += 1
            self._enter_stage(self._run.loader.stage_number)
            entry = self._journal.dropping(self._run.state.batches_drawn)
            if entry is None:
                return batches
            self._drop(batches, entry)
        return []

    def accept(self, loss_nats_per_token: float, grad_norm: float) -> bool:
        """Whether the weights may follow the batch at hand, by numbers that are the same on every rank."""
        self._verdict = self._judge(loss_nats_per_token, grad_norm)
        return self._verdict.action in ("train", "log")

    def settle(self, batches: Sequence[MicroBatch], updated: bool) -> bool:
        """Do what `accept` decided. True: the batch was trained on. False: it is dropped, or the run is back at a
        checkpoint. Raises `TrainingError` on every rank where the policy is to stop."""
        verdict, state, guards = self._verdict, self._run.state, self._run.config.guards
        assert verdict is not None and updated == (verdict.action in ("train", "log"))
        if updated:
            state.spike_history.learn(verdict.loss, verdict.grad_norm, guards.spike_window)
            entry = self._journal.logged(state.batches_drawn)
            if verdict.action == "log":
                entry = self._append(verdict)
            if entry is not None:
                self._tell("log", entry)
            return True
        diagnosis = self._diagnose(batches) if verdict.cause == "nonfinite" else None
        self._stop_if_due(verdict, diagnosis)
        found = diagnosis.text if diagnosis else ""
        if verdict.action == "skip":
            self._drop(batches, self._append(verdict, found=found))
        else:
            self._roll_back(verdict, found)
        return False

    def _next_step(self) -> list[MicroBatch]:
        self._before_draw()
        return self._run.loader.next_step()

    def _enter_stage(self, number: int) -> None:
        """Losses of another blend are no measure for those of this stage."""
        if number != self._run.state.stage:
            self._run.state.stage = number
            self._run.state.spike_history = SpikeHistory()

    @property
    def _device(self) -> torch.device:
        return self._run.session.device.torch_device

    def _judge(self, loss: float, grad_norm: float) -> _Verdict:
        guards, state = self._run.config.guards, self._run.state
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return _Verdict(guards.on_nonfinite, "nonfinite", loss, grad_norm, NOT_KNOWN)
        if self._journal.decides(state.batches_drawn):
            return _Verdict("train", "spike", loss, grad_norm, NOT_KNOWN)
        scores = state.spike_history.scores(loss, grad_norm, guards)
        action = guards.on_spike if scores.highest > guards.spike_z else "train"
        return _Verdict(action, "spike", loss, grad_norm, scores)

    def _diagnose(self, batches: Sequence[MicroBatch]) -> Diagnosis:
        run = self._run
        return diagnose(run.chunks, batches, run.source_names, self._device, run.session.topology)

    def _stop_if_due(self, verdict: _Verdict, diagnosis: Diagnosis | None) -> None:
        what, guards = self._describe(verdict), self._run.config.guards
        if diagnosis is not None:
            what += f". {diagnosis.text[0].upper()}{diagnosis.text[1:]}"
            if verdict.action == "stop":
                self._stop(f"{what}. Lower optim.lr or look at the data")
            if verdict.action == "skip" and diagnosis.in_weights:
                self._stop(f"{what}. No other batch can help; use guards.on_nonfinite=rollback")
        earlier = self._journal.actions_since(self._run.state.batches_drawn - guards.spike_window + 1)
        if earlier >= guards.max_actions:
            self._stop(
                f"{what}. {earlier} batch(es) were skipped or rolled back within the last {guards.spike_window} "
                f"(guards.max_actions={guards.max_actions}); lower optim.lr, look at the data, or raise it"
            )

    def _stop(self, why: str) -> NoReturn:
        """End the run on all ranks; a checkpoint of before is written to its end first."""
        try:
            self._finish_saves()
        except CheckpointError as error:
            why = f"{why}. Nor could the checkpoint be completed: {error}"
        raise TrainingError(why)

    def _describe(self, verdict: _Verdict) -> str:
        """One sentence on the batch at hand."""
        where = f"at step {self._run.state.step + 1}, batch {self._run.state.batches_drawn}"
        if verdict.cause == "spike":
            z = f"z {verdict.scores.loss:.1f} and {verdict.scores.grad_norm:.1f}"
            return f"loss {verdict.loss:.4f} and gradient norm {verdict.grad_norm:.4g} ({z}) {where}"
        bad = "training loss" if not math.isfinite(verdict.loss) else "gradient norm"
        value = verdict.loss if not math.isfinite(verdict.loss) else verdict.grad_norm
        return f"{bad} is {value} {where}; no weight was changed"

    def _roll_back(self, verdict: _Verdict, found: str) -> None:
        self._finish_saves()
        target = newest_checkpoint(self._run, self._describe(verdict))
        before = self._run.state.batches_drawn - self._run.config.guards.skip_batches
        entry = self._append(verdict, max(before, target.batches_drawn + 1), target.step, found)
        roll_back(self._run, target)
        self._run.state.journal_entries = len(self._journal)
        self._tell("rollback", entry)

    def _append(self, verdict: _Verdict, first: int = 0, to_step: int = 0, found: str = "") -> Entry:
        """Enter what is going to be done about the batch at hand, durably, on rank 0."""
        state = self._run.state
        assert verdict.action in ("log", "skip", "rollback")
        entry = Entry(
            batch=state.batches_drawn,
            step=state.step + 1,
            action=verdict.action,
            cause=verdict.cause,
            loss_nats_per_token=verdict.loss,
            grad_norm=verdict.grad_norm,
            z_loss=verdict.scores.loss,
            z_grad_norm=verdict.scores.grad_norm,
            first=first or state.batches_drawn,
            data=self._data,
            to_step=to_step,
            found=found,
        )
        is_main = self._run.session.ranks.is_main
        agree(lambda: append_entry(self._path, entry) if is_main else None)
        self._journal.add(entry)
        state.journal_entries = len(self._journal)
        return entry

    def _drop(self, batches: Sequence[MicroBatch], entry: Entry) -> None:
        self._run.state.tokens_skipped += self._count_tokens(batches)
        for hook in self._hooks:
            hook.on_drop(self._run)
        if self._run.state.batches_drawn == entry.batch:
            self._tell("skip" if entry.action == "skip" else "drop", entry)

    def _count_tokens(self, batches: Sequence[MicroBatch]) -> int:
        """Tokens that a step on this global batch would have counted; collective."""
        session = self._run.session
        topology, rank = session.topology, session.ranks.rank
        counts = topology.pp_rank(rank) == topology.cp_rank(rank) == topology.tp_rank(rank) == 0
        own = sum(float(batch.loss_mask_BS.sum(dtype=np.float64)) for batch in batches) if counts else 0.0
        total = torch.tensor([own], dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return int(total.item())

    def _tell(self, event: str, entry: Entry) -> None:
        # after a rollback: kept by a resume from the same checkpoint; else gone with the step, and told again
        state = self._run.state
        step = state.step if event == "rollback" else state.step + 1
        record: Record = {**entry.to_record(), "kind": "guard", "event": event, "step": step}
        record |= {"tried_step": entry.step, "tokens_skipped": state.tokens_skipped}
        for hook in self._hooks:
            hook.on_guard(self._run, record)


def data_settings(run: Run) -> str:
    """Fingerprint of what decides which samples a global batch holds."""
    data, entries = run.config.data, run.state.ledger.entries
    total = math.fsum(source.token_share for source in data.sources)
    sources = sorted(
        (source.name, entries[source.name].identity, round(source.token_share / total, 12), source.max_epochs)
        for source in data.sources
    )
    order = [run.config.run.seed, data.seq_length, data.packing, data.order, data.on_max_epochs]
    settings: list[Any] = [run.config.train.global_batch_size, order, sources]
    if run.state.reaction.attempt:  # the same numbers are drawn under other shares
        settings.append(run.state.reaction.attempt)
    if data.stages or data.replay_floor or any(source.order != "shuffled" for source in data.sources):
        mix = mix_of(run.config)
        settings.append([str(mix.stages), str(mix.floors.replay_floor), [s.order for s in data.sources]])
    if data.mixer != "static":
        settings.append([data.mixer, data.mixer_every_batches, data.mixer_skip_batches])
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
