"""What a run starts from: a base checkpoint, another run's whole state, a Hugging Face model, or nothing.

Place in the flow: first thing `preflight` reads. Imports no torch. Invariant: it only reads; what is named is there, is
of a kind that serves, and says itself which model it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cptron.checkpoint import layout
from cptron.config.schema import Config
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.declared import read_architecture, require_declared
from cptron.train.resume import Found


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where weights, and for a branch everything else, come from."""

    arch: Architecture
    weights: str
    """Fingerprint of the weights; `random` for none."""
    tokenizer: str
    """Fingerprint of the tokenizer; empty where it is not known."""
    base: Path | None = None
    """Checkpoint of whole weights."""
    held_to: Path | None = None
    """Checkpoint of the weights that `regularise` knows as the starting ones; None where it asks for none."""
    branch_from: Path | None = None
    """Checkpoint of another run, of which all is taken."""
    hugging_face: Path | None = None
    """Hugging Face model."""
    manifest: layout.Manifest | None = None
    """What the checkpoint that the run begins with says of itself."""


def origin_of(config: Config, found: Found | None, tell: Callable[[str], None]) -> Origin:
    """What `start` names; `found` is the run in `run.dir`, and `tell` is told what was passed over.
    Raises a `CptronError` where it does not serve."""
    origin = _origin(config, found, tell)
    if config.start.mode != "random":
        named = config.start.hugging_face or config.start.checkpoint
        require_declared(config.model.architecture, origin.arch, named)
    if not config.regularise.knows_base:
        return origin
    return replace(origin, held_to=_held_to(config.regularise.base, origin, tell))


def _held_to(named: str, origin: Origin, tell: Callable[[str], None]) -> Path | None:
    """The starting weights: those that are named, of the same architecture, or the run's own."""
    if not named:
        return origin.base
    held_to = layout.resolve(named, tell)
    manifest = layout.read_manifest(held_to)
    if manifest.adapter is not None or manifest.arch != origin.arch:
        what = "an adapter, not whole weights" if manifest.adapter is not None else "a model of another shape"
        raise ConfigError(
            f"regularise.base={held_to} holds {what}, and the run's weights are to be held near it; name the "
            "checkpoint that they come from"
        )
    return held_to


def _origin(config: Config, found: Found | None, tell: Callable[[str], None]) -> Origin:
    if config.start.mode == "random":
        return _random(Path(config.model.architecture))
    if config.start.mode == "branch":
        return _branch(Path(config.start.checkpoint), found, tell)
    if config.start.hugging_face:
        from cptron.convert.direct import start_from

        model = Path(config.start.hugging_face)
        arch, weights, tokenizer = start_from(model)
        return Origin(arch=arch, weights=weights, tokenizer=tokenizer, hugging_face=model)
    base = layout.resolve(config.start.checkpoint, tell)
    manifest = layout.read_manifest(base)
    if manifest.adapter is not None:
        raise ConfigError(
            f"start.checkpoint={base} holds an adapter, not whole weights; "
            "`cptron export --merge` and `cptron convert` make a checkpoint of it to start from"
        )
    return Origin(
        arch=manifest.arch,
        weights=manifest.weights_fingerprint,
        tokenizer=manifest.tokenizer_fingerprint,
        base=base,
        manifest=manifest,
    )


def _branch(checkpoint: Path, found: Found | None, tell: Callable[[str], None]) -> Origin:
    """A run that has a checkpoint of its own no longer needs the one that it branched from, which may be gone."""
    own = found.checkpoint if found is not None else None
    if own is not None and found is not None and not checkpoint.exists():
        manifest = layout.read_manifest(own)
        weights, branch_from = str(found.identity.get("start", "")), None
    else:
        if (checkpoint / "checkpoints").is_dir():
            raise ConfigError(
                f"start.checkpoint={checkpoint} is a run, whose newest checkpoint changes; start.mode=branch needs one "
                f"of its checkpoints, as {checkpoint}/checkpoints/step_00000500"
            )
        manifest = layout.read_manifest(checkpoint)
        weights, branch_from = manifest.weights_fingerprint, checkpoint
    if manifest.kind == "weights":
        raise ConfigError(
            f"start.checkpoint={checkpoint} holds weights only, and start.mode=branch needs optimizer and position in "
            "the data, as a run's checkpoint has them; use start.mode=init_from"
        )
    return Origin(
        arch=manifest.arch,
        weights=weights,
        tokenizer=manifest.tokenizer_fingerprint,
        base=layout.resolve(manifest.base, tell) if manifest.adapter is not None else None,
        branch_from=branch_from,
        manifest=manifest,
    )


def _random(path: Path) -> Origin:
    return Origin(arch=read_architecture(path, "model.architecture"), weights="random", tokenizer="")
