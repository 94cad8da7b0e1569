"""What the changes of a run are counted from: losses of the base model, window by window; and those of a control run.

Place in the flow: the monitor asks at step 0 and when it goes on. Imports no torch. Invariant: once a run has a base it
keeps it: it lies in the run and in each of its checkpoints, and is never measured again.
"""

from __future__ import annotations

from pathlib import Path

from cptron.config.schema import Config
from cptron.errors import CheckpointError, ConfigError
from cptron.forgetting.compare import SUITE_KEYS, not_comparable
from cptron.forgetting.evaluation import BASE, FOLDER, Evaluation, list_evaluations, read_evaluation

NEAR = 0.01
"""Two runs' evaluations after numbers of tokens that differ by this share of them are at the same tokens."""


def choose_base(config: Config, started_from: Path | None, step_0: Evaluation) -> tuple[Evaluation, str]:
    """The base of a new run, evaluated as `step_0` before its first step (a branch counts on), and where it is from.
    Raises a `CptronError` where the one that was asked for does not tell what the old and new sets have become."""
    asked = config.forgetting.base
    if asked and asked != "step0":
        base = read_evaluation(_base_of(Path(asked)))
        for name, why in not_comparable(step_0, base).items():
            if step_0.sets[name].suite in SUITE_KEYS:
                raise ConfigError(f"forgetting.base={asked} tells nothing of set {name}: {why}; use step0")
        return base, f"base: step {base.step} of {asked}"
    path = started_from / FOLDER / BASE if started_from else None
    if asked == "step0" or path is None or not path.is_file():
        return step_0, f"base: step {step_0.step} of this run"
    inherited = read_evaluation(path)
    for name, why in not_comparable(step_0, inherited).items():
        return (
            step_0,
            f"base: step {step_0.step} of this run, not that of {started_from}, which tells nothing of {name} ({why})",
        )
    return inherited, f"base: that of {started_from}"


def kept_base(run: Path, checkpoint: Path) -> Evaluation | None:
    """The base of a run that goes on; None where it had no monitor at its step 0. Raises `CheckpointError`."""
    for path in (checkpoint / FOLDER / BASE, run / FOLDER / BASE):
        if path.is_file():
            return read_evaluation(path)
    return None


def _base_of(directory: Path) -> Path:
    """Of a run or of a checkpoint, which have it in the same place."""
    path = directory / FOLDER / BASE
    if not path.is_file():
        raise ConfigError(
            f"forgetting.base={directory} has no {FOLDER}/{BASE}; name a run or a checkpoint of a run whose validation "
            "sets had suites, or step0"
        )
    return path


class Control:
    """Evaluations of a control run."""

    def __init__(self, run: Path) -> None:
        """Raises `ConfigError` where it has none."""
        self._found: dict[int, Path] = {}
        for path in list_evaluations(run).values():
            self._found[read_evaluation(path).tokens_total] = path
        if not self._found:
            raise ConfigError(
                f"forgetting.control={run} has no evaluations in {FOLDER}/; name the directory of a run whose "
                "validation sets had suites"
            )

    def near(self, tokens_total: int) -> Evaluation | None:
        """The evaluation after as many tokens; None where there is none."""
        tokens = min(self._found, key=lambda tokens: (abs(tokens - tokens_total), tokens))
        if abs(tokens - tokens_total) > NEAR * tokens_total:
            return None
        try:
            return read_evaluation(self._found[tokens])
        except CheckpointError as error:
            raise ConfigError(f"forgetting.control cannot be read: {error}") from None
