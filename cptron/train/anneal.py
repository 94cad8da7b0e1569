"""`cptron anneal RUN --from STEP --tokens X`: a child run that decays the rate from a checkpoint of the constant phase.

Place in the flow: makes a configuration with `start.mode: branch`, writes it beside the child's directory and trains by
it; the same command, or `cptron train` with the file, goes on after a kill. Imports no torch. Invariant: the parent is
only read; its checkpoint is from the constant phase of the schedule that it was trained with.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.checkpoint.saved_rate import SavedRate, saved_rate
from cptron.config.check_mixing import staged_configs
from cptron.config.check_schedule import check_schedule
from cptron.config.load import config_to_dict, load_config, load_values, resolved_yaml
from cptron.config.schema import Config, OptimConfig, StartConfig
from cptron.config.schema_regularise import RegulariseConfig
from cptron.durable import replace_text
from cptron.errors import CheckpointError, ConfigError
from cptron.json_text import parse_json
from cptron.optim.phases import constant_phase, is_constant_at
from cptron.report.rates import rate_table
from cptron.runtime.launcher import launched_ranks
from cptron.tokens.token_count import token_count

KEPT = ("lr", "warmup_steps", "warmup_from", "lr_constant", "cooldown_steps", "cooldown_form")
"""Keys of `optim` by which the parent came to its constant rate."""
COMPUTED = ("schedule", "anneal_steps", "decay_steps", "preset")
"""Keys of `optim` that the command sets."""


def main(argv: Sequence[str]) -> int:
    """Run `cptron anneal CONFIG_OR_RUN --from STEP --tokens X [--write] [a.b=c ...]`."""
    args = _parser().parse_intermixed_args(argv)
    ranks = launched_ranks()
    if ranks is not None and ranks.world_size > 1 and not args.write:
        raise ConfigError(
            f"cptron anneal was started as {ranks.world_size} ranks; run it once with --write, and start "
            "`cptron train` with the file it names"
        )
    config = child(args.parent, args.step, args.tokens, args.overrides)
    path = _write(config)
    print(f"wrote {path}: {config.start.checkpoint}, annealed to step {config.train.steps}")
    print(rate_table(config, args.step))
    if args.write:
        print(f"start it with: cptron train {path}")
        return 0
    from cptron.train.main import main as train

    return train([str(path)])


def child(parent: Path, step: int, tokens: int, overrides: Sequence[str]) -> Config:
    """The configuration of the child. Raises a `CptronError` where the parent's checkpoint does not serve."""
    given = load_config(parent).config if parent.is_file() else None
    run = Path(given.run.dir) if given is not None else parent
    saved, checkpoint = _checkpoint(run, step)
    values = config_to_dict(given if given is not None else saved.config)
    values["run"] |= {"dir": f"{run}-anneal-{step}", "name": "", "accept_changes": []}
    _check_overrides(overrides)
    config = load_values(values, str(parent), overrides).config
    steps = max(1, math.ceil(tokens / _tokens_per_step(config, checkpoint)))
    start = StartConfig(
        mode="branch", checkpoint=str(checkpoint), gate_tolerance_nats=config.start.gate_tolerance_nats
    )
    made = replace(
        config,
        start=start,
        regularise=_held(config),
        model=replace(config.model, architecture=""),
        train=replace(config.train, steps=step + steps),
        optim=_annealed(config.optim, saved.config.optim, step, steps),
    )
    check_schedule(made.optim, made.train.steps)
    return made


def _held(config: Config) -> RegulariseConfig:
    """The parent's, held to what the parent began with, not to the checkpoint that the child begins with."""
    wanted = config.regularise
    if wanted.base or not wanted.knows_base or config.start.mode == "branch":
        return wanted
    return replace(wanted, base=str(layout.resolve(config.start.checkpoint)))


