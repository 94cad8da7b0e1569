"""The base model -> what advice needs to know of it.

Place in the flow: `main` names a checkpoint, a run or a Hugging Face directory. Imports no torch. Invariant: only small
files are read; what a run's checkpoint tells of its learning rate cannot be declared otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cptron.advise.facts import Base
from cptron.checkpoint import layout
from cptron.checkpoint.saved_rate import saved_rate, scale_at_save
from cptron.errors import ConfigError, DataError
from cptron.inspect_run import num_parameters
from cptron.json_text import parse_json
from cptron.model.architecture import Architecture
from cptron.model.families import architecture_of
from cptron.model.flops import attention_flops, matmul_flops_per_token

State = Literal["decayed", "constant_phase", "unknown"]
TYPICAL_LENGTH = 8192
"""At which attention's work is counted; in models with windows it grows less beyond."""
AS_DECLARED = 1e-2
"""People declare rates with few digits."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What people say of the base."""

    state: State = "unknown"
    lr_at_save: float = 0.0
    lr_peak: float = 0.0
    instruct: bool | None = None
    """None: by its chat template."""


def read_base(path: str, declared: Declared) -> tuple[Base, str]:
    """The base, and the fingerprint of its tokenizer (empty where it is not known). Raises a `CptronError`."""
    directory = Path(path)
    if (directory / layout.MANIFEST).is_file() or (directory / "checkpoints").is_dir():
        return _from_checkpoint(layout.resolve(path), declared)
    if (directory / "config.json").is_file():
        return _from_hugging_face(directory, declared)
    raise ConfigError(
        f"--base {path} is no checkpoint ({layout.MANIFEST}), run or Hugging Face model (config.json); give "
        "one of these"
    )


def _from_checkpoint(checkpoint: Path, declared: Declared) -> tuple[Base, str]:
    manifest = layout.read_manifest(checkpoint)
    if manifest.adapter is not None:
        raise ConfigError(
            f"--base {checkpoint} holds an adapter, not whole weights; `cptron export --merge` and `cptron "
            "convert` make a checkpoint of it"
        )
    saved = saved_rate(manifest)
    at_save = saved.at_save * scale_at_save(saved, checkpoint) if saved is not None else 0.0
    known: dict[str, Any] = {
        "state": declared.state, "lr_at_save": declared.lr_at_save, "lr_peak": declared.lr_peak
    }  # fmt: skip
    if saved is not None:
        if declared.state not in ("unknown", saved.state) and saved.state != "unknown":
            raise ConfigError(
                f"--state {declared.state}, but {checkpoint} was saved in the phase {saved.phase} of its run: "
                f"{saved.state}; leave --state out"
            )
        if declared.lr_at_save and abs(declared.lr_at_save - at_save) > AS_DECLARED * at_save:
            raise ConfigError(
                f"--lr-at-save {declared.lr_at_save:g}, but the run of {checkpoint} would have gone on with "
                f"{at_save:g}; leave --lr-at-save out"
            )
        known = {
            "state": saved.state if saved.state != "unknown" else declared.state,
            "lr_at_save": at_save,
            "lr_peak": declared.lr_peak or saved.peak,
            "state_from": "checkpoint",
        }
    base = _base(
        str(checkpoint), "checkpoint", manifest.arch, checkpoint / layout.HUGGING_FACE, declared, known
    )
    return base, manifest.tokenizer_fingerprint


def _from_hugging_face(directory: Path, declared: Declared) -> tuple[Base, str]:
    path = directory / "config.json"
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
        arch = architecture_of(config)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"--base {path} is no configuration of a model ({error}); download it again"
        ) from None
    fingerprint = ""
    if any((directory / name).is_file() for name in TOKENIZERS):
        from cptron.tokens.tokenizer import load_tokenizer

        fingerprint = load_tokenizer(directory).fingerprint
    known = {"state": declared.state, "lr_at_save": declared.lr_at_save, "lr_peak": declared.lr_peak}
    return _base(str(directory), "hugging_face", arch, directory, declared, known), fingerprint


def _base(
    path: str,
    kind: Literal["checkpoint", "hugging_face"],
    arch: Architecture,
    small_files: Path,
    declared: Declared,
    known: dict[str, Any],
) -> Base:
    instruct = has_chat_template(small_files) if declared.instruct is None else declared.instruct
    return Base(
        path=path,
        kind=kind,
        family=arch.family,
        parameters=num_parameters(arch),
        vocab_size=arch.vocab_size,
        max_positions=arch.max_position_embeddings,
        tied_embeddings=arch.tied_embeddings,
        rope=_rope(arch),
        instruct=instruct,
        instruct_from="template" if declared.instruct is None else "declared",
        flops_per_token=float(matmul_flops_per_token(arch)),
        attention_flops_per_position=attention_flops(arch, [TYPICAL_LENGTH]) / TYPICAL_LENGTH**2,
        **known,
    )


def has_chat_template(directory: Path) -> bool:
    """Whether the tokenizer's files have one. Raises DataError where they are damaged."""
    if (directory / "chat_template.jinja").is_file():
        return True
    path = directory / "tokenizer_config.json"
    try:
        config = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be JSON ({error}); copy the file again") from None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def _rope(arch: Architecture) -> str:
    scaling = type(arch.rope_scaling).__name__ if arch.rope_scaling is not None else "no scaling"
    return f"rope base {arch.rope_theta:g}, {scaling}"
