"""The training loop: next batch -> step -> metrics -> hooks -> evaluate -> save -> stop.

Place in the flow: the centre. Everything it calls is explained in a file of its own. Invariant: the same
sequence of collectives on every rank; only `report` hooks behave differently on rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import STOPPED_EXIT_CODE
from cptron.evaluate.perplexity import evaluate_set
from cptron.optim.optimizer import finish_param_gather
from cptron.optim.schedule import learning_rate
from cptron.runtime.pace import EVALUATION, SAVE
from cptron.train.guards import Guards
from cptron.train.hooks import Action, Hook
from cptron.train.metrics import eval_record, step_record
from cptron.train.mixing import Mixing
from cptron.train.monitor import Monitor
from cptron.train.proxy import Proxy
from cptron.train.save import Saver
from cptron.train.setup import Run
from cptron.train.step import train_step
from cptron.train.stop import Stop
from cptron.train.stragglers import Stragglers


def train(run: Run, hooks: Sequence[Hook], stop: Stop) -> int:
    """Train until `train.steps` or until asked to stop; returns the exit code: 0, or `STOPPED_EXIT_CODE`."""
    config, steps, pace = run.config, run.config.train.steps, run.session.pace
    code = 0
    stop.listen()
    saver = Saver(run)
    reason = f"finished {steps} steps"
    saved_step = evaluated_step = run.state.step
    try:
        hooks = [*hooks]

        def finish_saves() -> None:
            tell_saved(run, hooks, saver.finish())

        def make_guards() -> Guards:
            return Guards(run, hooks, finish_saves, before_draw=Mixing(run, hooks).before_draw)

        monitor, proxy = Monitor(run, hooks, finish_saves), Proxy(run)
        stragglers = Stragglers(run, hooks)
        hooks[:] = [stragglers, *hooks, monitor]  # the same list: they tell each other
        guards = make_guards()
        for hook in hooks:
            hook.on_start(run)
        if _owes_evaluation(run, is_back=False):
            evaluate_all(run, hooks, monitor)

        def accept(loss_nats_per_token: float, grad_norm: float) -> bool:
            due = _evaluates(run, 1)
            device = run.session.device.torch_device
            return guards.accept(
                *stop.agree(loss_nats_per_token, grad_norm, evaluation_is_due=due, device=device)
            )

        while True:
            # 0. what the forgetting monitor made of the last evaluation
            if monitor.react():  # by going back
                guards = make_guards()
                saved_step = evaluated_step = run.state.step
            if _owes_evaluation(run, is_back=True):  # the guards may have gone back, too
                evaluate_all(run, hooks, monitor)
                continue
            if run.state.step >= steps or monitor.has_stopped:
                break

            # 1. this rank's part of the global batch; the ledger moves on by the whole batch, on every rank alike
            start_s = stragglers.begin(run)
            batches = guards.next_batches()
            if not batches:
                reason = f"stopped after step {run.state.step}: {'; '.join(run.loader.notes)}"
                if run.state.step == evaluated_step:
                    break
                evaluate_all(run, hooks, monitor)
                evaluated_step = run.state.step
                continue

            # 2. forward, backward, reduce; hear of the other ranks; if the guards let it pass: clip, update
            result = train_step(
                run.chunks,
                run.optimizer,
                proxy.weighted(batches),
                lr=_rate(run),
                optim=config.optim,
                num_sources=len(run.source_names),
                device=run.session.device.torch_device,
                accept=accept,
                before_update=saver.before_update,
                regulariser=run.regulariser.at(run.state.tokens_total),
            )
            if not guards.settle(batches, result.updated):
                saved_step = min(saved_step, run.state.step)  # the batch is dropped, or the run rolled back
                pace.step_done()
                if stop.reason:
                    code, reason = STOPPED_EXIT_CODE, f"{stop.reason} after step {run.state.step}"
                    break
                continue
            run.state.step += 1
            proxy.trained()
            run.state.tokens_total += result.sums.tokens
            monitor.count(result.sums)
            sums = result.sums
            run.state.trained.add(run.source_names, sums.loss_nats_by_source, sums.tokens_by_source)

            # 3. metrics, and what the hooks make of them
            pace.step_done()
            record = step_record(run, result, time.perf_counter() - start_s)
            action = max((hook.on_step(run, record) for hook in hooks), default=Action.CONTINUE)
            last = run.state.step == steps
            if stop.reason:
                action, code = Action.SAVE_AND_STOP, STOPPED_EXIT_CODE
                reason = f"{stop.reason} after step {run.state.step}"

            # 4. validation
            if action != Action.SAVE_AND_STOP and _evaluates(run):
                action, evaluated_step = max(action, evaluate_all(run, hooks, monitor)), run.state.step

            # 5. checkpoint; the one before may have been written meanwhile
            tell_saved(run, hooks, saver.published())
            if last or action >= Action.SAVE or _due(run.state.step, config.checkpoint.every_steps):
                saved_step = save(run, hooks, saver)
            if action == Action.SAVE_AND_STOP:
                break

        if run.state.step != saved_step:  # the data came to its end
            save(run, hooks, saver)
        finish_saves()
        reason = monitor.ending() or reason
        for hook in hooks:
            hook.on_stop(run, reason)
        return code
    finally:
        saver.close()
        run.loader.close()
        for hook in hooks:
            hook.close()


def save(run: Run, hooks: Sequence[Hook], saver: Saver) -> int:
    """Save the current step, or begin to; returns it."""
    run.session.pace.save_begins()
    with run.session.pace.during(SAVE):
        published = saver.save()
    tell_saved(run, hooks, published)
    return run.state.step


def tell_saved(run: Run, hooks: Sequence[Hook], published: Sequence[Path]) -> None:
    """Tell the hooks of checkpoints that were published."""
    for directory in published:
        run.session.pace.save_ended()
        for hook in hooks:
            hook.on_save(run, directory)


def evaluate_all(run: Run, hooks: Sequence[Hook], monitor: Monitor) -> Action:
    """Evaluate every validation set with the current weights, let the monitor judge, and tell the hooks."""
    if not run.valid_sets:
        return Action.CONTINUE
    device = run.session.device.torch_device
    finish_param_gather(run.chunks)
    with run.session.pace.during(EVALUATION):
        losses = {valid.name: evaluate_set(run.chunks, valid, device) for valid in run.valid_sets}
        record = run.evaluated = eval_record(run, losses)
        action = monitor.judge(losses, record)
    return max(action, *(hook.on_eval(run, record) for hook in hooks))


def _owes_evaluation(run: Run, *, is_back: bool) -> bool:
    """The baseline of a new run or branch; or the evaluation of the step at which a run was asked to stop, whether it
    starts there or is back there."""
    if run.plan.resume_from is None:
        return run.config.eval.at_start and not is_back
    is_evaluated = run.base is None or bool(run.base.metrics) or bool(run.evaluated)
    return not is_evaluated and bool(run.valid_sets) and _evaluates(run)


def _rate(run: Run) -> float:
    """Learning rate of the next step: the schedule's, times what its stage and the forgetting monitor make of it."""
    scheduled = learning_rate(run.config.optim, run.state.step, run.config.train.steps)
    return scheduled * run.loader.stage.lr_scale * run.state.reaction.lr_factor


def _evaluates(run: Run, more_steps: int = 0) -> bool:
    """Now, or after so many more steps, whose tokens are not masked: after the last step, at a multiple of steps, and
    past one of tokens."""
    config, state = run.config, run.state
    step = state.step + more_steps
    is_past = False
    if unit := config.eval.every_tokens:
        stage = run.loader.stage  # of the batch at hand
        sequences = stage.global_batch_size or config.train.global_batch_size
        more_tokens = more_steps * sequences * (stage.seq_length or config.data.seq_length)
        is_past = (state.tokens_total + more_tokens) // unit > state.evaluated_tokens // unit
    return step == config.train.steps or is_past or _due(step, config.eval.every_steps)


def _due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step % every_steps == 0
