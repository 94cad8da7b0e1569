"""`cptron train`: from the command line to the loop, on one rank or many.

Place in the flow: checks everything that can be checked without ranks, then starts them (`runtime.supervisor`) or is
one of them. Invariant: a `CptronError` ends every rank with one line and exit code 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cptron.config.load import load_config, resolved_yaml
from cptron.config.schema import Config
from cptron.config.stored import store_config
from cptron.errors import ConfigError
from cptron.runtime.launcher import Ranks, launched_ranks
from cptron.runtime.signals import ignore_stop_signals, stop_with_parent
from cptron.train.preflight import preflight
from cptron.train.resume import RUN_FILE

if TYPE_CHECKING:
    from cptron.train.hooks import Hook
    from cptron.train.setup import Run


def main(argv: Sequence[str]) -> int:
    """Run `cptron train CONFIG [a.b=c ...]`."""
    parser = argparse.ArgumentParser(prog="cptron train", description="Continue the pretraining of a model.")
    parser.add_argument("config", type=Path, help="YAML file; see docs/configuration.md")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that win over the file"
    )
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides).config
    ranks = launched_ranks()
    num_ranks = max(1, config.parallel.local_ranks)
    if ranks is None and (num_ranks > 1 or config.runtime.max_restarts):
        preflight(config, num_ranks)
        from cptron.runtime.supervisor import supervise

        words = ["-m", "cptron.cli", "train", str(args.config), *args.overrides]
        return supervise(words, num_ranks, config.runtime)
    if ranks is not None and ranks.launcher == "torchrun":
        stop_with_parent()
    try:
        return run(config, ranks or Ranks(0, 1, 0, 1, "single"))
    finally:
        ignore_stop_signals()  # srun ends the others when one has failed: each still exits with its own code


def run(config: Config, ranks: Ranks) -> int:
    """Train as one of `ranks`; returns the exit code, when all ranks have come to their end."""
    expected = config.parallel.local_ranks
    if expected > 1 and ranks.local_world_size != expected and ranks.launcher == "torchrun":
        raise ConfigError(
            f"parallel.local_ranks={expected}, but the launcher started {ranks.local_world_size} here; "
            "make them equal or set parallel.local_ranks=0"
        )
    plan = preflight(config, ranks.world_size)

    from cptron.runtime.deadline import Deadline
    from cptron.runtime.dist import agree
    from cptron.runtime.failure import CommonEnd
    from cptron.runtime.session import open_session
    from cptron.runtime.topology import Layout
    from cptron.train.claim import claimed
    from cptron.train.loop import train
    from cptron.train.setup import prepare
    from cptron.train.stop import Stop

    runtime = config.runtime
    with (
        ExitStack() as at_the_end,
        open_session(
            ranks,
            Layout.of(config.parallel),
            seed=config.run.seed,
            device=runtime.device,
            threads_per_rank=runtime.threads_per_rank,
            timeout_s=runtime.timeout_s,
        ) as session,
    ):
        deadline = Deadline(runtime, session.pace)
        plan = replace(plan, notes=(*plan.notes, *deadline.notes))
        stop = at_the_end.enter_context(closing(Stop(deadline)))
        run_file = Path(config.run.dir) / RUN_FILE
        end = at_the_end.enter_context(closing(CommonEnd(ranks, session.pace, runtime, run_file)))
        with end.shared(), claimed(config, plan, session) as plan:
            prepared = prepare(config, plan, session)
            code = train(prepared, agree(lambda: _open_reports(prepared)), stop)
            agree(
                lambda: None
            )  # a launcher ends the others when one has left: rank 0 may still write a report
    return code


def _open_reports(run: Run) -> Sequence[Hook]:
    """Store the configuration and open console and metrics: on rank 0; the others have no hooks."""
    from cptron.report.hooks import report_hooks

    try:
        if run.session.ranks.is_main:
            store_config(run.directory, resolved_yaml(run.config), run.state.step)
        return report_hooks(run)
    except OSError as error:
        raise ConfigError(
            f"run.dir={run.directory} cannot be written ({error}); free space or choose another run.dir"
        ) from None
