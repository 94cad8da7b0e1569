"""`cptron train`: from the command line to the loop, on one rank or many.

Place in the flow: checks everything that can be checked without ranks, then starts them (torchrun) or is
one of them. Invariant: a `CptronError` ends every rank with one line and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cptron.config.load import load_config, resolved_yaml
from cptron.config.schema import Config
from cptron.config.stored import store_config
from cptron.errors import ConfigError
from cptron.runtime.launcher import Ranks, launched_ranks
from cptron.train.preflight import preflight

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
    if ranks is None and config.parallel.local_ranks > 1:
        preflight(config, config.parallel.local_ranks)
        return _relaunch(config.parallel.local_ranks, [str(args.config), *args.overrides])
    return run(config, ranks or Ranks(0, 1, 0, 1, "single"))


def _relaunch(num_ranks: int, arguments: list[str]) -> int:
    """Replace this process by torchrun with `num_ranks` ranks on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # silences torchrun; the session sets threads per rank itself
    os.execv(command[0], [*command, "-m", "cptron.cli", "train", *arguments])


def run(config: Config, ranks: Ranks) -> int:
    """Train as one of `ranks`."""
    expected = config.parallel.local_ranks
    if expected > 1 and ranks.local_world_size != expected and ranks.launcher == "torchrun":
        raise ConfigError(
            f"parallel.local_ranks={expected}, but the launcher started {ranks.local_world_size} here; "
            "make them equal or set parallel.local_ranks=0"
        )
    plan = preflight(config, ranks.world_size)

    from cptron.runtime.dist import agree
    from cptron.runtime.session import open_session
    from cptron.runtime.topology import Layout
    from cptron.train.claim import claimed
    from cptron.train.loop import train
    from cptron.train.setup import prepare

    runtime = config.runtime
    with (
        open_session(
            ranks,
            Layout.of(config.parallel),
            seed=config.run.seed,
            device=runtime.device,
            threads_per_rank=runtime.threads_per_rank,
            timeout_s=runtime.timeout_s,
        ) as session,
        claimed(config, plan, session) as plan,
    ):
        prepared = prepare(config, plan, session)
        train(prepared, agree(lambda: _open_reports(prepared)))
    return 0


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
