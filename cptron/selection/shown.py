"""What `cptron select` prints.

Place in the flow: the record -> here -> stdout. Imports no torch. Invariant: whatever was refused, or cannot be told
apart from what was chosen, is named.
"""

from __future__ import annotations

from collections.abc import Sequence

from cptron.selection.record import Record, table_of


def record_text(record: Record) -> str:
    """The candidates, what is not among them, and what was chosen."""
    lines = [table_of(record["candidates"])]
    lines.append(
        "> chosen   * no other is better on old and new data   changes in nats per token against the base"
    )
    lines += [f"not comparable: {name}: {why}" for name, why in record["not_comparable"].items()]
    if lost := record["without_checkpoint"]:
        lines.append(f"evaluated, and not saved: {', '.join(lost)}")
    return "\n".join([*lines, record["reason"], *_doubts(record["candidates"])])


def grid_text(grid: Record) -> list[str]:
    """The interpolations, and what was chosen of them."""
    differs = f"its losses are within {grid['base_differs_nats']:.1e} nats per token of the record"
    return [
        "",
        f"interpolations of {grid['of']} with {grid['base']} ({differs})",
        table_of(grid["candidates"]),
        *(f"note: {note}" for note in grid["notes"]),
        grid["reason"],
        *_doubts(grid["candidates"]),
    ]


def _doubts(rows: Sequence[Record]) -> list[str]:
    """Candidates that could be chosen as well, whose loss on new data is not told apart from that of the chosen one;
    and what was chosen, where it may have learned nothing."""
    near = [
        row["name"]
        for row in rows
        if not row["is_chosen"]
        and row.get("is_within_epsilon", True)
        and (against := row.get("new_minus_chosen_nats")) is not None
        and float(against[1]) <= 0
    ]
    found = [f"not told apart from it on new data: {', '.join(near)}"] if near else []
    for row in rows:
        if row["is_chosen"] and row["new_change_nats"] is not None and float(row["new_change_nats"][2]) >= 0:
            found.append(f"{row['name']} is not shown to be better on new data than the base")
    return found


def kept_text(record: Record) -> list[str]:
    """What was marked, and what need not be."""
    lines = [f"marked {item['mark']}: step {item['step']} of {item['run']}" for item in record["marked"]]
    lines += [
        f"no longer marked {item['mark']}: step {item['step']} of {item['run']}"
        for item in record["unmarked"]
    ]
    lines += [
        f"{path} is not marked: what a rollback has left is never deleted" for path in record["kept_in_left"]
    ]
    return lines or ["marked nothing"]
