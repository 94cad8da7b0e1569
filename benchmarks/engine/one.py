"""One peer, one case, one process: prints what it measured as one line of JSON.

Usage: python -m benchmarks.engine.one SETTINGS, a JSON object of the fields of `Order`.

Place in the flow: started by the runner, so that every measurement has memory and caches of its own. Invariant:
exits 0 also when the device has too little memory, and says so; any other failure is an exception.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.engine.cases import Case

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cptron": ("benchmarks.engine.peer_cptron", {}),
    "transformers": ("benchmarks.engine.peer_transformers", {}),
    "transformers-compiled": ("benchmarks.engine.peer_transformers", {"compiled": True}),
    "torchtitan": ("benchmarks.engine.peer_torchtitan", {"attention": "flex"}),
    "torchtitan-varlen": ("benchmarks.engine.peer_torchtitan", {"attention": "varlen"}),
}
"""Module and settings of each peer."""
CEILING = "ceiling"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to measure."""

    peer: str
    case: dict[str, Any]
    start: str = ""
    threads: int = 1
    warmup: int = 1
    steps: int = 1
    block: int = 1


def carry_out(order: Order) -> dict[str, Any]:
    """Measure in this process."""
    case = Case.from_dict(order.case)
    if order.peer == CEILING:
        from benchmarks.engine.ceiling import ceiling_tflops

        return {"tflops": ceiling_tflops(case, order.threads)}
    from benchmarks.engine.timing import measure

    module_name, settings = PEERS[order.peer]
    peer = importlib.import_module(module_name)
    prepare = partial(peer.prepared, case, Path(order.start) if order.start else None, order.threads)
    with prepare(**settings) as step:
        answer = measure(step, order.warmup, order.steps, order.block, case.device == "cuda")
    return {**answer, "precision": peer.describe(case), "packages": packages()}


def packages() -> dict[str, str]:
    """Versions of the peers' packages that this process can import."""
    found = {}
    for package in ("torchtitan", "torchao", "triton"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main() -> int:
    """Command line."""
    order = Order(**json.loads(sys.argv[1]))
    import torch

    try:
        answer = carry_out(order)
    except torch.OutOfMemoryError:
        answer = {"out_of_memory": True}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
