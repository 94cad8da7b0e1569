"""What is claimed of replay, rate, monitor and selector, and whether the runs show it.

Place in the flow: raw numbers of `collect` -> here -> `results.json` and `page`. Invariant: a pure function of the raw
numbers; claims and limits are fixed here, before any run; a claim holds or does not, by estimates, and says in how many
comparisons the interval tells the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cptron.forgetting.bootstrap import Change, Interval, mean_change
from examples.experiments.plan import LOW_RATE, SEED

Json = dict[str, Any]
Runs = Sequence[Mapping[str, Any]]

MAX_COST_NATS = 0.015
"""Of 5 % replay on new data, as in the published table."""
BOOTSTRAP_SEED = SEED
"""That of the runs, so that intervals are those of their monitor."""


def change(run: Mapping[str, Any], suite: str) -> Interval:
    """Of the loss on a suite's only set, from the base to the end of a run."""
    return _difference(run["base"], run["last"], suite)


def difference(first: Mapping[str, Any], second: Mapping[str, Any], suite: str) -> Interval:
    """Loss on a suite's only set at the end of the second run, minus that at the end of the first."""
    return _difference(first["last"], second["last"], suite)


def loss(run: Mapping[str, Any], suite: str) -> float:
    """At the end, in nats per token."""
    _, found = _set(run["last"], suite)
    return float(sum(found["nats"]) / sum(found["tokens"]))


def judged(runs: Runs) -> list[Json]:
    """All claims, for each experiment that has the runs they ask for."""
    names = list(dict.fromkeys(run["experiment"] for run in runs))
    asked = (_replay_keeps, _little_is_cheap, _low_rate, _monitor, _selector)
    found = []
    for name in names:
        own = [run for run in runs if run["experiment"] == name]
        verdicts = [claim(own) for claim in asked]
        found += [{"experiment": name, **verdict} for verdict in verdicts if verdict]
    return found


def by_share(runs: Runs) -> list[Mapping[str, Any]]:
    """Runs at the usual rate, least replay first."""
    return sorted((run for run in runs if run["rate"] == 1), key=lambda run: run["replay_percent"])


def _replay_keeps(runs: Runs) -> Json | None:
    if len(by_share(runs)) < 2:
        return None
    steps: list[Json] = []
    for less, more in pairwise(by_share(runs)):
        found = difference(less, more, "old")
        shares = f"{less['replay_percent']} % to {more['replay_percent']} %"
        steps.append({"shares": shares, "nats": _numbers(found)})
    falls = [step["nats"][0] < 0 for step in steps]
    sure = sum(step["nats"][2] < 0 for step in steps)
    shown = "; ".join(f"{step['shares']}: {_text(step['nats'])}" for step in steps)
    return {
        "claim": "The loss on old text at the end falls strictly with the share of replay.",
        "holds": all(falls),
        "numbers": steps,
        "why": f"{shown}. {sure} of {len(steps)} intervals exclude 0.",
    }


def _little_is_cheap(runs: Runs) -> Json | None:
    shares = {run["replay_percent"]: run for run in by_share(runs)}
    if not {0, 5} <= set(shares):
        return None
    found = difference(shares[0], shares[5], "new")
    return {
        "claim": f"5 % replay costs at most {MAX_COST_NATS} nats per token on new text, against none.",
        "holds": found.estimate <= MAX_COST_NATS,
        "numbers": _numbers(found),
        "why": f"5 % minus 0 %: {_text(_numbers(found))}."
        + (
            ""
            if found.high <= MAX_COST_NATS or found.low > MAX_COST_NATS
            else " The interval holds both answers."
        ),
    }


def _low_rate(runs: Runs) -> Json | None:
    slow = next((run for run in runs if run["rate"] == LOW_RATE), None)
    if slow is None:
        return None
    usual = next(run for run in by_share(runs) if run["replay_percent"] == slow["replay_percent"])
    old, new = difference(usual, slow, "old"), difference(usual, slow, "new")
    return {
        "claim": f"A peak rate {LOW_RATE:g} times as high forgets less and learns less.",
        "holds": old.estimate < 0 < new.estimate,
        "numbers": {"old": _numbers(old), "new": _numbers(new)},
        "why": f"At {slow['replay_percent']} % replay, {slow['lr']:g} minus {usual['lr']:g}: "
        f"old {_text(_numbers(old))}, new {_text(_numbers(new))}.",
    }


