"""What `cptron teach` writes beside token files: for each token the teacher's most likely next ones.

    PREFIX.teacher.bin     for each token K ids (int32), then K logarithms of their probabilities (float16)
    PREFIX.teacher.json    of which weights and tokens, K, and size and sha256 of the file above; written last

Place in the flow: made once by `teach`, mapped by runs with `regularise.distill.teacher: cached`. Imports no torch.
Invariant: a file that is opened is whole, and of the very token files beside it. Tokens count in the index's order.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cptron.checkpoint.hashing import hash_file
from cptron.durable import replace_text
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.tokens.indexed import IndexedTokens
from cptron.typed import require_types

FORMAT_VERSION = 1
ANSWER_BYTES = 6


@dataclass(frozen=True, kw_only=True)
class TaughtRecord:
    """What the numbers are."""

    top_k: int
    tokens: int
    seq_length: int
    """Tokens that the teacher saw at a time; its documents do not see each other."""
    checkpoint: str
    weights_fingerprint: str
    data: str
    """Identity of the token files."""
    bytes: int
    sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Taught:
    """An open file."""

    path: Path
    record: TaughtRecord
    rows: npt.NDArray[np.void]
    """One for each token, with fields `ids` and `logs`."""
    starts: npt.NDArray[np.int64]
    """Number of each document's first token."""


def bin_file(prefix: str) -> Path:
    """The numbers."""
    return Path(f"{prefix}.teacher.bin")


def record_file(prefix: str) -> Path:
    """The record."""
    return Path(f"{prefix}.teacher.json")


def row_type(top_k: int) -> np.dtype[np.void]:
    """How one token's answers lie in the file: 6 bytes for each."""
    return np.dtype([("ids", "<i4", (top_k,)), ("logs", "<f2", (top_k,))])


def write_record(prefix: str, record: TaughtRecord) -> None:
    """Write the record, durably. Raises OSError."""
    replace_text(record_file(prefix), json.dumps(asdict(record), indent=1))


def open_taught(prefix: str, identity: str, top_k: int, *, verify: bool = False) -> Taught:
    """The file beside the token files of that identity, with at least `top_k` answers. Raises `DataError`."""
    path = record_file(prefix)
    if not path.is_file():
        raise DataError(f"{prefix} was not taught: {path.name} is missing; make it with cptron teach")
    try:
        record = TaughtRecord(**parse_json(path.read_text()))
        require_types(record)
        if record.format_version != FORMAT_VERSION or min(record.tokens, record.top_k) < 1:
            raise ValueError(
                f"format_version {record.format_version}, {record.tokens} tokens of {record.top_k} answers"
            )
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); make it again with cptron teach") from None
    if record.data != identity:
        raise DataError(
            f"{path} is of tokens {record.data[:12]}, {prefix} has {identity[:12]}; make it again with cptron teach"
        )
    if record.top_k < top_k:
        raise DataError(
            f"{path} has {record.top_k} answers for a token, regularise.distill.top_k={top_k} asks for more; lower it, "
            "or make the file again with cptron teach"
        )
    numbers = bin_file(prefix)
    tokens = IndexedTokens(prefix)
    expected = tokens.num_tokens * record.top_k * ANSWER_BYTES
    size = numbers.stat().st_size if numbers.is_file() else None
    if size != record.bytes or size != expected or (verify and hash_file(numbers).sha256 != record.sha256):
        raise DataError(f"{numbers} is not the file that was written; make it again with cptron teach")
    rows = np.memmap(numbers, row_type(record.top_k), "r").view(np.ndarray)
    return Taught(numbers, record, rows, starts_of(tokens))


def starts_of(tokens: IndexedTokens) -> npt.NDArray[np.int64]:
    """Number of each document's first token, in the order of the index."""
    return np.cumsum(tokens.lengths_tokens, dtype=np.int64) - tokens.lengths_tokens
