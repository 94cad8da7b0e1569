"""What a checkpoint directory looks like, and how it becomes visible.

    CHECKPOINT/
      manifest.json     what it is, and size and sha256 of every file; written last
      manifest.sha256   sha256 of the manifest, as `sha256sum -c` reads it
      shards/           megatron-core `torch_dist`: model, and for a run also the optimizer; `index.json` is ours
      hugging_face/     config, tokenizer and other small files of the model it came from
      forgetting/       losses of the base and of this step, window by window (a run with a forgetting monitor)
      state.json        step, data ledger, random state (a run's checkpoint only)

Place in the flow: written by `convert` and by the trainer, read by everything that needs weights. Imports
no torch. Invariant: a directory under its final name is complete; it gets that name by one atomic rename
after all is on disk. What is newest is derived from what is complete: there is no pointer that could lie.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cptron.checkpoint.block_file import FileRecord
from cptron.checkpoint.hashing import hash_files
from cptron.config.schema import AdapterConfig
from cptron.durable import publish_directory, replace_text, working_directory
from cptron.errors import CheckpointError
from cptron.json_text import is_file_name, parse_json
from cptron.model.architecture import Architecture
from cptron.typed import require_types

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
DIGEST = "manifest.sha256"
SHARDS = "shards"
HUGGING_FACE = "hugging_face"
STATE = "state.json"
_STEP_DIR = re.compile(r"step_(\d{8,})")


class OtherFormat(CheckpointError):
    """A checkpoint of another version of cptron, which may be good."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Fixed tokens and the loss that the Hugging Face model has on them, computed in fp32 at import."""

    token_ids: list[int]
    loss_nats_per_token: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself."""

    kind: Literal["weights", "training", "adapter"]
    step: int
    tokens_total: int
    architecture: dict[str, Any]
    hugging_face_model: str
    tokenizer_fingerprint: str
    weights_fingerprint: str
    probe: Probe
    run_identity: str = ""
    layout: str = ""
    precision: str = ""
    padded_vocab_size: int = 0
    """Rows of the stored embedding; those beyond the vocabulary are padding."""
    checksums: dict[str, str] = field(default_factory=dict)
    """Checksum of every parameter in the shards (`checkpoint.checksum`)."""
    parent: str = ""
    """What this process had loaded: the checkpoint that the run was resumed from, or what it started from."""
    lineage: tuple[str, ...] = ()
    """What the run started from, nearest first: checkpoints, and last the Hugging Face model."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration of the run."""
    ledger: dict[str, Any] = field(default_factory=dict)
    """What the run has drawn of each source."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was evaluated at this very step."""
    attempt: int = 0
    """Rollbacks of the forgetting monitor before it."""
    adapter: dict[str, Any] | None = None
    """Settings of the adapter whose parameters the shards hold, and nothing else; None: whole weights."""
    base: str = ""
    """Checkpoint of the whole weights that the adapter was trained on."""
    base_fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    """Every file but the manifest itself."""
    format_version: int = FORMAT_VERSION

    @property
    def arch(self) -> Architecture:
        """The architecture as an object."""
        return Architecture.from_dict(self.architecture)


def step_directory(checkpoints: Path, step: int) -> Path:
    """Final directory of the checkpoint after `step` steps."""
    return checkpoints / f"step_{step:08d}"


def saved_step(directory: Path) -> int:
    """The step that a run's checkpoint directory is named after."""
    match = _STEP_DIR.fullmatch(directory.name)
    assert match, f"{directory} was named by `step_directory`"
    return int(match[1])


