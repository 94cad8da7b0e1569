"""An analysis for people: the same counts as the JSON, in tables that fit a terminal of 80 columns.

Place in the flow: `cptron tokenizer analyze` without `--json`. Invariant: no number is counted here; they are those of
the JSON, rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_NAME, MAX_CUT, MAX_CUT_OF_TWO = 20, 24, 16
"""Characters of a column; of longer names the end is shown, of longer words and cuts the beginning."""
RATES = {
    "characters_per_token": "char/tok",
    "bytes_per_token": "byte/tok",
    "tokens_per_word": "tok/word",
}
COMPARED = "_compared"


def analysis_for_people(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Sections for `inspect.text_lines`; the second tokenizer's tables are below those of the first."""
    shown: dict[str, Any] = {}
    for name, value in facts.items():
        if name in ("by_language", "by_source"):
            shown[name] = [_group(row, "") for row in value]
            if f"tokens{COMPARED}" in value[0]:
                shown[f"{name}{COMPARED}"] = [_group(row, COMPARED) for row in value]
        elif name == "most_fragmented_words":
            shown[name] = [_word(row) for row in value]
        else:
            shown[name] = value
    return shown


def _group(row: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    kind, *_ = row
    found: dict[str, Any] = {kind: _end(str(row[kind]), MAX_NAME)}
    if suffix:
        found |= {
            "tokens": row[f"tokens{suffix}"],
            "to_first": row[f"tokens{suffix}"] / max(row["tokens"], 1),
        }
    else:
        found |= {"docs": row["documents"], "MB": f"{row['bytes'] / 1e6:,.2f}", "tokens": row["tokens"]}
    return found | {title: f"{row[key + suffix]:.2f}" for key, title in RATES.items()}


def _word(row: Mapping[str, Any]) -> dict[str, Any]:
    limit = MAX_CUT_OF_TWO if f"tokens{COMPARED}" in row else MAX_CUT
    found: dict[str, Any] = {"word": _beginning(row["word"], limit), "times": row["occurrences"]}
    for suffix, mark in (("", ""), (COMPARED, "_2")):
        if f"tokens{suffix}" in row:
            found[f"tokens{mark}"] = row[f"tokens{suffix}"]
            found[f"pieces{mark}"] = _beginning(row[f"pieces{suffix}"], limit)
    return found


def _end(text: str, limit: int) -> str:
    return text if len(text) <= limit else "…" + text[1 - limit :]


def _beginning(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
