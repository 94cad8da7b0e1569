"""Turns what the engine has found on the sets into an evaluation that is kept, and into what its record says.

Place in the flow: losses by window -> here, on the main rank alone -> files, records, `decide`. Imports no torch.
Invariant: the base is fixed at step 0 and comes back with the run; an evaluation is on disk before it is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.config.schema import Config
from cptron.data.valid import ValidSet
from cptron.data.windows import WindowSet
from cptron.evaluate.set_losses import SetLosses
from cptron.forgetting.base import Control, choose_base, kept_base
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.compare import (
    not_comparable,
    set_record,
    suite_changes,
    suite_record,
    without_interval,
)
from cptron.forgetting.evaluation import (
    BASE,
    FOLDER,
    EvaluatedSet,
    Evaluation,
    evaluation_path,
    write_evaluation,
)
from cptron.forgetting.settings import resampling_of
from cptron.tokens.byte_lengths import token_bytes


class Measuring:
    """The sets of one run, and what their losses are compared with."""

    def __init__(self, config: Config, sets: Sequence[WindowSet], tokenizer_json: bytes | None) -> None:
        """`tokenizer_json`: of the tokenizer that the sets were made with, where it is known. Raises a `CptronError`
        where a control run is not what it must be."""
        self._config, self._run, self._sets = (
            config,
            Path(config.run.dir),
            {found.name: found for found in sets},
        )
        self._how = resampling_of(config)
        self._suites = {valid.name: valid.suite for valid in config.data.valid}
        self._control = Control(Path(config.forgetting.control)) if config.forgetting.control else None
        self._bytes_by_set = _bytes_by_set(sets, tokenizer_json)
        self.base: Evaluation | None = None
        """None before step 0 was evaluated, and for a run that had no monitor then."""

    def resume(self, checkpoint: Path) -> None:
        """Take up the base of a run that goes on. Raises `CheckpointError`."""
        self.base = kept_base(self._run, checkpoint)

    def evaluation(
        self, step: int, tokens_total: int, attempt: int, losses: Mapping[str, SetLosses]
    ) -> Evaluation:
        """What was found, completed by what is known of the sets, and written to the run's directory."""
        found = {name: self._evaluated(self._sets[name], of_set) for name, of_set in losses.items()}
        evaluation = Evaluation(step, tokens_total, found, attempt)
        write_evaluation(evaluation_path(self._run, step), evaluation.to_bytes())
        return evaluation

    def _evaluated(self, found: WindowSet, losses: SetLosses) -> EvaluatedSet:
        is_text = isinstance(found, ValidSet)
        return EvaluatedSet(
            self._suites[found.name] if is_text else "probe",
            found.facts,
            losses.nats_W,
            losses.tokens_W,
            self._bytes_by_set.get(found.name),
            "text" if is_text else found.name,
        )

    def begin(self, step_0: Evaluation, started_from: Path | None) -> str:
        """Fix the base of a new run; returns where it is from. Raises a `CptronError`."""
        self.base, origin = choose_base(self._config, started_from, step_0)
        write_evaluation(self._run / FOLDER / BASE, self.base.to_bytes())
        return origin

    def changes(self, now: Evaluation) -> tuple[dict[str, Interval], dict[str, Any]]:
        """Changes of the suites since the base, and what the record says of suites and sets."""
        if self.base is None:
            return {}, set_record(now, Evaluation(0, 0, {}), self._how)
        intervals = suite_changes(now, self.base, self._how)
        record = suite_record(intervals) | set_record(now, self.base, self._how)
        control = self._control.near(now.tokens_total) if self._control else None
        if control is not None:
            record |= suite_record(suite_changes(now, control, self._how), "control_change")
        return intervals, record

    def unknown(self, now: Evaluation) -> list[str]:
        """Of which sets the base tells nothing, and why, and which have no interval; empty for a run without a base."""
        if self.base is None:
            return []
        unknown = not_comparable(now, self.base).items()
        return [f"change of {name} is not known: {why}" for name, why in unknown] + without_interval(now)


def _bytes_by_set(
    sets: Sequence[WindowSet], tokenizer_json: bytes | None
) -> dict[str, npt.NDArray[np.int64] | None]:
    """Bytes of text by window, of the sets whose tokenizer is known."""
    lengths_V = token_bytes(tokenizer_json) if tokenizer_json else None
    if lengths_V is None:
        return {}
    return {
        found.name: found.bytes_by_window(lengths_V)
        for found in sets
        if isinstance(found, ValidSet) and found.facts.tokenizer
    }
