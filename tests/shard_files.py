"""Shards and manifests as tests make and change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.checkpoint.hashing import hash_file
from cptron.checkpoint.parts import Holds, everything


def save_shards(
    shards: Path, chunks: Sequence[Any], optimizer: Any | None = None, *, holds: Holds = everything
) -> None:
    """Save as a run does, without the rest of a checkpoint; collective. `shards` exists."""
    import torch.distributed as dist

    from cptron.checkpoint.sharded import Holdings, complete_shards
    from cptron.runtime.dist import agree

    holdings = Holdings.of(chunks, optimizer, chunks[0].arch.vocab_size, holds)
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, holdings.report(holdings.write(shards, dist.get_rank())))
    agree(lambda: complete_shards(shards, reports) if dist.get_rank() == 0 else None)


def sign(checkpoint: Path, **changes: Any) -> None:
    """Make the manifest say what the files of `checkpoint` are now, and `changes`: damage that no hash shows."""
    path = checkpoint / layout.MANIFEST
    values = json.loads(path.read_text()) | changes
    values["files"] = {name: asdict(hash_file(checkpoint / name)) for name in values["files"]}
    path.write_text(json.dumps(values))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (checkpoint / layout.DIGEST).write_text(f"{digest}  {layout.MANIFEST}\n")
