"""`cptron doremi CONFIG --reference CHECKPOINT`: the blend that a proxy model finds by group DRO.

Place in the flow: before the real run, whose `token_share` its answer is. Invariant: the proxy is an ordinary run of
the engine, under any layout; the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.errors import CheckpointError, ConfigError

RESULT = "doremi.json"


def main(argv: Sequence[str]) -> int:
    """Run it; returns the exit code of training."""
    parser = argparse.ArgumentParser(
        prog="cptron doremi", description="Find shares of the sources by a small proxy model (group DRO)."
    )
    parser.add_argument("config", type=Path, help="YAML file of the proxy's run; see docs/mixing.md")
    parser.add_argument("--reference", required=True, help="checkpoint of the reference model")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as for cptron train")
    words = list(argv)
    if "--reference" in words:  # argparse takes no further overrides once an option came between them
        at = words.index("--reference")
        words = [*words[at : at + 2], *words[:at], *words[at + 2 :]]
    args = parser.parse_args(words)
    overrides = [*args.overrides, f"doremi.reference={json.dumps(args.reference)}"]
    config = load_config(args.config, overrides).config

    from cptron.runtime.launcher import launched_ranks
    from cptron.train.main import main as train

    code = train([str(args.config), *overrides])
    ranks = launched_ranks()
    if code == 0 and (ranks is None or ranks.is_main):
        _report(config)
    return code


def _report(config: Config) -> None:
    """Write the answer beside the run and print it as YAML to paste."""
    from cptron.checkpoint import layout
    from cptron.durable import replace_text
    from cptron.json_text import parse_json

    run = Path(config.run.dir)
    newest, problems = layout.newest_complete(run / "checkpoints")
    if newest is None:
        raise CheckpointError(
            f"{run} has no complete checkpoint ({'; '.join(problems)}); run the command again"
        )
    saved: dict[str, Any] = parse_json((newest / layout.STATE).read_text()).get("doremi", {})
    if not saved:
        raise ConfigError(f"{newest} is of no proxy: it holds no weights by source; choose another run.dir")
    result = {
        "shares": saved["average"],
        "steps": saved["steps"],
        "last_weights": saved["weights"],
        "excess_nats_per_token": saved["scores"],
        "reference": config.doremi.reference,
        "checkpoint": str(newest),
    }
    replace_text(run / RESULT, json.dumps(result, indent=2) + "\n")
    print(f"mean weights of {saved['steps']} steps, also in {run / RESULT}; for data.sources:")
    for name, share in saved["average"].items():
        print(f"  {name}: token_share: {share:.4f}")
