"""`cptron schedule CONFIG`: the learning rates of a run, as a table and as a picture, before anything is trained.

Place in the flow: any time; `cptron anneal` prints the table, the report draws the curve. Imports no torch. Invariant:
what is shown is what the loop would ask for: the same function, for the same configuration, times the stage's scale.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cptron.config.check_schedule import check_schedule
from cptron.config.load import load_config
from cptron.config.presets import preset_note
from cptron.config.schema import Config
from cptron.data.stage_plan import StagePlan
from cptron.durable import replace_text
from cptron.errors import ConfigError
from cptron.optim.phases import describe_schedule, phase_at, phases
from cptron.optim.schedule import learning_rate
from cptron.report.console import table
from cptron.report.page import page
from cptron.report.svg import Series, line_chart

ROWS = 12
POINTS = 400
"""Of a drawn curve, beside the borders of its phases."""


def main(argv: Sequence[str]) -> int:
    """Run `cptron schedule CONFIG [a.b=c ...] [--rows N] [--html FILE]`."""
    parser = argparse.ArgumentParser(prog="cptron schedule", description="The learning rates of a run.")
    parser.add_argument("config", type=Path, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as for cptron train")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows between the borders of phases")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also draw the curve")
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides).config
    check_schedule(config.optim, config.train.steps)
    lines = [preset_note(config), describe_schedule(config.optim, config.train.steps)]
    print("\n".join(line for line in lines if line))
    print(rate_table(config, rows=args.rows))
    if args.html is not None:
        _draw(config, args.html)
    return 0


def rate_table(config: Config, first_step: int = 0, rows: int = ROWS) -> str:
    """Steps from `first_step` on with their phase, rate and stage; tokens count whole batches before the step."""
    optim, steps, plan = config.optim, config.train.steps, StagePlan(config)
    shown = [
        [
            str(step),
            f"{plan.tokens_before(step):,.0f}",
            phase_at(optim, step, steps).name,
            f"{learning_rate(optim, step, steps) * plan.lr_scale(step):.6e}",
            *([str(plan.stage(step))] if plan.has_stages else []),
        ]
        for step in _steps(config, first_step, rows)
    ]
    return table(
        ["step", "tokens before", "phase", "learning rate", *(["stage"] if plan.has_stages else [])], shown
    )


def planned_curve(config: Config) -> list[tuple[float, float]]:
    """(step, rate) of the whole run as metrics show them: a step's number is that of steps done with it."""
    optim, steps, plan = config.optim, config.train.steps, StagePlan(config)
    return [
        (step + 1.0, learning_rate(optim, step, steps) * plan.lr_scale(step))
        for step in _steps(config, 0, POINTS)
    ]


def _steps(config: Config, first: int, count: int) -> list[int]:
    """About `count` steps evenly spaced, the last, and both sides of every border between phases or stages."""
    last = max(first, config.train.steps - 1)
    even = {first + round(n * (last - first) / max(1, count - 1)) for n in range(max(1, count))}
    borders = {phase.first for phase in phases(config.optim, config.train.steps)} | {
        *StagePlan(config).firsts
    }
    near = {step for border in borders for step in (border - 1, border)}
    return sorted({step for step in even | near | {last} if first <= step <= last})


def _draw(config: Config, path: Path) -> None:
    chart = line_chart(
        "Learning rate", "step", config.optim.schedule, [Series("", planned_curve(config), 0)], zero=True
    )
    try:
        replace_text(path, page(f"Learning rate of {config.run.dir}", f'<div class="charts">{chart}</div>'))
    except OSError as error:
        raise ConfigError(f"--html {path} cannot be written ({error}); choose another file") from None
