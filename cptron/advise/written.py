"""Advice as a configuration with comments: YAML that `cptron train` reads as it is.

Place in the flow: `main` writes it. Invariant: what is loaded from it has exactly the values of the advice, and
nothing that comes from a name or a path can end a comment or begin a key.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from cptron.advise.advice import Advice
from cptron.advise.choice import Choice, Value
from cptron.advise.evidence import EVIDENCE

WIDTH = 116
SECTIONS = (
    "run",
    "start",
    "attention",
    "data",
    "train",
    "optim",
    "regularise",
    "eval",
    "forgetting",
    "checkpoint",
)
LISTS = ("data.sources", "data.valid")
"""Keys whose elements have names."""


def commented_yaml(advice: Advice) -> str:
    """The file."""
    comments = {choice.above or next(iter(choice.sets)): _comment(choice) for choice in advice.choices}
    tree = _tree(advice.values())
    assert tree.keys() <= set(SECTIONS), tree.keys() - set(SECTIONS)
    lines = _header(advice)
    for section in (name for name in SECTIONS if name in tree):
        lines += ["", *_section(section, tree[section], comments, "")]
    assert not comments, f"no place for {list(comments)}"
    return "\n".join([*lines, "", *_evidence(advice), ""])


def _tree(values: Mapping[str, Value]) -> dict[str, Any]:
    """Dotted keys as sections within sections, in the order of their first appearance."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree


def _section(key: str, content: Any, comments: dict[str, list[str]], indent: str) -> list[str]:
    """`key: value`, or the section below it, with the comments above; a comment that is written is taken out."""
    name = key.rpartition(".")[2]
    lines = [f"{indent}{line}" for line in comments.pop(key, [])]
    if not isinstance(content, Mapping):
        return [*lines, f"{indent}{name}: {_scalar(content)}"]
    lines.append(f"{indent}{name}:")
    if key not in LISTS:
        for child, value in content.items():
            lines += _section(f"{key}.{child}", value, comments, indent + "  ")
        return lines
    for child, values in content.items():
        lines += [f"{indent}  {line}" for line in comments.pop(f"{key}.{child}", [])]
        lines.append(f"{indent}  - name: {_scalar(child)}")
        for leaf, value in values.items():
            lines += _section(f"{key}.{child}.{leaf}", value, comments, indent + "    ")
    return lines


def _scalar(value: Any) -> str:
    """A value in YAML: JSON is, and numbers are written as people do."""
    if isinstance(value, float):
        return f"{value:.6g}" if float(f"{value:.6g}") == value else repr(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=True)


def _comment(choice: Choice) -> list[str]:
    lines = _wrapped(choice.why)
    lines += _wrapped(f"Evidence ({choice.strength}): {', '.join(choice.evidence)}.")
    if choice.disputes:
        lines += _wrapped(
            "Disagreeing: " + "; ".join(f"{one} and {other}" for one, other in choice.disputes) + "."
        )
    if choice.unknown:
        lines += _wrapped(f"Not known: {choice.unknown}.")
    return lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return [
        f"# {line}"
        for line in textwrap.wrap(
            plain, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    ]


def _header(advice: Advice) -> list[str]:
    facts, base = advice.facts, advice.facts.base
    tied = "tied" if base.tied_embeddings else "untied"
    lines = [
        *_wrapped(
            "Written by `cptron advise`. A place to begin: every choice says what it rests on, and most of "
            "what is published was measured on other models and data than yours. Choices without a comment are "
            "facts."
        ),
        "#",
        *_wrapped(
            f"Base: {base.path}, {base.family}, {base.parameters:,} parameters, vocabulary {base.vocab_size:,} "
            f"({tied}), {base.max_positions:,} positions, {base.rope}; {_instruct(advice)}.",
            "  ",
        ),
    ]
    for what, corpora in (("New data", facts.new), ("Replay", facts.replay), ("Conversations", facts.chat)):
        for one in corpora:
            lines += _wrapped(
                f"{what}: {one.name}, {one.tokens:,} tokens in {one.documents:,} documents.", "  "
            )
    lines += _wrapped(f"Shift: {advice.shift.kind}; {advice.shift.why}.", "  ")
    lines += _wrapped(f"Run: {advice.amounts.tokens:,} tokens.", "  ")
    if advice.unknown:
        lines += ["#", *_wrapped("Not known when this was written, and how to find out:")]
        lines += [line for part in advice.unknown for line in _wrapped(f"- {part}", "  ")]
    return lines


def _instruct(advice: Advice) -> str:
    base = advice.facts.base
    told: str = base.instruct_from
    if base.instruct_from == "template":
        told = "it has a chat template" if base.instruct else "it has no chat template"
    caution = "; some base models have one too: --instruct no" if told == "it has a chat template" else ""
    return f"taken for {'an instruct' if base.instruct else 'a base'} model ({told}{caution})"


def _evidence(advice: Advice) -> list[str]:
    lines = _wrapped(
        "Evidence. read: source code or official documentation was read. second-hand: reported by others, the "
        "paper itself was not read. from memory. measured: by this project on a model of 0.12 million "
        "parameters, which shows a shape and says little about large ones. rule of thumb: ours, no evidence."
    )
    for name in advice.cited:
        one = EVIDENCE[name]
        reported = ", as reported" if one.known == "second-hand" else ""
        against = f" Against: {', '.join(one.against)}." if one.against else ""
        lines += _wrapped(f"{name} [{one.known}] {one.source}{reported}: {one.claim}.{against}", "  ")
    return lines