def _monitor(runs: Runs) -> Json | None:
    shares = {run["replay_percent"]: run for run in by_share(runs)}
    if not {0, 25} <= set(shares):
        return None
    alarms = {percent: alarm_steps(shares[percent]) for percent in (0, 25)}
    said = {
        percent: f"alarm at step {', '.join(map(str, steps))}" if steps else "no alarm"
        for percent, steps in alarms.items()
    }
    return {
        "claim": f"The monitor fires without replay and not with 25 %, at its default epsilon "
        f"({shares[0]['epsilon_nats']:g} nats).",
        "holds": bool(alarms[0]) and not alarms[25],
        "numbers": {str(percent): steps for percent, steps in alarms.items()},
        "why": f"0 %: {said[0]}; 25 %: {said[25]}.",
    }


def _selector(runs: Runs) -> Json | None:
    outcomes = [_outcome(run) for run in by_share(runs) if run["selection"]]
    if not outcomes:
        return None
    return {
        "claim": "Where the last checkpoint forgets more than epsilon, `cptron select` finds a model that does not.",
        "holds": all(found["chosen"] is not None or not found["last_breaks"] for found in outcomes)
        and any(found["last_breaks"] for found in outcomes),
        "numbers": outcomes,
        "why": " ".join(found["why"] for found in outcomes),
    }


def _outcome(run: Mapping[str, Any]) -> Json:
    """Of one run, what was chosen and what the last checkpoint is."""
    selection = run["selection"]
    last = max(selection["candidates"], key=lambda row: row["step"])
    rows = selection["grid"] or selection["candidates"]
    chosen = next((row for row in rows if row["is_chosen"]), None)
    breaks = not last["is_within_epsilon"]
    words = [
        f"{run['replay_percent']} % replay: the last checkpoint (step {last['step']}) has old "
        f"{_text(last['old_change_nats'])}, {'beyond' if breaks else 'within'} epsilon"
    ]
    if selection["grid"]:
        words.append(
            f"none of {len(selection['candidates'])} checkpoints is within it, so their interpolations with the base "
            "are candidates too"
        )
    if chosen is None:
        words.append("none is within epsilon")
    else:
        changes = f"old {_text(chosen['old_change_nats'])}, new {_text(chosen['new_change_nats'])}"
        words.append(f"chosen is {name_of(chosen)}: {changes}")
    return {
        "run": run["name"],
        "last_breaks": breaks,
        "chosen": None if chosen is None else name_of(chosen),
        "why": "; ".join(words) + ".",
    }


def name_of(row: Mapping[str, Any]) -> str:
    """A candidate of `cptron select` in words."""
    return f"step {row['step']}" if row["alpha"] is None else f"alpha {row['alpha']:g}"


def alarm_steps(run: Mapping[str, Any]) -> list[int]:
    """Steps at which the monitor said alarm."""
    return [found["step"] for found in run["verdicts"] if found["finding"] == "alarm"]


def _difference(first: Mapping[str, Any], second: Mapping[str, Any], suite: str) -> Interval:
    name, before = _set(first, suite)
    _, after = _set(second, suite)
    assert before["tokens"] == after["tokens"], "the same windows"
    nats = np.array(after["nats"]) - np.array(before["nats"])
    one = Change(name, nats, np.array(before["tokens"], dtype=np.float64))
    return mean_change([one], BOOTSTRAP_SEED)


def _set(evaluation: Mapping[str, Json], suite: str) -> tuple[str, Json]:
    """Name and losses of the only set of a suite."""
    (named,) = [(name, found) for name, found in evaluation.items() if found["suite"] == suite]
    return named


def _numbers(interval: Interval) -> list[float]:
    return [round(value, 4) for value in (interval.estimate, interval.low, interval.high)]


def _text(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:+.3f} [{numbers[1]:+.3f}, {numbers[2]:+.3f}]"
