"""From an evaluation to a verdict: what it means, and what is to be done.

Place in the flow: intervals and alarms -> here -> the monitor, which enters the verdict in the journal and acts.
Imports no torch. Invariant: a pure function of configuration, state and measurement; what is asked for and cannot be
done is not done, and the verdict says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cptron.config.schema import Config
from cptron.forgetting.alarms import RepetitionState, judge_gap, judge_repetition
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.journal import Action, Finding, Verdict
from cptron.forgetting.policy import judge
from cptron.forgetting.reaction import LR_FLOOR, Reaction, can_raise
from cptron.forgetting.settings import rules_of
from cptron.forgetting.watch import Watch


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation has found, as far as it is decided on."""

    step: int
    tokens_total: int
    intervals: Mapping[str, Interval]
    """Change of the suites `old` and `new` since the base."""
    losses: Mapping[str, float]
    """Loss by validation set, in nats per token."""
    epochs: Mapping[str, float]
    """Passes over each source until now."""
    shares: tuple[float, ...]
    """Of the tokens, by source, that are asked for at present, without the monitor's factor of replay."""
    batch: int = 0
    """Global batches drawn until now."""
    settings: str = ""
    """Fingerprint of the settings that the weights depend on."""


def decide(
    config: Config, watch: Watch, reaction: Reaction, found: Measured, quiet_step: Callable[[], int | None]
) -> Verdict:
    """The verdict on one evaluation. `quiet_step`: the step of the newest checkpoint at which nothing was beyond
    epsilon, where there is one."""
    old = found.intervals.get("old")
    policy = watch.policy
    finding: Finding = "none"
    if old is not None:
        rules = rules_of(config, watch.begun_step)
        policy, finding = judge(rules, policy, old, found.tokens_total - watch.begun_tokens)
    done = _action(config, reaction, finding, found.shares, quiet_step)
    alarms, after_alarms = _alarms(config, watch, found)
    return Verdict(
        attempt=reaction.attempt,
        step=found.step,
        tokens_total=found.tokens_total,
        finding=finding,
        action=done.action,
        why=done.why,
        old=old,
        new=found.intervals.get("new"),
        alarms=tuple(alarms),
        to_step=done.to_step,
        watch=replace(after_alarms, policy=policy, seen={}, lines=watch.lines + 1),
        reaction=done.after,
        batch=found.batch,
        settings=found.settings,
    )


class _Done(NamedTuple):
    """What is done about an evaluation."""

    action: Action
    why: str
    """Why it is done, or why not more."""
    after: Reaction
    """In force after it."""
    to_step: int = 0


def _action(
    config: Config,
    reaction: Reaction,
    finding: Finding,
    shares: Sequence[float],
    quiet_step: Callable[[], int | None],
) -> _Done:
    asked = config.forgetting.action
    if finding != "alarm":
        return _Done("none", "", reaction)
    if asked == "alert":
        return _Done("alert", "", reaction)
    if reaction.actions >= config.forgetting.max_actions:
        return _Done("alert", f"{reaction.actions} actions were taken (forgetting.max_actions)", reaction)
    acted = replace(reaction, actions=reaction.actions + 1)
    if asked == "stop_and_keep_best":
        return _Done(asked, "", replace(acted, stopped=True))
    milder, why, after = _milder(config, shares, acted)
    if milder == "alert":
        return _Done(milder, why, reaction)
    step = quiet_step() if asked == "rollback" else None
    if step is not None:
        return _Done(
            "rollback", f"back to step {step}, {why}", replace(after, attempt=after.attempt + 1), step
        )
    no_rollback = "; there is no checkpoint from before to go back to" if asked == "rollback" else ""
    return _Done(milder, f"{why}{no_rollback}", after)


def _milder(config: Config, shares: Sequence[float], acted: Reaction) -> tuple[Action, str, Reaction]:
    """More replay, or a lower rate where that is asked for or, in a rollback, where there is no more replay to have."""
    asked, is_replay = config.forgetting.action, [source.role == "replay" for source in config.data.sources]
    any_replay = any(share for share, old in zip(shares, is_replay, strict=True) if old)
    more_replay = config.data.order == "cptron" and can_raise(shares, is_replay, acted.replay_factor)
    if asked != "lower_lr" and more_replay:
        after = replace(acted, replay_factor=2 * acted.replay_factor)
        return "raise_replay", f"replay times {after.replay_factor:g}", after
    if asked == "raise_replay":
        why = "replay has half of the tokens already" if any_replay else "the stage draws no replay"
        return "alert", why, acted
    if acted.lr_factor / 2 < LR_FLOOR:
        return "alert", f"the learning rate is at {acted.lr_factor:g} of its schedule already", acted
    after = replace(acted, lr_factor=acted.lr_factor / 2)
    return "lower_lr", f"learning rate times {after.lr_factor:g}", after


def _alarms(config: Config, watch: Watch, found: Measured) -> tuple[list[str], Watch]:
    """Overfitting and repetition in words, and what is remembered of them."""
    forgetting, alarms = config.forgetting, list[str]()
    gap = watch.gap
    new = [found.losses[valid.name] for valid in config.data.valid if valid.suite == "new"]
    trained = found.tokens_total - watch.begun_tokens
    if forgetting.gap_nats and new and trained >= rules_of(config, watch.begun_step).grace_tokens:
        train = watch.train_nats([source.name for source in config.data.sources if source.role == "new"])
        valid = sum(new) / len(new)
        gap, grown = judge_gap(forgetting.gap_nats, forgetting.patience, gap, train, valid)
        if grown is not None:
            alarms.append(
                f"overfitting: validation minus training loss of new data has grown by {grown:.4f} nats"
            )
    repetition = dict(watch.repetition)
    for name, epochs in found.epochs.items() if forgetting.repetition_epochs else ():
        state, what = judge_repetition(
            forgetting.repetition_epochs,
            forgetting.patience,
            repetition.get(name, RepetitionState()),
            epochs,
            watch.train_nats([name]),
            found.losses.get(name),
        )
        repetition[name] = state
        if what == "epochs":
            alarms.append(f"repetition: source {name} has been seen {epochs:.2f} times")
        elif what == "useless":
            alarms.append(
                f"repetition: source {name} repeats, and its loss falls in training but not in validation"
            )
    return alarms, replace(watch, gap=gap, repetition=repetition)
