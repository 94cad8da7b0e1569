"""`cptron inspect PATH`: what a token file, a checkpoint or a run holds.

Place in the flow: any time, on any machine; imports no torch. Invariant: it only reads, and what is damaged is
said, not left out: the thing asked for by an error, a part of it where that part would stand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cptron.checkpoint import layout
from cptron.config.load import load_config
from cptron.errors import CheckpointError, CptronError, DataError
from cptron.model.architecture import Architecture
from cptron.report.console import table
from cptron.report.sinks import METRICS_FILE, Record, read_records
from cptron.tokens.index_layout import Int32Array
from cptron.tokens.indexed import IndexedTokens, bin_path, idx_path
from cptron.tokens.manifest import Manifest, check_tokenizer, load_manifest, manifest_path, verify
from cptron.tokens.tokenizer import load_tokenizer

RUN_FILE = "run.json"
QUANTILES = ("min", "q25", "median", "q75", "max")
NUM_SAMPLES, SAMPLE_TOKENS, SAMPLE_CHARACTERS = 3, 24, 80
"""Beginnings of documents that `--tokenizer` shows."""

Facts = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run `cptron inspect PATH [--tokenizer T] [--verify] [--json]`."""
    parser = argparse.ArgumentParser(
        prog="cptron inspect", description="What token files, a checkpoint or a run hold."
    )
    parser.add_argument("path", help="token file prefix, checkpoint directory or run directory")
    parser.add_argument(
        "--tokenizer", default="", help="token files: prove that this tokenizer made them, and show some text"
    )
    parser.add_argument("--verify", action="store_true", help="token files: read them whole, compare hashes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args(argv)
    facts = describe(args.path, tokenizer=args.tokenizer, check_hashes=args.verify)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else "\n".join(text_lines(facts)))
    return 0


def describe(path: str, *, tokenizer: str = "", check_hashes: bool = False) -> Facts:
    """Facts about a path, ready for JSON. Raises `CptronError` when it is damaged, or nothing cptron makes."""
    if idx_path(path).is_file() or bin_path(path).is_file() or manifest_path(path).is_file():
        return describe_tokens(path, tokenizer=tokenizer, check_hashes=check_hashes)
    if tokenizer or check_hashes:
        raise DataError(
            f"{path} is no token file prefix ({path}.idx does not exist), and --tokenizer and --verify are for "
            "token files; leave them out or give PREFIX of PREFIX.idx"
        )
    directory = Path(path)
    if (directory / layout.MANIFEST).is_file():
        return describe_checkpoint(directory)
    if (directory / RUN_FILE).is_file():
        return describe_run(directory)
    raise DataError(
        f"{path} is no token file prefix ({path}.idx), checkpoint directory (with {layout.MANIFEST}) or run "
        f"directory (with {RUN_FILE}); give one of these"
    )


def describe_tokens(prefix: str, *, tokenizer: str = "", check_hashes: bool = False) -> Facts:
    """Counts, lengths and origin. Files that another tool made have no manifest; that is said."""
    tokens = IndexedTokens(prefix)
    facts: Facts = {
        "kind": "token files",
        "documents": tokens.num_documents,
        "tokens": tokens.num_tokens,
        "document_length_tokens": _quantiles(tokens.lengths_tokens),
        "dtype": tokens.dtype.name,
        "bytes": bin_path(prefix).stat().st_size + idx_path(prefix).stat().st_size,
    }
    if not manifest_path(prefix).is_file() and not check_hashes:
        facts["manifest"] = (
            "missing: not made, or not finished, by cptron preprocess; training refuses the files"
        )
        manifest = None
    else:
        manifest = verify(prefix) if check_hashes else load_manifest(prefix)
        facts |= _origin(manifest, "verified" if check_hashes else "not read; see --verify")
    return facts | (_beginnings(tokens, manifest, tokenizer) if tokenizer else {})


def _quantiles(lengths_tokens: Int32Array) -> dict[str, float]:
    values = np.quantile(lengths_tokens, np.linspace(0, 1, len(QUANTILES))).tolist()
    return dict(zip(QUANTILES, values, strict=True))


def _origin(manifest: Manifest, hashes: str) -> Facts:
    return {
        "tokenizer": asdict(manifest.tokenizer),
        "append_eod": manifest.append_eod,
        "prepend_bos": manifest.prepend_bos,
        "json_key": manifest.key,
        "inputs": [source.path for source in manifest.sources],
        "documents_empty_skipped": manifest.documents_empty_skipped,
        "hashes": hashes,
    }


def _beginnings(tokens: IndexedTokens, manifest: Manifest | None, tokenizer_path: str) -> Facts:
    """The first documents as text, once it is proven (where that can be) that this tokenizer made them."""
    tokenizer = load_tokenizer(tokenizer_path)
    if manifest is not None:
        check_tokenizer(tokens.prefix, manifest, tokenizer.fingerprint)
    texts = []
    for document in range(min(NUM_SAMPLES, tokens.num_documents)):
        length = min(SAMPLE_TOKENS, int(tokens.lengths_tokens[document]))
        texts.append(tokenizer.decode(tokens.read(document, 0, length).tolist())[:SAMPLE_CHARACTERS])
    return {"made_with_this_tokenizer": manifest is not None or "unknown: no manifest", "begin_with": texts}


