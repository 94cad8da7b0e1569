"""Choices about what is measured and kept: evaluations, the forgetting monitor, checkpoints, selection.

Place in the flow: called by `advice` with the amounts. Invariant: pure; nothing is asked of the monitor that the named
validation sets cannot tell.
"""

from __future__ import annotations

from cptron.advise.amounts import Amounts
from cptron.advise.choice import Choice, Value
from cptron.advise.facts import Facts, Held

LOOKS = 20
"""Evaluations of a run."""
SAVES_EVERY_LOOKS = 2
EVALUATION_PART = 0.1
"""Of the training's compute, for all evaluations."""
LEAST_EVALUATED, MOST_EVALUATED = 100_000, 4_000_000
"""Tokens of a set."""
BYTES_PER_PARAMETER = 14
"""Of a checkpoint of a bf16 run: weights, fp32 masters and two moments."""
PROBE_SEQUENCES, PROBE_TOKENS, LEAST_PROBE_VOCABULARY = 64, 128, 1024
EPSILON_NATS = 0.05


def watch_choices(facts: Facts, amounts: Amounts) -> list[Choice]:
    """All of them."""
    choices = [_evaluations(facts, amounts), _checkpoints(facts, amounts)]
    if facts.valid:
        choices.append(_probes(facts))
    if has_old(facts):
        choices += [_alarm(), _action(facts, amounts)]
    return choices


def has_old(facts: Facts) -> bool:
    """Something tells whether the base forgets."""
    return any(held.suite == "old" for held in facts.valid)


def _evaluations(facts: Facts, amounts: Amounts) -> Choice:
    if not facts.valid:
        return Choice(
            sets={"eval.at_start": False, "eval.every_steps": 0},
            why="No validation data are named, so neither learning nor forgetting will be seen.",
            evidence=("olmo-evals",),
            unknown="everything that a validation set would tell: `cptron split` takes documents apart, "
            "--valid-new and --valid-old name them",
        )
    most = _evaluated_tokens(facts, amounts)
    sets: dict[str, Value] = {"eval.at_start": True, "eval.every_steps": every_steps(amounts)}
    sets |= {f"data.valid.{held.name}.max_tokens": most for held in facts.valid if held.tokens > most}
    missing = (
        [] if has_old(facts) else ["what is forgotten: --valid-old names held-out data like the base's own"]
    )
    missing += [] if any(held.suite == "new" for held in facts.valid) else ["what is learned: --valid-new"]
    return Choice(
        above="eval.at_start",
        sets=sets,
        why=f"Step 0 is what changes are counted from; {LOOKS} evaluations of at most {most:,} tokens a set "
        f"together cost about a tenth of the training, or more where a set would have less than "
        f"{LEAST_EVALUATED:,} tokens.",
        evidence=("olmo-evals", "twenty-looks"),
        unknown="; ".join(missing),
    )


def every_steps(amounts: Amounts) -> int:
    """Steps between evaluations."""
    return max(1, amounts.steps // LOOKS)


def _evaluated_tokens(facts: Facts, amounts: Amounts) -> int:
    """Of each set: a forward pass is a third of a training step."""
    all_sets = 3 * EVALUATION_PART * amounts.tokens / LOOKS
    return int(min(MOST_EVALUATED, max(LEAST_EVALUATED, all_sets / len(facts.valid))))


def _checkpoints(facts: Facts, amounts: Amounts) -> Choice:
    every = every_steps(amounts) * (SAVES_EVERY_LOOKS if amounts.steps >= LOOKS else 1)
    size_gb = BYTES_PER_PARAMETER * facts.base.parameters / 1e9
    return Choice(
        sets={"checkpoint.every_steps": every},
        why=f"Every checkpoint is evaluated, and all are kept ({amounts.steps // every + 1} of about "
        f"{size_gb:,.1f} GB), so that `cptron select` can choose the best one that keeps the old loss, which "
        "need not be the last. With less disk set checkpoint.keep_last.",
        evidence=("twenty-looks",),
    )


def _probes(facts: Facts) -> Choice:
    possible = facts.base.vocab_size >= LEAST_PROBE_VOCABULARY and facts.base.max_positions >= PROBE_TOKENS
    sequences = PROBE_SEQUENCES if possible else 0
    chat = facts.base.instruct and not any(held.suite == "probe" for held in facts.valid)
    return Choice(
        sets={"forgetting.induction_sequences": sequences, "forgetting.mapping_sequences": sequences},
        why="Loss on text can stay while learning from context goes; two probes of random tokens ask for that "
        "alone."
        if possible
        else "The model is too small for the probes of learning from context.",
        evidence=("context-collapse",),
        unknown="how conversations fare: --valid-chat names held-out ones" if chat else "",
    )


def _alarm() -> Choice:
    return Choice(
        sets={
            "forgetting.epsilon_nats": EPSILON_NATS,
            "forgetting.patience": 2,
            "forgetting.grace_tokens": 0,
        },
        why="An alarm when the interval of the old loss is above 0.05 nats twice in a row, after a grace of "
        "warm-up or 2 % of the run. The two laws use different bounds: 3 % of a loss of 2 would be 0.06.",
        evidence=("epsilon-cmr", "epsilon-d-cpt", "stability-gap", "tiny-overshoot"),
        unknown="how much your use can lose: compare a checkpoint at the bound on your own tasks",
    )


def _action(facts: Facts, amounts: Amounts) -> Choice:
    if facts.general == "wanted":
        action, why = "alert", "An alarm is said, and nothing is done: the mix stays what was chosen."
    elif facts.replay and amounts.replay + amounts.chat < 0.5:
        action, why = (
            "raise_replay",
            "What the base can do must not suffer: an alarm doubles the replay, up to half of all.",
        )
    else:
        action = "stop_and_keep_best"
        why = "What the base can do must not suffer, and there is no more replay to give: an alarm ends the run."
    return Choice(
        sets={"forgetting.action": action},
        why=why,
        evidence=("reactions", "ibrahim-replay", "tiny-replay")
        if action == "raise_replay"
        else ("reactions",),
    )


def held_given(held: Held) -> dict[str, Value]:
    """Keys of a validation set that are no choice."""
    key = f"data.valid.{held.name}"
    return {f"{key}.path": held.path, f"{key}.suite": held.suite}
