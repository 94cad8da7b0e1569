"""`cptron health MODEL`: can training start from these weights? See `health` and `repair`.

Place in the flow: before `cptron convert`. Invariant: exit code 0 means healthy, or repaired to be; UNHEALTHY that
something was found; the errors' own code, that the model could not be examined.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptron.errors import ConversionError
from cptron.inspect import text_lines

UNHEALTHY = 3
"""Exit code. Not 1, which is a traceback's."""
SHOWN = 20
"""Rows in the text; JSON has all."""


def main(argv: Sequence[str]) -> int:
    """Run `cptron health MODEL [--repair OUT [--seed N]] [--json]`."""
    parser = argparse.ArgumentParser(
        prog="cptron health",
        description="Dead embedding rows, NaN, infinity and wild norms of a Hugging Face model.",
        epilog=f"exit code: 0 healthy or repaired, {UNHEALTHY} unhealthy, 2 could not be examined or repaired",
    )
    parser.add_argument("model", type=Path, help="Hugging Face directory")
    parser.add_argument(
        "--repair",
        type=Path,
        metavar="OUT",
        help="write a copy with usable embedding rows to this new directory",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the repair's noise (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported

    from cptron.durable import must_be_new
    from cptron.weights.health import examine, facts
    from cptron.weights.repair import repair
    from cptron.weights.tensors import WeightStream

    if args.seed < 0:
        raise ConversionError(f"--seed {args.seed} must be 0 or more; correct it")
    if args.repair is not None:
        must_be_new(args.repair)
    model = WeightStream(args.model)
    health = examine(model)
    found = facts(model, health)
    if args.repair is not None:
        found["repaired"] = repair(model, health, args.repair, args.seed)
        found["repaired_model"] = str(args.repair)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(text(found)))
    return 0 if health.healthy or args.repair is not None else UNHEALTHY


def text(found: dict[str, Any]) -> list[str]:
    """The facts for people: long lists cut, with their length."""
    return text_lines({key: _cut(value) for key, value in found.items()})


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        short: dict[str, Any] = {}
        for key, entry in value.items():
            if isinstance(entry, list):
                short[f"{key}_count"] = len(entry)
                if entry:
                    short[key] = [_cut(item) for item in entry[:SHOWN]]
            else:
                short[key] = _cut(entry)
        return short
    if isinstance(value, list):
        return [_cut(item) for item in value[:SHOWN]]
    return value
