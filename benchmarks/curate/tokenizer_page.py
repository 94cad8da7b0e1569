"""The table of numbers in docs/tokenizer.md, from the rows on record.

Usage: python -m benchmarks.curate.tokenizer_page [--results FILE]

Place in the flow: after `--rows tokenizer` of `benchmarks.curate.run`. Invariant: every number of the table is of the
results; a test compares the page with them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.measure import ROOT
from benchmarks.data.results import read

RESULTS = ROOT / "benchmarks" / "results" / "curate.json"
PAGE = ROOT / "docs" / "tokenizer.md"
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
EXTENSIONS = (1, 2, 3)
INITS = ("subtoken_mean", "mean", "mvn", "random")

Rows = Mapping[str, Mapping[str, Any]]


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lines of Markdown. Raises KeyError where a row is not on record."""
    rows = {str(row["row"]): row for row in results}
    columns = [_column(rows, number) for number in EXTENSIONS]
    titles = [str(rows[f"tokenizer {number}c"]["work"]).split(":")[0] for number in EXTENSIONS]
    lines = [f"| | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    lines += [f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]]
    return "\n".join(lines)


def _column(rows: Rows, number: int) -> dict[str, str]:
    row = {letter: rows[f"tokenizer {number}{letter}"] for letter in "abcdefh"}
    losses = dict(re.findall(r"([a-z_ ]+) ([\d.]+)", row["h"]["note"]))
    losses = {name.strip(): value for name, value in losses.items()}
    words = re.search(r"cuts ([\d.]+) words/byte", row["a"]["note"])
    assert words is not None, "the row says what the pre-tokenizer does"
    return {
        "new tokens": f"{int(row['a']['work'].split()[0]):,}",
        "its text, tokens/byte": _change(row["a"]),
        "the least that its pre-tokenizer lets": f"{float(words[1]):.3f}",
        "the same by `add_tokens`": f"{row['c']['peer_value']:.3f}",
        "English, tokens/byte": _change(row["b"]),
        "the same by `add_tokens`, English": f"{row['d']['peer_value']:.4f}",
        "new tokens that no text reaches": str(row["e"]["ours"]),
        "random texts that come back otherwise": str(row["f"]["ours"]),
        "loss at step 0, bits/byte: not extended": losses["not extended"],
        **{f"`{name}`" if name != "random" else "random rows": losses[name] for name in INITS},
        **_focus(rows, number),
    }


def _focus(rows: Rows, number: int) -> dict[str, str]:
    """Losses of `--rows focus`, which needs a program more; empty where they are not on record."""
    if f"tokenizer {number}k" not in rows:
        return {}
    note = rows[f"tokenizer {number}k"]["note"].split(";")[0]
    found = re.findall(r"(as published|30 epochs) ([\d.]+)", note)
    return {f"`focus`, vectors of fastText: {name}": value for name, value in found}


def _change(row: Mapping[str, Any]) -> str:
    before, after = row["peer_value"], row["ours"]
    digits = 4 if abs(after / before - 1) < 0.05 else 3
    return f"{before:.{digits}f} → {after:.{digits}f} ({(after / before - 1) * 100:+.1f} %)"


def put(page: str, lines: str) -> str:
    """The page with the table between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{lines}\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the table of docs/tokenizer.md.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    try:
        lines = table(read(args.results))
    except KeyError as error:
        print(f"error: {args.results} lacks row {error}; run --rows tokenizer first", file=sys.stderr)
        return 2
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), lines), encoding="utf-8")
    print(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
