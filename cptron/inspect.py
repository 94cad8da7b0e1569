"""`cptron inspect PATH`: what a token file, a checkpoint or a run holds.

Place in the flow: any time, on any machine; imports no torch. Invariant: it only reads, and what is damaged is
said, not left out: the thing asked for by an error, a part of it where that part would stand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.errors import DataError
from cptron.inspect_run import RUN_FILE, describe_checkpoint, describe_run
from cptron.inspect_tokens import Facts, describe_tokens, for_people, is_prefix, printable
from cptron.report.console import table


def main(argv: Sequence[str]) -> int:
    """Run `cptron inspect PATH [--tokenizer T] [--document N] [--verify] [--json]`."""
    parser = argparse.ArgumentParser(
        prog="cptron inspect", description="What token files, a checkpoint or a run hold."
    )
    parser.add_argument("path", help="token file prefix, checkpoint directory or run directory")
    parser.add_argument(
        "--tokenizer", default="", help="token files: prove that this tokenizer made them, and show some text"
    )
    parser.add_argument(
        "--document", type=int, metavar="N", help="token files: show this one, counted from 0, whole"
    )
    parser.add_argument("--verify", action="store_true", help="token files: read them whole, compare hashes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args(argv)
    facts = describe(args.path, tokenizer=args.tokenizer, check_hashes=args.verify, document=args.document)
    if args.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    print("\n".join(text_lines(for_people(facts) if "length_histogram" in facts else facts)))
    text = facts.get("document", {}).get("text")
    if text is not None:
        print(f"text\n{printable(text)}")
    return 0


def describe(
    path: str, *, tokenizer: str = "", check_hashes: bool = False, document: int | None = None
) -> Facts:
    """Facts about a path, ready for JSON. Raises `CptronError` when it is damaged, or nothing cptron makes."""
    if is_prefix(path):
        return describe_tokens(path, tokenizer=tokenizer, check_hashes=check_hashes, document=document)
    if tokenizer or check_hashes or document is not None:
        raise DataError(
            f"{path} is no token file prefix ({path}.idx does not exist), and --tokenizer, --document and --verify "
            "are for token files; leave them out or give PREFIX of PREFIX.idx"
        )
    directory = Path(path)
    if (directory / layout.MANIFEST).is_file():
        return describe_checkpoint(directory)
    if (directory / RUN_FILE).is_file():
        return describe_run(directory)
    raise DataError(
        f"{path} is no token file prefix ({path}.idx), checkpoint directory (with {layout.MANIFEST}) or run "
        f"directory (with {RUN_FILE}); give one of these"
    )


def text_lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    """`name  value` lines; a section is indented under its name, a list of records is a table."""
    width = max((len(name) for name in facts), default=0)
    lines: list[str] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}", *text_lines(value, indent + "  ")]
        elif _is_table(value):
            rows = table(list(value[0]), [[_shown(cell) for cell in row.values()] for row in value])
            lines += [f"{indent}{name}", *(f"{indent}  {row}" for row in rows.splitlines())]
        elif isinstance(value, list) and value:
            lines += [f"{indent}{name}", *(f"{indent}  {_shown(item)}" for item in value)]
        else:
            lines.append(f"{indent}{name:<{width}}  {_shown(value)}")
    return lines


def _is_table(value: object) -> bool:
    """Records with the same fields; what a damaged file holds may be less."""
    if not isinstance(value, list) or not value or not all(isinstance(item, Mapping) for item in value):
        return False
    return len({tuple(item) for item in value}) == 1


def _shown(value: object) -> str:
    """A value as people read it, on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) >= 1e-3 else f"{value:.4g}"
    return " ".join(str(value).split()) if value not in (None, [], {}) else "none"
