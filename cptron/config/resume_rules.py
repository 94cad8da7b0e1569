"""What a resumed run may have otherwise than before: one table.

Place in the flow: `train.resume` looks every changed key up here; `check` proves `run.accept_changes` against it.
Invariant: a change is listed, refused until it is named, or refused for good; the first rule that fits decides, and the
last fits everything.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from cptron.errors import ConfigError

Verdict = Literal["listed", "named", "never"]

ANEW = "the account of every source starts anew at 0, the old ones stay on record"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What happens when a key that fits has another value at a resume."""

    key: str
    """Pattern of keys. Beside keys of the configuration: `start` (weights), `regularise` (the weights that it knows as
    the starting ones), `model` (architecture), `tokenizer`, and `data.sources.NAME.content`, which are compared by what
    they hold, not by path."""
    verdict: Verdict
    """`listed`: accepted and said. `named`: accepted where `run.accept_changes` names it. `never`: refused."""
    why: str = ""
    """What depends on the value."""
    effect: str = ""
    """What exactly an accepted change does."""
    renews: Literal["", "all", "one"] = ""
    """Whose accounts start anew: every source's, or that of the source which the key names."""
    within: tuple[str, tuple[str, ...]] = ("", ())
    """A key and its values in JSON: the rule counts only where it has one of them, before and now."""


RULES = (
    Rule(key="model", verdict="never", why="the stored weights and moments have that shape"),
    Rule(key="regularise", verdict="never", why="weights are held near those it began with"),
    Rule(
        key="forgetting.base",
        verdict="never",
        why="changes are counted from the base that it has had since its step 0",
    ),
    Rule(key="optim.name", verdict="never", why="the stored state is that optimizer's"),
    Rule(key="optim.frozen", verdict="never", why="there is optimizer state for exactly what was trained"),
    Rule(key="adapter.kind", verdict="never", why="what is stored is that, or no adapter"),
    Rule(
        key="adapter.*",
        verdict="never",
        why="the stored adapter has that form",
        within=("adapter.kind", ('"lora"', '"dora"')),
    ),
    Rule(
        key="start",
        verdict="never",
        why="the stored adapter belongs to those weights",
        within=("adapter.kind", ('"lora"', '"dora"')),
    ),
    Rule(
        key="data.megatron_s*",
        verdict="never",
        why="Megatron's order is of one number of samples and one split",
        within=("data.order", ('"megatron"',)),
    ),
    Rule(
        key="data.sources.*.token_share",
        verdict="never",
        why="Megatron's order can not be mixed anew",
        within=("data.order", ('"megatron"',)),
    ),
    Rule(
        key="start",
        verdict="named",
        why="the run was started from other weights",
        effect="weights, moments and position stay the checkpoint's; only shape and tokenizer are the new model's",
    ),
    Rule(
        key="tokenizer",
        verdict="named",
        why="the model has learned other ids",
        effect="data made with the new one is read; the model, and the tokenizer that its checkpoints carry, stay",
    ),
    Rule(
        key="train.precision",
        verdict="named",
        why="the stored weights are in it",
        effect="weights are converted, masters and moments go on as they are",
    ),
    Rule(key="run.seed", verdict="named", why="it decides which sample is which", effect=ANEW, renews="all"),
    Rule(
        key="data.seq_length", verdict="named", why="accounts count such samples", effect=ANEW, renews="all"
    ),
    Rule(
        key="data.packing", verdict="named", why="it decides which sample is which", effect=ANEW, renews="all"
    ),
    Rule(
        key="data.order", verdict="named", why="it decides which sample is which", effect=ANEW, renews="all"
    ),
    Rule(
        key="data.sources.*.content",
        verdict="named",
        why="the account counts samples of other tokens",
        effect="its account starts anew at 0, the old one stays on record",
        renews="one",
    ),
    Rule(
        key="data.sources.*.order",
        verdict="named",
        why="it decides which sample is which",
        effect="its account starts anew at 0, the old one stays on record",
        renews="one",
    ),
    Rule(key="*", verdict="listed"),
)


def rule_of(key: str, before: Mapping[str, str], now: Mapping[str, str]) -> Rule:
    """The rule that decides on `key`, given all values before and now as JSON text."""
    for rule in RULES:
        condition, values = rule.within
        counts = not condition or (before.get(condition) in values and now.get(condition) in values)
        if fnmatchcase(key, rule.key) and counts:
            return rule
    raise AssertionError("unreachable: the last rule fits every key")


def check_accepted(keys: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless each of `run.accept_changes` is a key whose change can be accepted, and must be."""
    can_be = [rule.key for rule in RULES if rule.verdict == "named"]
    for key in keys:
        if any(fnmatchcase(key, pattern) for pattern in can_be):
            continue
        refused = [rule for rule in RULES if rule.verdict == "never" and fnmatchcase(key, rule.key)]
        if refused:
            raise ConfigError(
                f"run.accept_changes names {key}, which cannot change in a run ({refused[0].why}); "
                "start a new run from a checkpoint of this one"
            )
        near = difflib.get_close_matches(key, can_be, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]}?" if near else f"it takes {', '.join(can_be)}"
        raise ConfigError(
            f"run.accept_changes names {key}, whose change needs no acceptance or which does not exist; {meant}"
        )
