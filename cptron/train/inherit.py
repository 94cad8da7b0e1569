"""What a branch takes over from the directory of its parent, beside the checkpoint.

Place in the flow: `claim`, when a branch is loaded and its directory is its own. Imports no torch. Invariant: the
parent is only read; what the branch has already is not replaced, so that a branch that starts again before its first
save finds what it has written.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cptron.checkpoint import layout
from cptron.config.load import load_values, resolved_yaml
from cptron.config.stored import store_config
from cptron.data.log import DATA_LOG
from cptron.durable import replacing
from cptron.forgetting.left import LEFT
from cptron.train.journal import JOURNAL
from cptron.train.mix_journal import MIX_JOURNAL

INHERITED = (JOURNAL, MIX_JOURNAL, DATA_LOG)
"""The journals of the guards and of mixers: what the parent has dropped or mixed otherwise after the checkpoint, the
branch does too. The log of what was drawn, without which nobody could prove what the branch has seen."""


def inherit(run: Path, checkpoint: Path) -> None:
    """Copy the parent's records into `run`, and the configuration of `checkpoint` as the one in force before.

    One that a rollback of the monitor has left behind comes without the log of what was drawn, which has gone another
    way since. A checkpoint that was moved out of its run comes without records. Raises `ConfigError` when the stored
    configuration cannot be read, and OSError.
    """
    if (run / "config.yaml").exists():
        return
    parent = checkpoint.resolve().parent.parent
    names: tuple[str, ...] = INHERITED
    if parent.name == LEFT:
        parent, names = parent.parent, (JOURNAL, MIX_JOURNAL)
    for name in names:
        if (parent / name).is_file() and not (run / name).exists():
            with replacing(run / name) as partial:
                shutil.copyfile(parent / name, partial)
    manifest = layout.read_manifest(checkpoint)
    before = load_values(manifest.config, f"the configuration stored in {checkpoint}").config
    store_config(run, resolved_yaml(before), manifest.step)