def _tokens_per_step(config: Config, checkpoint: Path) -> int:
    """Of the stage that a child goes on in: the one of the last batch drawn, unless that has ended with it. Raises
    `CheckpointError`."""
    stages = staged_configs(config)
    if not stages:
        return config.train.global_batch_size * config.data.seq_length
    path = checkpoint / layout.STATE
    try:
        state: dict[str, Any] = parse_json(path.read_text())
        drawn = sum(entry["tokens"] for entry in state["ledger"]["entries"].values())
        number = int(max(0, min(state["stage"], len(stages)) - 1))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); branch from another checkpoint") from None
    while 0 < config.data.stages[number].until_tokens <= drawn:
        number += 1
    staged, _ = stages[number]
    return staged.train.global_batch_size * staged.data.seq_length


def _annealed(optim: OptimConfig, of_parent: OptimConfig, step: int, steps: int) -> OptimConfig:
    """The parent's way to its constant rate, whatever a file says by now, and a decay of `steps` from `step` on."""
    same: dict[str, Any] = {key: getattr(of_parent, key) for key in KEPT}
    return replace(
        optim,
        **same,
        preset="none",
        schedule="infinite" if of_parent.schedule == "infinite" else "wsd",
        anneal_steps=steps,
        decay_steps=step + steps,
    )


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        section, _, name = key.partition(".")
        if section == "start" or key == "train.steps" or (section == "optim" and name in KEPT + COMPUTED):
            raise ConfigError(
                f"override {override}: cptron anneal takes {key} from the parent and --tokens; leave it out, or use "
                "--write and edit the file"
            )


def _checkpoint(run: Path, step: int) -> tuple[SavedRate, Path]:
    """What the checkpoint tells of its rate, and where it is."""
    checkpoints = run / "checkpoints"
    there = layout.list_checkpoints(checkpoints)
    path = layout.step_directory(checkpoints, step)
    if not there:
        raise CheckpointError(
            f"{run} has no checkpoints; give a run directory of cptron train, or its configuration"
        )
    if path not in [found for _, found in there]:
        listed = ", ".join(str(found) for found, _ in there)
        raise CheckpointError(
            f"--from {step}: {run} has no such checkpoint, it has {listed}; choose one of its constant phase. A child "
            "that was begun goes on by `cptron train` with its file"
        )
    saved = saved_rate(layout.read_manifest(path))
    if saved is None:
        raise CheckpointError(
            f"{path} holds no configuration that this version can read; branch from another one"
        )
    if saved.state != "constant_phase":
        raise ConfigError(f"--from {step}: {_not_constant(saved, [number for number, _ in there])}")
    return saved, path


def _not_constant(saved: SavedRate, steps: Sequence[int]) -> str:
    """Why this one does not serve, and which do."""
    optim, train_steps = saved.config.optim, saved.config.train.steps
    constant = constant_phase(optim, train_steps)
    if constant is None:
        return (
            f"optim.schedule={optim.schedule} has no constant phase to anneal from; train with wsd, infinite or "
            "constant"
        )
    serve = [str(step) for step in steps if is_constant_at(optim, step, train_steps)]
    return (
        f"this checkpoint is from the {saved.phase} of optim.schedule={optim.schedule}, not from its {constant}; "
        f"use {', '.join(serve) if serve else 'none of the checkpoints that there are: train on'}"
    )


def _write(config: Config) -> Path:
    """The child's configuration beside its directory, unless it is there already."""
    path = Path(f"{config.run.dir}.yaml")
    text = resolved_yaml(config)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} exists with other values; go on with it by `cptron train`, remove it, or choose another run.dir"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error}); free space or choose another run.dir"
        ) from None
    return path


def _tokens(text: str) -> int:
    try:
        return token_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron anneal",
        description="Branch a child run from a checkpoint of the constant phase, and decay its learning rate.",
    )
    parser.add_argument("parent", type=Path, help="run directory, or its YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as for cptron train")
    parser.add_argument(
        "--from", dest="step", type=int, required=True, help="step of the parent's checkpoint"
    )
    parser.add_argument("--tokens", type=_tokens, required=True, help="length of the decay, as 500M or 2e9")
    parser.add_argument("--write", action="store_true", help="only write the child's configuration")
    return parser
