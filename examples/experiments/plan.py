"""Which runs are made, in which order, and what differs between them.

Place in the flow: `run` trains these, `claims` asks about them by name. Invariant: pure; the runs of an experiment have
the same base, total tokens, schedule and validation windows, and differ by share of replay, peak rate or seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cptron.config.load import Loaded, load_config

HERE = Path("examples/experiments")
RUNS = Path("runs/experiments")
WORK = Path("runs/experiments.work")
MODEL = Path(".cache/smollm2-135m")

SHARES_PERCENT = (0, 1, 5, 25, 50)
"""Of all tokens, replayed: those of the published table (Ibrahim et al. 2024, table 2)."""
SEED, SECOND_SEED = 1234, 5678
LOW_RATE = 0.3
"""Of the peak rate and of the rate at the end."""
REPLAYED = "wikipedia"


@dataclass(frozen=True, slots=True)
class Experiment:
    """A new domain, and the text that is not to be lost."""

    name: str
    """Also that of its new domain, and of its configuration file."""
    title: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One `cptron train`."""

    experiment: str
    percent: int
    """Share of replay."""
    rate: float = 1.0
    """Times the peak rate of the experiment."""
    seed: int = SEED
    keeps: bool = False
    """All checkpoints, for `cptron select`."""

    @property
    def name(self) -> str:
        """As `vietnamese_replay05_rate0.3_seed5678`; what is as usual is left out."""
        rate = "" if self.rate == 1 else f"_rate{self.rate:g}"
        seed = "" if self.seed == SEED else f"_seed{self.seed}"
        return f"{self.experiment}_replay{self.percent:02d}{rate}{seed}"


EXPERIMENTS = (
    Experiment("vietnamese", "LibreOffice help in Vietnamese: another language"),
    Experiment("postgresql", "The PostgreSQL manual: another domain of the same language"),
)


def trials() -> list[Trial]:
    """All of them, the most telling first."""
    vietnamese = [Trial("vietnamese", percent, keeps=percent in (0, 1, 5)) for percent in (0, 25, 5, 1, 50)]
    slow = [Trial("vietnamese", 0, rate=LOW_RATE)]
    postgresql = [Trial("postgresql", percent, keeps=percent == 0) for percent in (0, 25, 5)]
    return [*vietnamese, *slow, *postgresql]


def overrides_of(trial: Trial) -> list[str]:
    """What the command line of a trial adds to the file of its experiment."""
    words = [f"run.dir={run_dir(trial)}", f"run.seed={trial.seed}"]
    if trial.percent == 0:
        words.append(f"data.sources=[{_only(trial.experiment)}]")
    else:
        words.append(f"data.sources.{trial.experiment}.token_share={1 - trial.percent / 100:g}")
        words.append(f"data.sources.{REPLAYED}.token_share={trial.percent / 100:g}")
    if trial.rate != 1:
        optim = load_config(config_path(trial.experiment)).config.optim
        words += [f"optim.lr={optim.lr * trial.rate:g}", f"optim.lr_min={optim.lr_min * trial.rate:g}"]
    if trial.keeps:
        words.append("checkpoint.every_steps=16")
    return words


def loaded(trial: Trial) -> Loaded:
    """The configuration of a trial, as `cptron train` sees it."""
    return load_config(config_path(trial.experiment), overrides_of(trial))


def config_path(experiment: str) -> Path:
    """Its configuration file, from the top of the repository."""
    return HERE / f"{experiment}.yaml"


def run_dir(trial: Trial) -> Path:
    """Where a trial's run lives."""
    return RUNS / trial.name


def _only(experiment: str) -> str:
    """The new domain as the only source: a share of 0 is none."""
    path = WORK / f"{experiment}_train_text_document"
    return f"{{name: {experiment}, path: {path}, token_share: 1.0}}"
