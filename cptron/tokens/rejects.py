"""What happens to damaged records: the run stops, or they are counted and left out, or kept aside in a file as well.

Place in the flow: `outputs` hands over the rejects of every block, in order.
Invariant: every reject is raised or counted, and under `quarantine` written to the file too, exactly once.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from cptron.errors import DataError
from cptron.tokens.partial_file import PartialFile
from cptron.tokens.records import Reject

_SHOWN = 20

OnError = Literal["stop", "skip", "quarantine"]


def quarantine_path(output_prefix: str) -> Path:
    """File of the damaged records of a run."""
    return Path(f"{output_prefix}.quarantine.jsonl")


class DamagedRecordError(DataError):
    """A record is damaged and the policy is to stop."""


class Rejects:
    """Applies one policy; `num_bytes` is what the quarantine file held at the checkpoint to resume from."""

    def __init__(
        self, output_prefix: str, on_error: OnError, counts: Mapping[str, int], num_bytes: int | None
    ) -> None:
        self._on_error = on_error
        self._counts = Counter(counts)
        self._file: PartialFile | None = None
        if on_error == "quarantine":
            path = quarantine_path(output_prefix)
            # A run that began under another policy has had no reject yet, so it has no file to go on with.
            self._file = PartialFile(path, num_bytes or None)

    def take(self, rejects: Sequence[Reject]) -> None:
        """Treat the rejects of one block. Raises DamagedRecordError at the first one under `stop`."""
        if not rejects:
            return
        if self._on_error == "stop":
            first = min(rejects, key=lambda reject: reject.record)
            raise DamagedRecordError(
                f"{first.path}:{first.record} is damaged ({first.reason}): {first.detail}; correct it, or "
                "leave such records out with --on-error skip or quarantine"
            )
        self._show(rejects)
        self._counts.update(reject.reason for reject in rejects)
        if self._file:
            self._file.write(b"".join(to_line(reject) for reject in rejects))

    def _show(self, rejects: Sequence[Reject]) -> None:
        """Name the first ones where people look; a corpus can have millions."""
        left = _SHOWN - self._counts.total()
        for reject in rejects[: max(0, left)]:
            tqdm.write(
                f"note: {reject.path}:{reject.record} left out ({reject.reason}): {reject.detail}", sys.stderr
            )
        if 0 < left < len(rejects):
            tqdm.write("note: further damaged records are counted and not named", sys.stderr)

    @property
    def counts(self) -> dict[str, int]:
        """Damaged records by reason, in alphabetical order."""
        return dict(sorted(self._counts.items()))

    @property
    def num_bytes(self) -> int:
        """Size of the quarantine file so far."""
        return self._file.num_bytes if self._file else 0

    def sync(self) -> None:
        """Force the quarantine file to disk."""
        if self._file:
            self._file.sync()

    def close(self) -> None:
        """Keep the partial file."""
        if self._file:
            self._file.close()


def to_line(reject: Reject) -> bytes:
    """One JSON object; bytes that are not UTF-8 are written as `\\xNN`, half surrogate pairs as JSON's `\\uNNNN`."""
    content = asdict(reject) | {"raw": reject.raw.decode("utf-8", "backslashreplace")}
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
