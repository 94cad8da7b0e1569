"""A calibration as a JSON file: the fitted numbers, the logs they are from, and the residuals.

Place in the flow: `main` writes it for `--calibrate` and reads it for `--fit`. Invariant: what is read back plans as
what was written; a file of another GPU is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cptron.durable import replace_text
from cptron.errors import ConfigError, DataError
from cptron.json_text import parse_json
from cptron.plan.calibrate import Fit
from cptron.plan.efficiency import Efficiency

FORMAT = 1
FILE = "plan_fit.json"


def fit_record(fit: Fit) -> dict[str, Any]:
    """JSON form."""
    return {
        "format": FORMAT,
        "gpu": fit.gpu,
        "efficiency": asdict(fit.efficiency),
        "logs": [
            {
                **asdict(log),
                "residual_step_time": log.residual,
                "residual_memory": log.predicted_memory_gib * fit.efficiency.memory_factor / log.memory_gib
                - 1,
            }
            for log in fit.logs
        ],
        "notes": list(fit.notes),
    }


def write_fit(path: Path, fit: Fit) -> None:
    """Write it, durably. Raises `ConfigError`."""
    try:
        replace_text(path, json.dumps(fit_record(fit), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--write-fit {path} cannot be written ({error}); choose another file") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"it has {value!r:.40} in the place of a number")
    return float(value)


def read_fit(path: Path, gpu: str) -> Efficiency:
    """The fitted efficiency. Raises `DataError` where the file is damaged, or of another GPU."""
    try:
        record = parse_json(path.read_bytes())
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, not {FORMAT}")
        values = record["efficiency"]
        numbers = {name: _number(values[name]) for name in ("low", "expected", "high", "memory_factor")}
        if not 0 < numbers["low"] <= numbers["expected"] <= numbers["high"] < math.inf:
            raise ValueError("its parts of the peak are not in order")
        if not 0 < numbers["memory_factor"] < math.inf:
            raise ValueError("its memory factor is not above 0")
        found = Efficiency(**numbers, source=str(values["source"]), is_measured=True)
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"--fit {path} cannot be read ({error!s:.200}); fit again with --calibrate") from None
    if record.get("gpu") != gpu:
        raise DataError(
            f"--fit {path} is of {record.get('gpu')!s:.60}, but --gpu is {gpu}; calibrate with a log of that GPU"
        )
    return found
