"""What a checkpoint or a run holds.

Place in the flow: `cptron inspect` calls it for a directory. Invariant: a damaged part of a run is said where that
part would stand, and the rest is still described.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.checkpoint.listing import list_run
from cptron.checkpoint.saved_rate import saved_rate, scale_at_save
from cptron.config.load import load_config
from cptron.errors import CheckpointError, CptronError, DataError
from cptron.forgetting.bootstrap import Interval
from cptron.forgetting.journal import JOURNAL, read_verdicts
from cptron.json_text import parse_json
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.model.families.family import size_of
from cptron.report.forgetting import action_text
from cptron.report.sinks import METRICS_FILE, Record, read_records
from cptron.selection.record import read_selection

RUN_FILE = "run.json"

HOLDS = {
    "weights": "weights",
    "training": "weights, optimizer, position in the data",
    "adapter": "an adapter without its base's weights, optimizer, position in the data",
}
"""Kind of a checkpoint -> its content in words."""

Facts = dict[str, Any]


def describe_checkpoint(directory: Path) -> Facts:
    """What a checkpoint says of itself, and its ledger. Sizes of all files are compared with the manifest."""
    manifest = layout.read_manifest(directory)
    facts: Facts = {
        "kind": "checkpoint",
        "holds": HOLDS[manifest.kind],
        "step": manifest.step,
        "tokens_total": manifest.tokens_total,
        "hugging_face_model": manifest.hugging_face_model or "none",
        "parameters": num_parameters(manifest.arch),
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "layout": manifest.layout or "any",
        "learning_rate": _rate(manifest, directory),
        "evaluated": manifest.metrics or "not at this step",
        "probe_loss_nats_per_token": manifest.probe.loss_nats_per_token,
        "weights_fingerprint": manifest.weights_fingerprint,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint or "none",
        "files": len(manifest.files),
        "bytes": sum(record.size for record in manifest.files.values()),
        "lineage": _lineage(manifest),
        "versions": manifest.versions,
    }
    if manifest.adapter is not None:
        facts["adapter"] = {**manifest.adapter, "targets": ", ".join(manifest.adapter["targets"])}
        facts["base"] = {"checkpoint": manifest.base, "weights_fingerprint": manifest.base_fingerprint}
    if manifest.kind != "weights":
        facts |= _accounts(directory / layout.STATE)
    return facts


def num_parameters(arch: Architecture) -> int:
    """Parameters of the model, without vocabulary padding; a tied matrix counts once."""
    return sum(
        math.prod(size_of(dim, arch) for dim in shape)
        * (arch.num_layers if "{layer}" in rule.megatron else 1)
        for rule in family_of(arch.family).rules_for(arch)
        for shape in rule.shapes
    )


def _rate(manifest: layout.Manifest, directory: Path) -> Facts | str:
    """What a start from this checkpoint, or a branch, must know."""
    saved = saved_rate(manifest)
    if saved is None:
        return "not known"
    return {
        "schedule": saved.config.optim.schedule,
        "phase": str(saved.phase),
        "state": saved.state,
        "lr_at_save": saved.at_save * scale_at_save(saved, directory),
        "lr_peak": saved.peak,
    }


def _lineage(manifest: layout.Manifest) -> list[str]:
    """From the checkpoint that this one was loaded from to the model that was converted: by what each that is still
    there says of itself, then by what this one has kept of how its run began."""
    found: dict[str, str] = {}
    kept, model = manifest.lineage, manifest.hugging_face_model
    while manifest.parent and manifest.parent not in found:
        parent = manifest.parent
        try:
            manifest = layout.read_manifest(Path(parent))
            found[parent] = f"step {manifest.step}, {manifest.tokens_total} tokens"
        except CheckpointError as error:
            found[parent] = f"damaged: {error}" if Path(parent).exists() else "no longer there"
            break
    for name in kept:
        there = "there" if Path(name).exists() else "no longer there"
        found.setdefault(name, "Hugging Face model" if name == model else there)
    return [f"{path}: {what}" for path, what in found.items()]


def _accounts(state: Path) -> Facts:
    """What was drawn by account, and what was trained on by source."""
    try:
        saved: Facts = parse_json(state.read_text())
        keys = ("share", "tokens", "epochs", "cursor", "identity")
        ledger = {
            name: {key: entry[key] for key in keys} for name, entry in saved["ledger"]["entries"].items()
        }
        trained = {
            name: {
                "tokens": account["tokens"],
                "mean_loss_nats_per_token": account["loss_nats"] / account["tokens"],
            }
            for name, account in saved.get("trained", {}).items()
        }
    except (OSError, ValueError, ArithmeticError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{state} cannot be read ({error!r}); use another checkpoint") from None
    return {"ledger": ledger, "trained": trained} if trained else {"ledger": ledger}


def describe_run(directory: Path) -> Facts:
    """A run's identity and configuration, each of its checkpoints, and how far its metrics go."""
    try:
        run = parse_json((directory / RUN_FILE).read_text())
        facts: Facts = {"kind": "run", "name": run["name"], "identity": run["identity"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{directory / RUN_FILE} is damaged ({error!r}); restore it or start anew") from None
    return facts | {
        "config": _config(directory / "config.yaml"),
        "checkpoints": [
            {name: facts[name] for name in ("step", "tokens", "layout", "kept", "state")}
            for facts in list_run(directory)
        ],
        "metrics": _metrics(directory / METRICS_FILE),
        **_forgetting(directory / JOURNAL),
        **_selection(directory),
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


def _forgetting(path: Path) -> Facts:
    """What the forgetting monitor found at each evaluation; nothing for a run without one."""
    try:
        verdicts = read_verdicts(path)
    except CptronError as error:
        return {"forgetting": f"cannot be read: {error}"}
    rows = [
        {
            "step": verdict.step,
            "tokens": verdict.tokens_total,
            "pass": verdict.attempt + 1,
            "old_change_nats": _interval(verdict.old),
            "new_change_nats": _interval(verdict.new),
            "found": action_text(verdict),
            "alarms": "; ".join(verdict.alarms),
        }
        for verdict in verdicts
    ]
    return {"forgetting": rows} if rows else {}


def _selection(directory: Path) -> Facts:
    """What `cptron select` chose last; nothing where it was not asked."""
    try:
        selection = read_selection(directory)
    except CptronError as error:
        return {"selection": f"cannot be read: {error}"}
    return {"selection": selection["reasons"][-1]} if selection else {}


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "unknown"
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


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
