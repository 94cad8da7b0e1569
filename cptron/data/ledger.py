"""The ledger: how far into each source the run is. This is the whole position of the data.

Place in the flow: advanced by the loader, stored in every checkpoint. Invariant: `cursor` only grows; so
across restarts, changed shares and longer runs no sample is repeated or skipped by accident.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from cptron.data.blend import Blend
from cptron.errors import CheckpointError, DataError


@dataclass
class Entry:
    """One source's account."""

    identity: str
    """Content of both token files; other tokens, or other documents, are another source."""
    share: float
    """Share of the tokens, as last set."""
    cursor: int = 0
    """Samples drawn since the start of the run; also the number of the next one."""
    since_mix: int = 0
    """Samples drawn since the shares were last set."""
    tokens: int = 0
    """Predicted tokens drawn."""
    epochs: float = 0.0
    """Passes over the source."""


@dataclass
class Ledger:
    """Accounts by source name; sources no longer in the mix stay on record."""

    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def start(cls, blend: Blend) -> Ledger:
        """The ledger of a new run."""
        return cls().with_mix(blend)

    @classmethod
    def resume(cls, saved: dict[str, Any], blend: Blend) -> Ledger:
        """The ledger of a resumed run, under the shares of `blend`.

        Raises `DataError` when a source's content is no longer the one that the cursor counts in.
        """
        try:
            ledger = cls({name: Entry(**entry) for name, entry in saved["entries"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the checkpoint's data ledger is damaged ({error!r}); use another checkpoint"
            ) from None
        return ledger.with_mix(blend)

    def with_mix(self, blend: Blend) -> Ledger:
        """Adopt the shares of `blend`; cursors stay, and the blend counts anew where shares changed."""
        for source in blend.sources:
            entry = self.entries.get(source.name)
            if entry is not None and entry.identity != source.identity:
                raise DataError(
                    f"source {source.name} has changed since the checkpoint (content {source.identity[:12]}, was "
                    f"{entry.identity[:12]}); restore its files, or give the new data another name"
                )
        current = {source.name: share for source, share in zip(blend.sources, blend.shares, strict=True)}
        before = {name: self.entries[name].share if name in self.entries else None for name in current}
        removed = [name for name, entry in self.entries.items() if name not in current and entry.share]
        changed = before != current or bool(removed)
        for name in removed:
            self.entries[name].share = 0.0
        for source in blend.sources:
            entry = self.entries.setdefault(source.name, Entry(source.identity, 0.0))
            entry.share = current[source.name]
            entry.since_mix = 0 if changed else entry.since_mix
        return self

    def tokens(self, name: str) -> int:
        """Predicted tokens drawn from a source."""
        return self.entries[name].tokens

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `resume` inverts it."""
        return asdict(self)
