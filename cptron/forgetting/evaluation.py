"""One evaluation, window by window, as it is kept: of the base model, and of the model after a step.

Place in the flow: the monitor writes one for every evaluation to `RUN/forgetting/`, and every checkpoint carries that
of the base and that of its own step; `compare` and whoever chooses a checkpoint read them. Imports no torch.
Invariant: a file is what was written, to the bit, or it is refused: a line of JSON with the sha256 of the rest, then
the numbers.

Shapes: W windows of a set.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cptron.data.windows import SetFacts
from cptron.durable import make_directory, replacing
from cptron.errors import CheckpointError, TrainingError
from cptron.json_text import parse_json
from cptron.typed import require_types

FORMAT_VERSION = 1
FOLDER = "forgetting"
"""Of a run, and of a checkpoint."""
BASE, NOW = "base.losses", "now.losses"
"""In a checkpoint: of the base model, and of the checkpoint itself where it was evaluated. In a run: of the base."""
_REMEDY = "restore the file"
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EvaluatedSet:
    """What was found on one set. Windows without a counted label are not among them."""

    suite: str
    """`old`, `new`, `probe`; empty for a set that stands for none of them."""
    facts: SetFacts
    nats_W: Float64Array
    """Loss, summed over the window."""
    tokens_W: Int64Array
    """Labels that count."""
    bytes_W: Int64Array | None = None
    """Bytes of text that these stand for, where that is known."""
    kind: str = "text"
    """`text`, or the name of a probe, whose windows belong together in pairs."""

    @property
    def loss_nats_per_token(self) -> float:
        """Mean over all labels."""
        return float(self.nats_W.sum() / self.tokens_W.sum())

    @property
    def bits_per_byte(self) -> float | None:
        """Of the text that the labels stand for; None where its size is not known."""
        total = 0 if self.bytes_W is None else int(self.bytes_W.sum())
        return float(self.nats_W.sum() / math.log(2) / total) if total else None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All sets, at one step of a run."""

    step: int
    tokens_total: int
    """Predicted tokens that were trained on until then."""
    sets: Mapping[str, EvaluatedSet]
    attempt: int = 0
    """Rollbacks of the monitor before it."""

    def to_bytes(self) -> bytes:
        """The content of a file; `from_bytes` inverts it. Raises `TrainingError` on a loss that is no number: neither
        this file nor the journal could be read again."""
        for name, found in self.sets.items():
            if not np.isfinite(found.nats_W).all():
                raise TrainingError(
                    f"the loss on {name} after step {self.step} is {found.loss_nats_per_token}, which tells nothing "
                    "of forgetting; lower optim.lr, and go on from the checkpoint before"
                )
        body = b"".join(array.tobytes() for found in self.sets.values() for array in _arrays(found))
        header = {
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "tokens_total": self.tokens_total,
            "attempt": self.attempt,
            "sets": {name: asdict(_Head.of(found)) for name, found in self.sets.items()},
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return json.dumps(header).encode() + b"\n" + body

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Evaluation:
        """Raises `CheckpointError`, naming `where` it was read, on anything that `to_bytes` has not written."""
        line, _, body = content.partition(b"\n")
        try:
            header = parse_json(line)
            if header["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version is {header['format_version']}, must be {FORMAT_VERSION}")
            if hashlib.sha256(body).hexdigest() != header["sha256"]:
                raise ValueError("its sha256 is another")
            return _parsed(header, body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{where} is no record of an evaluation ({error}); {_REMEDY}") from None


@dataclass(frozen=True, slots=True)
class _Head:
    """What a file's first line says of a set."""

    suite: str
    kind: str
    windows: int
    has_bytes: bool
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: EvaluatedSet) -> _Head:
        return cls(found.suite, found.kind, len(found.nats_W), found.bytes_W is not None, asdict(found.facts))


def _arrays(found: EvaluatedSet) -> list[npt.NDArray[Any]]:
    kept = [found.nats_W.astype("<f8"), found.tokens_W.astype("<i8")]
    return kept if found.bytes_W is None else [*kept, found.bytes_W.astype("<i8")]


def _parsed(header: Mapping[str, Any], body: bytes) -> Evaluation:
    sets: dict[str, EvaluatedSet] = {}
    at = 0
    for name, values in header["sets"].items():
        head = _Head(**values)
        require_types(head)
        facts = SetFacts(**{**head.facts, "unwritten_ids": tuple(head.facts["unwritten_ids"])})
        require_types(facts)
        if not 0 < head.windows <= len(body) // 16:
            raise ValueError(f"set {name} has {head.windows} windows, must be from 1 to what the file holds")
        arrays = []
        for kind in ("<f8", "<i8", "<i8")[: 3 if head.has_bytes else 2]:
            arrays.append(np.frombuffer(body, kind, head.windows, at))
            at += 8 * head.windows
        if arrays[1].min() < 1 or not np.isfinite(arrays[0]).all():
            raise ValueError(f"set {name} has a window without a label, or a loss that is no number")
        sets[name] = EvaluatedSet(
            head.suite, facts, arrays[0], arrays[1], arrays[2] if head.has_bytes else None, head.kind
        )
    if at != len(body):
        raise ValueError(f"it holds {len(body)} bytes of numbers, must be {at}")
    found = Evaluation(header["step"], header["tokens_total"], sets, header["attempt"])
    for count in (found.step, found.tokens_total, found.attempt):
        if type(count) is not int or count < 0:
            raise ValueError(f"{count!r:.40} must be a whole number from 0")
    return found


def read_evaluation(path: Path) -> Evaluation:
    """Raises `CheckpointError` where the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {_REMEDY}") from None
    return Evaluation.from_bytes(content, str(path))


def write_evaluation(path: Path, content: bytes) -> None:
    """Durably and in one step. Raises `CheckpointError`."""
    try:
        make_directory(path.parent)
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written ({error}); free space and start again") from None


def evaluation_path(run: Path, step: int) -> Path:
    """Of the evaluation after `step` steps of a run."""
    return run / FOLDER / f"step_{step:08d}.losses"


def list_evaluations(run: Path) -> dict[int, Path]:
    """Step -> file, in order."""
    found = sorted((run / FOLDER).glob("step_*.losses"))
    return {int(path.stem[5:]): path for path in found if path.stem[5:].isdigit()}
