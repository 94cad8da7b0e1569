"""Every reader of files on a few damaged ones; `make fuzz` is the long form."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_targets import ROOMS, targets_of
from fuzz_worker import run_target

INPUTS = 100
"""Of a room, beside what is planted; of those whose inputs are slow to read, half."""
SLOW = ("checkpoint", "weights", "corpus")


@pytest.mark.parametrize("room", ROOMS)
def test_a_clear_error_or_a_correct_result(room: str, tmp_path: Path) -> None:
    """Never another exception, a crash, a hang, memory beyond the files' size, or values that are not those written."""
    targets = targets_of(room)
    share = (INPUTS // 2 if room in SLOW else INPUTS) / sum(target.budget for target in targets)
    for target in targets:
        outcome = run_target(target, tmp_path, 0, max(1, round(share * target.budget)))
        assert outcome.inputs > 0
        assert not outcome.findings, "\n".join(
            f"{target.name}: {f.where}: {f.what}" for f in outcome.findings
        )
