"""`cptron inspect PATH`: what a token file, a checkpoint or a run holds.

Place in the flow: any time, on any machine; imports no torch. Invariant: it only reads, and says what is damaged instead of
leaving it out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cptron.checkpoint import layout
from cptron.errors import CptronError, DataError
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import load_manifest, manifest_path, verify


def main(argv: Sequence[str]) -> int:
    """Run `cptron inspect PATH [--verify]`; prints one JSON object."""
    parser = argparse.ArgumentParser(prog="cptron inspect", description="What a path holds, as JSON.")
    parser.add_argument("path", help="token file prefix, checkpoint directory or run directory")
    parser.add_argument("--verify", action="store_true", help="read token files again and compare their hashes")
    args = parser.parse_args(argv)
    print(json.dumps(describe(args.path, check_hashes=args.verify), indent=2))
    return 0


def describe(path: str, *, check_hashes: bool = False) -> dict[str, Any]:
    """Facts about a path. Raises `DataError` when it is nothing that cptron makes."""
    if manifest_path(path).is_file() or Path(f"{path}.idx").is_file():
        return describe_tokens(path, check_hashes=check_hashes)
    if (Path(path) / layout.MANIFEST).is_file():
        return describe_checkpoint(Path(path))
    if (Path(path) / "run.json").is_file():
        return describe_run(Path(path))
    raise DataError(f"{path} is no token file prefix, checkpoint or run; give one of these")


def describe_tokens(prefix: str, *, check_hashes: bool) -> dict[str, Any]:
    """Counts, lengths and origin of token files."""
    tokens = IndexedTokens(prefix)
    manifest = verify(prefix) if check_hashes else load_manifest(prefix)
    quantiles = np.quantile(tokens.lengths_tokens, [0, 0.25, 0.5, 0.75, 1]) if tokens.num_documents else []
    return {
        "kind": "tokens",
        "documents": tokens.num_documents,
        "tokens": tokens.num_tokens,
        "document_length_tokens": dict(zip(("min", "q25", "median", "q75", "max"), map(float, quantiles), strict=False)),
        "dtype": str(tokens.dtype),
        "tokenizer": {
            "name": manifest.tokenizer.name,
            "fingerprint": manifest.tokenizer.fingerprint,
            "vocab_size": manifest.tokenizer.vocab_size,
        },
        "append_eod": manifest.append_eod,
        "sources": [source.path for source in manifest.sources],
        "hashes": "verified" if check_hashes else "not read",
    }


def describe_checkpoint(directory: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, and its ledger; sizes of all files are compared with the manifest."""
    manifest = layout.read_manifest(directory)
    facts: dict[str, Any] = {
        "kind": manifest.kind,
        "step": manifest.step,
        "tokens_total": manifest.tokens_total,
        "hugging_face_model": manifest.hugging_face_model,
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "layout": manifest.layout,
        "parent": manifest.parent,
        "probe_loss_nats_per_token": manifest.probe.loss_nats_per_token,
        "bytes": sum(manifest.files.values()),
        "files": len(manifest.files),
        "versions": manifest.versions,
    }
    state = directory / layout.STATE
    if state.is_file():
        facts["ledger"] = json.loads(state.read_text())["ledger"]["entries"]
    return facts


def describe_run(directory: Path) -> dict[str, Any]:
    """A run's identity and the state of each of its checkpoints."""
    checkpoints = {}
    for _, path in layout.list_checkpoints(directory / "checkpoints"):
        try:
            checkpoints[path.name] = f"complete, {layout.read_manifest(path).tokens_total} tokens"
        except CptronError as error:
            checkpoints[path.name] = f"damaged: {error}"
    return {"kind": "run", **json.loads((directory / "run.json").read_text()), "checkpoints": checkpoints}