def publish(final: Path, manifest: Manifest, known: Mapping[str, FileRecord] | None = None) -> Manifest:
    """Write the manifest into the working directory of `final` and publish it. A `final` that exists is replaced: a
    run never saves the same step twice, so that only a damaged one can be in the way.

    `known` has the records of files that were hashed as they were written; the others are hashed here. Raises
    `CheckpointError` unless all of them are here: other ranks may have written to disks of their own.
    """
    working = working_directory(final)
    known = known or {}
    found = {str(path.relative_to(working)) for path in working.rglob("*") if path.is_file()}
    names = sorted(found | known.keys())  # a network file system may list late what is there
    for name, record in known.items():
        size = (working / name).stat().st_size if (working / name).is_file() else None
        if size != record.size:
            raise CheckpointError(
                f"{working / name} was written with {record.size} bytes, and this machine sees {size}; put run.dir on "
                "a file system that all ranks share"
            )
    hashed = hash_files(working, [name for name in names if name not in known])
    complete = Manifest(
        **{**vars(manifest), "files": {name: known.get(name) or hashed[name] for name in names}}
    )
    text = json.dumps(asdict(complete), indent=1)
    replace_text(working / MANIFEST, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    replace_text(working / DIGEST, f"{digest}  {MANIFEST}\n")
    publish_directory(final)
    return complete


def write_json(path: Path, value: Any) -> None:
    """Write JSON, durably and in one step."""
    replace_text(path, json.dumps(value, indent=1))


def read_hugging_face(directory: Path) -> dict[str, bytes]:
    """Content of the small Hugging Face files of a checkpoint by name; none after a start from random
    weights. Raises `CheckpointError` when they cannot be read, or are not those that were written."""
    path = directory / HUGGING_FACE
    recorded = read_manifest(directory).files
    try:
        found = {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from None
    for name, content in found.items():
        record = recorded.get(f"{HUGGING_FACE}/{name}")
        if record is None or hashlib.sha256(content).hexdigest() != record.sha256:
            raise CheckpointError(f"{path / name} is not the file that was written; use another checkpoint")
    return found


def read_manifest(directory: Path) -> Manifest:
    """Manifest of a complete checkpoint. Raises `CheckpointError` when it is absent, incomplete or
    damaged."""
    try:
        return _complete_manifest(directory)
    except OSError as error:  # of a disk that fails, or a directory that may not be read
        raise CheckpointError(f"checkpoint {directory} cannot be read ({error}); use another one") from None


def _complete_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(
            f"checkpoint {directory} does not exist; give a run, one of its checkpoints, or what `cptron convert` made"
        )
    if not path.is_file():
        raise CheckpointError(
            f"{directory} is no checkpoint: it has no {MANIFEST}; a Hugging Face model is converted by `cptron convert`"
        )
    manifest = _parse(path)
    match = _STEP_DIR.fullmatch(directory.name)
    if match and int(match[1]) != manifest.step:
        raise CheckpointError(
            f"checkpoint {directory} holds step {manifest.step}: it was renamed; give it its own name again"
        )
    for name, record in manifest.files.items():
        file = directory / name
        found = file.stat().st_size if file.is_file() else None
        if found != record.size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(
                f"checkpoint {directory} is damaged: {name} {state}, expected {record.size}; use another one"
            )
    return manifest


def _parse(path: Path) -> Manifest:
    """The manifest, unless it is another one than was written."""
    try:
        content = path.read_bytes()
        values = parse_json(content)
        version, signed = values["format_version"], path.with_name(DIGEST)
        if version == FORMAT_VERSION or signed.exists():  # format 1 had no digest
            digest = f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n"
            if signed.read_bytes() != digest.encode():
                raise ValueError(f"its sha256 is not the one in {DIGEST}")
        if version != FORMAT_VERSION:
            raise OtherFormat(
                f"{path} has format_version {version}, this version reads {FORMAT_VERSION}; "
                "use the version of cptron that wrote it"
            )
        return manifest_of(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); use another checkpoint") from None


def manifest_of(values: Mapping[str, Any]) -> Manifest:
    """The manifest that `asdict` made `values` of. Raises what Python does where they are none."""
    files = {name: FileRecord(**record) for name, record in values["files"].items()}
    for name, record in files.items():
        parts = Path(name).parts
        if ".." in parts or not all(map(is_file_name, parts)) or type(record.size) is not int:
            raise ValueError(f"file {name!r:.80} is not one of a checkpoint")
    probe = Probe(**values["probe"])
    manifest = Manifest(**{**values, "probe": probe, "files": files, "lineage": tuple(values["lineage"])})
    require_types(manifest)
    if manifest.adapter is not None:
        require_types(AdapterConfig(**{**manifest.adapter, "targets": tuple(manifest.adapter["targets"])}))
    Architecture.from_dict(manifest.architecture)
    return manifest


def list_checkpoints(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, directory) of every published checkpoint, oldest first; unverified."""
    if not checkpoints.is_dir():
        return []
    found = [
        (int(match[1]), path) for path in checkpoints.iterdir() if (match := _STEP_DIR.fullmatch(path.name))
    ]
    return sorted(found)


def newest_complete(
    checkpoints: Path, counts: Callable[[Manifest], bool] = lambda manifest: True
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, of those that count, and what is wrong with the newer ones. Raises
    `OtherFormat` where one of these is not damaged but of another version: an older one in its place would lose what
    was done since."""
    problems: list[str] = []
    for _, directory in reversed(list_checkpoints(checkpoints)):
        try:
            if not counts(read_manifest(directory)):
                continue
        except OtherFormat:
            raise
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return directory, problems
    return None, problems


def _to_stderr(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def resolve(path: str, tell: Callable[[str], None] = _to_stderr) -> Path:
    """A checkpoint directory; a run directory means its newest complete checkpoint, and `tell` is told what is passed
    over for it. Raises `CheckpointError`."""
    directory = Path(path)
    if (directory / MANIFEST).is_file():
        return directory
    if (directory / "checkpoints").is_dir():
        newest, problems = newest_complete(directory / "checkpoints")
        if newest is None:
            raise CheckpointError(
                f"run {directory} has no complete checkpoint; {'; '.join(problems) or 'none was saved'}"
            )
        for problem in problems:
            tell(f"{newest} is used: {problem}")
        return newest
    read_manifest(directory)
    raise AssertionError("unreachable: read_manifest raises when there is no manifest")
