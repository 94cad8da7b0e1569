"""Losses of the base before training: from what `cptron eval` wrote, or measured now by the engine.

Place in the flow: `main` asks, `shift` compares old with new. Imports torch only to measure. Invariant: a loss is that
of a set that was named as new or old; nothing else is taken for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cptron.advise.facts import Base, Corpus, Held, StepZeroLoss
from cptron.errors import ConfigError, DataError
from cptron.json_text import parse_json

Suite = Literal["old", "new"]
MEASURED_TOKENS = 200_000
"""Of each set."""
MEASURED_LENGTH = 1024


def suites_of(
    new: Sequence[Corpus], replay: Sequence[Corpus], valid: Sequence[Held]
) -> dict[str, tuple[Suite, str]]:
    """Name, and path, -> suite and path: of held-out sets where both suites have one, else of the training sources."""
    held: list[tuple[str, str, Suite]] = [
        (one.name, one.path, suite) for suite in _SUITES for one in valid if one.suite == suite
    ]
    sources: list[tuple[str, str, Suite]] = [
        *((one.name, one.path, "new") for one in new),
        *((one.name, one.path, "old") for one in replay),
    ]
    chosen = held if {suite for *_, suite in held} == set(_SUITES) else [*held, *sources]
    return {name: (suite, path) for name, path, suite in reversed(chosen)}


_SUITES: tuple[Suite, ...] = ("new", "old")


def read_losses(path: Path, suites: Mapping[str, tuple[Suite, str]]) -> tuple[StepZeroLoss, ...]:
    """Records of `cptron eval`, a JSON object a line. Raises DataError where one is damaged or of no named set."""
    by_name = {**{prefix: (suite, name) for name, (suite, prefix) in suites.items()}}
    by_name |= {name: (suite, name) for name, (suite, _) in suites.items()}
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--losses {path} cannot be read ({error}); give what `cptron eval` printed"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _record(f"--losses {path}:{number}", line)
        if "group" in record:
            continue
        name = record["data"]
        if name not in by_name:
            raise DataError(
                f"--losses {path}:{number} is of {name!r}, no set that is named; name it as one of "
                f"{', '.join(sorted(suites))} (`cptron eval --data NAME=PATH`)"
            )
        suite, known_as = by_name[name]
        found.append(
            StepZeroLoss(
                name=known_as,
                suite=suite,
                nats_per_token=float(record["loss_nats_per_token"]),
                bits_per_byte=record.get("bits_per_byte"),
            )
        )
    if not found:
        raise DataError(f"--losses {path} holds no record; give what `cptron eval` printed")
    return tuple(found)


def _record(where: str, line: str) -> dict[str, Any]:
    try:
        record = parse_json(line)
        values = [record["loss_nats_per_token"], record.get("bits_per_byte", 1.0)]
        good = all(type(value) in (int, float) and 0 < value < math.inf for value in values)
        if not isinstance(record["data"], str) or not good:
            raise TypeError("its loss must be a number above 0")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{where} is no record of `cptron eval` ({error}); leave the line out") from None
    found: dict[str, Any] = record
    return found


def measure(base: Base, suites: Mapping[str, tuple[Suite, str]]) -> tuple[StepZeroLoss, ...]:
    """The base's loss on the beginning of each set, by the engine in this process. Raises `ConfigError` for a base that
    is no checkpoint."""
    if base.kind != "checkpoint":
        raise ConfigError(
            f"--measure computes with the engine, and --base {base.path} is no checkpoint; run `cptron "
            "convert` first, or give --losses"
        )
    from cptron.checkpoint.weights import open_model
    from cptron.config.schema import AttentionConfig
    from cptron.data.valid import ValidSet
    from cptron.evaluate.perplexity import evaluate_set
    from cptron.model.options import ModelOptions
    from cptron.runtime.session import open_session

    length = min(MEASURED_LENGTH, base.max_positions)
    sets = [
        (suite, ValidSet(name, prefix, length, MEASURED_TOKENS, 1, 0, 1, base.vocab_size))
        for name, (suite, prefix) in suites.items()
    ]
    with open_session() as session:
        precision: Literal["fp32", "bf16"] = "fp32" if session.device.kind == "cpu" else "bf16"
        model = open_model(
            Path(base.path), ModelOptions(precision=precision, attention=AttentionConfig(document_mask=True))
        )
        return tuple(
            StepZeroLoss(
                name=one.name,
                suite=suite,
                nats_per_token=evaluate_set([model], one, session.device.torch_device).loss_nats_per_token,
            )
            for suite, one in sets
        )
