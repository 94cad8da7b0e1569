"""What the tests of `cptron doctor --cluster` run on warm ranks: the check itself, with machines that are broken on
purpose."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch


def examine(
    hosts: list[str],
    run_dirs: list[str],
    data_dir: str = "",
    broken: str = "",
    broken_rank: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """The report, where rank n believes to be on `hosts[n]` and looks at `run_dirs[n]`; in one of the ranks something
    is `broken`."""
    from cptron.health import clocks, facts, links, main
    from cptron.runtime.launcher import launched_ranks

    ranks = launched_ranks()
    assert ranks is not None
    chosen = main.Options(
        device="cpu",
        run_dir=Path(run_dirs[ranks.rank]) if run_dirs else None,
        data_dir=Path(data_dir) if data_dir else None,
        file_mib=1,
        timeout_s=60,
        **options,
    )
    torch.set_num_threads(1)
    found, multiply, now = facts.installed_versions, torch.mm, time.time

    def slowly(*words: Any) -> Any:
        time.sleep(0.05)
        return multiply(*words)

    patches = [mock.patch.object(socket, "gethostname", lambda: hosts[ranks.rank])]
    if ranks.rank == broken_rank:
        patches += {
            "": [],
            "versions": [mock.patch.object(facts, "installed_versions", lambda: {**found(), "torch": "1.0"})],
            "slow": [mock.patch.object(links.torch, "mm", slowly)],
            "clock": [mock.patch.object(clocks.time, "time", lambda: now() + 40)],
            "raises": [
                mock.patch.object(links, "_product_tflop_per_s", mock.Mock(side_effect=KeyError("GPU lost")))
            ],
        }[broken]
    for patch in patches:
        patch.start()
    try:
        return main.examine(ranks, chosen)
    finally:
        for patch in patches:
            patch.stop()
