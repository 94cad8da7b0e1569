"""The forgetting monitor: what an evaluation means for a run, and what is done about it.

Place in the flow: the loop hands it every evaluation, and lets it act when the step is done and saved. Invariant: every
rank has the same verdict, which is in the journal before anything takes effect; when the same evaluation is made again,
after a resume or under another layout, the journal has the verdict and not the new measurement. Without suites and
probes it does nothing at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cptron.checkpoint import layout
from cptron.config.load import config_to_dict
from cptron.config.schema import AttentionConfig
from cptron.errors import CheckpointError
from cptron.evaluate.set_losses import SetLosses
from cptron.forgetting.decide import Measured, decide
from cptron.forgetting.evaluation import BASE, NOW
from cptron.forgetting.journal import JOURNAL, Verdict, append_verdict, read_verdicts
from cptron.forgetting.left import set_aside
from cptron.forgetting.marking import keep_quiet, newest_quiet
from cptron.forgetting.measure import Measuring
from cptron.forgetting.settings import is_watched
from cptron.optim.schedule import learning_rate
from cptron.runtime.dist import agree, from_main
from cptron.runtime.pipeline import LossSums
from cptron.selection.best import mark_best, mark_best_so_far
from cptron.train.data import asked_shares, reopen
from cptron.train.guards import data_settings
from cptron.train.hooks import Action, Hook, Record
from cptron.train.rollback import proven_target, roll_back
from cptron.train.setup import Run


class Monitor(Hook):
    """Watches one run; collective in all that it does but counting."""

    def __init__(self, run: Run, hooks: Sequence[Hook], finish_saves: Callable[[], None]) -> None:
        """`finish_saves` waits until a checkpoint that is being written is complete. Raises a `CptronError` on every
        rank where journal, base or control are not what they must be."""
        self._run, self._hooks, self._finish_saves = run, hooks, finish_saves
        self._is_on = is_watched(run.config)
        self._path = run.directory / JOURNAL
        self._pending: Verdict | None = None
        self._main: _MainRank | None = None
        if self._is_on:
            self._main = agree(lambda: _MainRank(run) if run.session.ranks.is_main else None)

    @property
    def has_stopped(self) -> bool:
        """It has ended the run, and the configuration still wants that."""
        action = self._run.config.forgetting.action
        return self._is_on and action == "stop_and_keep_best" and self._run.state.reaction.stopped

    def count(self, sums: LossSums) -> None:
        """Take note of a step that was trained."""
        if self._is_on:
            names, state = self._run.source_names, self._run.state
            nats = dict(zip(names, sums.loss_nats_by_source.tolist(), strict=True))
            tokens = dict(zip(names, map(int, sums.tokens_by_source.tolist()), strict=True))
            state.watch = state.watch.learned(nats, tokens)

    def judge(self, losses: Mapping[str, SetLosses], record: Record) -> Action:
        """Complete the record of an evaluation by what it means, and keep in mind what is to be done."""
        state, main = self._run.state, self._main
        state.evaluated_tokens = state.tokens_total
        if self._is_on and self._run.config.forgetting.action == "rollback":
            self._finish_saves()  # how far it goes back must not depend on how fast the disk is
        if not self._is_on:
            return Action.CONTINUE

        def judged() -> tuple[Verdict, Record]:
            assert main is not None, "this is the main rank"
            return main.judge(losses, record)

        verdict, measured = from_main(judged)
        record |= measured
        state.watch = verdict.watch
        if verdict.action != "rollback":  # then it is in force with the checkpoint
            state.reaction = verdict.reaction
        self._pending = verdict
        return Action.SAVE_AND_STOP if verdict.action == "stop_and_keep_best" else Action.CONTINUE

    def react(self) -> bool:
        """Do what was decided; True when the run is back at an earlier checkpoint."""
        verdict, self._pending = self._pending, None
        if verdict is not None and verdict.action == "raise_replay":
            reopen(self._run)
        if verdict is None or verdict.action != "rollback":
            return False
        self._roll_back(verdict)
        return True

    def on_save(self, run: Run, directory: Path) -> None:
        """A rollback must find the newest checkpoint from before an alarm, and a stop the best, whatever the rules of
        retention say."""
        if not self._is_on:
            return
        forgetting, is_main = run.config.forgetting, run.session.ranks.is_main
        if forgetting.action == "rollback":
            agree(lambda: keep_quiet(directory) if is_main else None)
        if forgetting.action == "stop_and_keep_best":
            agree(lambda: mark_best_so_far(run.directory, forgetting.epsilon_nats) if is_main else None)

    def ending(self) -> str:
        """Why the run has ended where the monitor has ended it, with its best checkpoint marked; else empty."""
        if not self.has_stopped:
            return ""
        run = self._run

        def end() -> str:
            last = [
                verdict for verdict in read_verdicts(self._path) if verdict.action == "stop_and_keep_best"
            ][-1]
            assert last.old is not None, "there is no alarm without it"
            best = mark_best(run.directory, run.config.forgetting.epsilon_nats)
            return (
                f"stopped by the forgetting monitor after step {last.step}: loss on old data changed by "
                f"{last.old.estimate:+.4f} nats per token; step {best} is the best checkpoint, and marked"
            )

        return from_main(end)

    def _roll_back(self, verdict: Verdict) -> None:
        """What is left behind is moved last: until then the journal says that it is."""
        run = self._run
        self._finish_saves()
        target = proven_target(run, layout.step_directory(run.directory / "checkpoints", verdict.to_step))
        if target.step != verdict.to_step:
            raise CheckpointError(
                f"the checkpoint of step {verdict.to_step}, to which the forgetting monitor goes back, is damaged; "
                f"start again to go on from step {target.step}"
            )
        roll_back(run, target)
        agree(
            lambda: set_aside(run.directory, read_verdicts(self._path)) if run.session.ranks.is_main else None
        )
        why = f"forgetting at step {verdict.step}: {verdict.why}; later checkpoints are in left/{verdict.attempt}"
        for hook in self._hooks:
            hook.on_rewind(run, why)


class _MainRank:
    """What the main rank alone holds: base, control and journal."""

    def __init__(self, run: Run) -> None:
        self._run, self._path = run, run.directory / JOURNAL
        self._verdicts = {verdict.place: verdict for verdict in read_verdicts(self._path)}
        self._measuring = Measuring(run.config, run.valid_sets, _tokenizer_json(run))
        if run.plan.resume_from is not None:
            self._measuring.resume(run.plan.resume_from)
            self._keep_base()
            if self._measuring.base is None:
                note = "forgetting: this run had no suites at its step 0, so that no change is known"
                run.plan = replace(run.plan, notes=(*run.plan.notes, note))

    def _keep_base(self) -> None:
        if self._measuring.base is not None:
            self._run.losses[BASE] = self._measuring.base.to_bytes()

    def judge(self, losses: Mapping[str, SetLosses], record: Record) -> tuple[Verdict, Record]:
        """The verdict, in the journal, and what it adds to the record."""
        run, state = self._run, self._run.state
        now = self._measuring.evaluation(state.step, state.tokens_total, state.reaction.attempt, losses)
        run.losses[NOW] = now.to_bytes()
        added: Record = {}
        if self._measuring.base is None and run.plan.resume_from is None:
            started_from = run.plan.branch_from or run.plan.base
            added["forgetting/base"] = self._measuring.begin(now, started_from)
            self._keep_base()
        intervals, measured = self._measuring.changes(now)
        settings = _settings(run)
        place = state.reaction.attempt, state.step, state.tokens_total, state.batches_drawn, settings
        verdict = self._verdicts.get(place)
        if verdict is None:
            found = Measured(
                state.step,
                state.tokens_total,
                intervals,
                {
                    valid.name: record[f"valid/{valid.name}/loss_nats_per_token"]
                    for valid in run.config.data.valid
                },
                {
                    name: math.fsum(account.epochs for account in state.ledger.accounts(name))
                    for name in run.source_names
                },
                tuple(asked_shares(run).values()),
                state.batches_drawn,
                settings,
            )
            verdict = decide(
                run.config,
                state.watch,
                state.reaction,
                found,
                lambda: newest_quiet(run.directory / "checkpoints", state.step),
            )
            append_verdict(self._path, verdict)
            self._verdicts[verdict.place] = verdict
        added |= {**measured, "forgetting/finding": verdict.finding}
        if verdict.action != "none":
            added |= {"forgetting/action": verdict.action, "forgetting/why": verdict.why}
        if unknown := self._measuring.unknown(now):
            added["forgetting/unknown"] = unknown
        if verdict.alarms:
            added["forgetting/alarms"] = list(verdict.alarms)
        return verdict, added


def _settings(run: Run) -> str:
    """Fingerprint of what the weights of a step depend on beside the data drawn; not the layout."""
    config, done = config_to_dict(run.config), run.state.step
    # what is still to come, as of a run that is extended, has changed no weight
    some = range(0, done, max(1, done // 64))
    rates = [learning_rate(run.config.optim, step, run.config.train.steps) for step in some]
    values = [data_settings(run), rates, run.config.train.precision]
    values += [config[name] for name in ("optim", "adapter", "regularise")]
    if run.config.attention != AttentionConfig():
        values.append(config["attention"])
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _tokenizer_json(run: Run) -> bytes | None:
    """Of the tokenizer that the sets were made with, as preflight has proven; None where it has no such form."""
    if not run.config.data.tokenizer:
        return run.hugging_face.get("tokenizer.json")
    from cptron.tokens.tokenizer import load_tokenizer

    return load_tokenizer(run.config.data.tokenizer).definition("tokenizer.json")