def describe_checkpoint(directory: Path) -> Facts:
    """What a checkpoint says of itself, and its ledger. Sizes of all files are compared with the manifest."""
    manifest = layout.read_manifest(directory)
    facts: Facts = {
        "kind": "checkpoint",
        "holds": "weights" if manifest.kind == "weights" else "weights, optimizer, position in the data",
        "step": manifest.step,
        "tokens_total": manifest.tokens_total,
        "hugging_face_model": manifest.hugging_face_model or "none",
        "parameters": num_parameters(manifest.arch),
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "layout": manifest.layout or "any",
        "probe_loss_nats_per_token": manifest.probe.loss_nats_per_token,
        "weights_fingerprint": manifest.weights_fingerprint,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint or "none",
        "files": len(manifest.files),
        "bytes": sum(manifest.files.values()),
        "lineage": _lineage(manifest),
        "versions": manifest.versions,
    }
    if manifest.kind == "training":
        facts["ledger"] = _ledger(directory / layout.STATE)
    return facts


def num_parameters(arch: Architecture) -> int:
    """Parameters of the model, without vocabulary padding; a tied matrix counts once."""
    hidden, query, group = arch.hidden_size, arch.num_attention_heads, arch.num_kv_heads
    attention = hidden * arch.head_dim * (2 * query + 2 * group)
    layer = attention + 3 * hidden * arch.ffn_hidden_size + 2 * hidden
    matrices = 1 if arch.tied_embeddings else 2
    return arch.num_layers * layer + hidden + matrices * arch.vocab_size * hidden


def _lineage(manifest: layout.Manifest) -> list[str]:
    """From the checkpoint that this one was loaded from to the oldest that is still there."""
    found: dict[str, str] = {}
    while manifest.parent and manifest.parent not in found:
        parent = manifest.parent
        try:
            manifest = layout.read_manifest(Path(parent))
            found[parent] = f"step {manifest.step}, {manifest.tokens_total} tokens"
        except CheckpointError as error:
            found[parent] = f"damaged: {error}" if Path(parent).exists() else "no longer there"
            break
    return [f"{path}: {what}" for path, what in found.items()]


def _ledger(state: Path) -> Facts:
    try:
        entries: Facts = json.loads(state.read_text())["ledger"]["entries"]
        keys = ("share", "tokens", "epochs", "cursor", "identity")
        return {name: {key: entry[key] for key in keys} for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{state} cannot be read ({error!r}); use another checkpoint") from None


def describe_run(directory: Path) -> Facts:
    """A run's identity and configuration, each of its checkpoints, and how far its metrics go."""
    try:
        run = json.loads((directory / RUN_FILE).read_text())
        facts: Facts = {"kind": "run", "name": run["name"], "identity": run["identity"]}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{directory / RUN_FILE} is damaged ({error!r}); restore it or start anew") from None
    return facts | {
        "config": _config(directory / "config.yaml"),
        "checkpoints": [
            _state_of(step, path) for step, path in layout.list_checkpoints(directory / "checkpoints")
        ],
        "metrics": _metrics(directory / METRICS_FILE),
    }


def _config(path: Path) -> Facts | str:
    try:
        config = load_config(path).config
    except CptronError as error:
        return f"cannot be read: {error}"
    return {
        "start": config.start.checkpoint or config.start.mode,
        "steps": config.train.steps,
        "global_batch_size": config.train.global_batch_size,
        "seq_length": config.data.seq_length,
        "precision": config.train.precision,
        "token_shares": {source.name: source.token_share for source in config.data.sources},
    }


def _state_of(step: int, path: Path) -> Facts:
    try:
        manifest = layout.read_manifest(path)
    except CptronError as error:
        return {"step": step, "tokens": "?", "layout": "?", "state": f"damaged: {error}"}
    return {"step": step, "tokens": manifest.tokens_total, "layout": manifest.layout, "state": "complete"}


def _metrics(path: Path) -> Facts | str:
    if not path.is_file():
        return "none written"
    last: dict[str, Record] = {}
    try:
        for record in read_records(path):
            last[record["kind"]] = record
    except CptronError as error:
        return f"cannot be read: {error}"
    shown = {kind: last[kind] for kind in ("step", "eval", "stop") if kind in last}
    return {
        f"last_{kind}": {k: v for k, v in record.items() if k != "kind"} for kind, record in shown.items()
    }


def text_lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    """`name  value` lines; a section is indented under its name, a list of records is a table."""
    width = max((len(name) for name in facts), default=0)
    lines: list[str] = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}", *text_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            rows = table(list(value[0]), [[_shown(cell) for cell in row.values()] for row in value])
            lines += [f"{indent}{name}", *(f"{indent}  {row}" for row in rows.splitlines())]
        elif isinstance(value, list) and value:
            lines += [f"{indent}{name}", *(f"{indent}  {_shown(item)}" for item in value)]
        else:
            lines.append(f"{indent}{name:<{width}}  {_shown(value)}")
    return lines


def _shown(value: object) -> str:
    """A value as people read it, on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".") if abs(value) >= 1e-3 else f"{value:.4g}"
    return " ".join(str(value).split()) if value not in (None, [], {}) else "none"
