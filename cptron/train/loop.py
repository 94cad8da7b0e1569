"""The training loop: next batch -> step -> metrics -> hooks -> evaluate -> save -> stop.

Place in the flow: the centre. Everything it calls is explained in a file of its own. Invariant: the same
sequence of collectives on every rank; only `report` hooks behave differently on rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from cptron.evaluate.perplexity import evaluate_set
from cptron.optim.optimizer import finish_param_gather
from cptron.optim.schedule import learning_rate
from cptron.runtime.signals import StopRequest
from cptron.train.guards import Guards
from cptron.train.hooks import Action, Hook
from cptron.train.metrics import eval_record, step_record
from cptron.train.save import Saver
from cptron.train.setup import Run
from cptron.train.step import train_step


def train(run: Run, hooks: Sequence[Hook]) -> str:
    """Train until `train.steps` or until asked to stop; returns why it ended."""
    config, steps = run.config, run.config.train.steps
    stop = StopRequest(run.session.device.torch_device)
    saver = Saver(run)
    reason = f"finished {steps} steps"
    saved_step = evaluated_step = run.state.step
    try:
        guards = Guards(run, hooks, lambda: tell_saved(run, hooks, saver.finish()))
        for hook in hooks:
            hook.on_start(run)
        if config.eval.at_start and run.state.step == 0:
            evaluate_all(run, hooks)

        while run.state.step < steps:
            # 1. this rank's part of the global batch; the ledger moves on by the whole batch, on every rank alike
            start_s = time.perf_counter()
            batches = guards.next_batches()
            if not batches:
                reason = f"stopped after step {run.state.step}: {'; '.join(run.loader.notes)}"
                if run.state.step != evaluated_step:
                    evaluate_all(run, hooks)
                break

            # 2. forward, backward, reduce; if the guards let it pass: clip, update
            result = train_step(
                run.chunks,
                run.optimizer,
                batches,
                lr=learning_rate(config.optim, run.state.step, steps),
                optim=config.optim,
                num_sources=len(run.source_names),
                device=run.session.device.torch_device,
                accept=guards.accept,
                before_update=saver.before_update,
            )
            if not guards.settle(batches, result.updated):
                saved_step = min(saved_step, run.state.step)  # the batch is dropped, or the run rolled back
                continue
            run.state.step += 1
            run.state.tokens_total += result.sums.tokens

            # 3. metrics, and what the hooks make of them
            record = step_record(run, result, time.perf_counter() - start_s)
            action = max((hook.on_step(run, record) for hook in hooks), default=Action.CONTINUE)
            if signal := stop.anywhere():
                action, reason = Action.SAVE_AND_STOP, f"stopped by {signal} after step {run.state.step}"

            # 4. validation
            last = run.state.step == steps
            if action != Action.SAVE_AND_STOP and (last or _due(run.state.step, config.eval.every_steps)):
                action, evaluated_step = max(action, evaluate_all(run, hooks)), run.state.step

            # 5. checkpoint; the one before may have been written meanwhile
            tell_saved(run, hooks, saver.published())
            if last or action >= Action.SAVE or _due(run.state.step, config.checkpoint.every_steps):
                tell_saved(run, hooks, saver.save())
                saved_step = run.state.step
            if action == Action.SAVE_AND_STOP:
                break

        if run.state.step != saved_step:  # the data came to its end
            tell_saved(run, hooks, saver.save())
        tell_saved(run, hooks, saver.finish())
        for hook in hooks:
            hook.on_stop(run, reason)
        return reason
    finally:
        stop.close()
        saver.close()
        run.loader.close()
        for hook in hooks:
            hook.close()


def tell_saved(run: Run, hooks: Sequence[Hook], published: Sequence[Path]) -> None:
    """Tell the hooks of checkpoints that were published."""
    for directory in published:
        for hook in hooks:
            hook.on_save(run, directory)


def evaluate_all(run: Run, hooks: Sequence[Hook]) -> Action:
    """Evaluate every validation set with the current weights and tell the hooks."""
    if not run.valid_sets:
        return Action.CONTINUE
    device = run.session.device.torch_device
    finish_param_gather(run.chunks)
    record = eval_record(
        run, {valid.name: evaluate_set(run.chunks, valid, device) for valid in run.valid_sets}
    )
    run.evaluated = record
    return max((hook.on_eval(run, record) for hook in hooks), default=Action.CONTINUE)


def _due(step: int, every_steps: int) -> bool:
    return every_steps > 0 and step % every_steps == 0
