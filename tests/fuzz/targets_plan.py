"""Targets: what a plan is given beside the recipe: a fit of an earlier calibration, and GPUs that a user describes."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz_json import mutate_json
from fuzz_target import Seed, Target
from fuzz_yaml import mutate_yaml, planted_yaml

from cptron.plan.calibrate import Fit, LogFit
from cptron.plan.efficiency import Efficiency
from cptron.plan.fit_file import FILE, read_fit, write_fit
from cptron.plan.gpus import NUMBERS, read_gpus

DESCRIBED = """\
# what we rent, and a card of our own
ours: {like: h100, memory_gib: 94, usd_per_hour: [1.9, 2.2]}
card:
  memory_gib: 23.6
  bf16_tflop_per_s: 1.65e+2
  fp32_tflop_per_s: 82.6
  memory_gb_per_s: 1008
  link_gb_per_s: 25
  board_w: 450
  server_w: 700
  usd_per_hour: 0.4
  source: "its data sheet"
"""


def make_fit(root: Path) -> list[Seed]:
    """The fit of one log."""
    efficiency = Efficiency(
        low=0.4, expected=0.5, high=0.6, memory_factor=1.1, source="fitted to a", is_measured=True
    )
    log = LogFit(
        log="a",
        layout="dp8",
        num_gpus=8,
        steps_used=40,
        steps_left_out=5,
        step_time_s=(0.9, 1.0, 1.1),
        reached=0.5,
        predicted_s=1.0,
        memory_gib=11.0,
        predicted_memory_gib=10.0,
    )
    write_fit(root / FILE, Fit("h100", efficiency, (log,), ("a note",)))
    return [Seed(root, FILE)]


def check_fit(_directory: Path, value: dict[str, Any]) -> str | None:
    """Numbers that a plan can divide by, in their order."""
    inside = 0 < value["low"] <= value["expected"] <= value["high"] < math.inf
    return (
        None if inside and 0 < value["memory_factor"] < math.inf else "parts of the peak that no plan can use"
    )


def make_gpus(root: Path) -> list[Seed]:
    """One like another, and one with all of its own."""
    (root / "gpus.yaml").write_text(DESCRIBED)
    return [Seed(root, "gpus.yaml")]


def read_described(directory: Path) -> dict[str, dict[str, Any]]:
    """Every GPU with its numbers."""
    return {name: asdict(gpu) for name, gpu in read_gpus(directory / "gpus.yaml").items()}


def check_described(_directory: Path, value: dict[str, dict[str, Any]]) -> str | None:
    """Numbers in their range, prices in their order."""
    for name, gpu in value.items():
        low, high = gpu["usd_per_hour"]
        if (
            not all(0 <= gpu[key] < 1e9 for key in NUMBERS)
            or not 0 <= low <= high < 1e9
            or gpu["name"] != name
        ):
            return f"{name}: a number that no plan can use"
    return None


TARGETS = [
    Target(
        format="fit of a plan",
        name="plan-fit",
        reader="cptron.plan.fit_file.read_fit",
        make=make_fit,
        read=lambda directory: asdict(read_fit(directory / FILE, "h100")),
        mutate=mutate_json,
        check=check_fit,
    ),
    Target(
        format="GPUs of a user",
        name="gpu-file",
        reader="cptron.plan.gpus.read_gpus",
        make=make_gpus,
        read=read_described,
        mutate=mutate_yaml,
        check=check_described,
        planted=planted_yaml,
    ),
]
