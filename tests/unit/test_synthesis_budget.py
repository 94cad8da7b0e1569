"""What is spent is on disk before it is sent, and a damaged record of it is never 0."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cptron import durable
from cptron.corpus.synthesis import budget
from cptron.corpus.synthesis.budget import SPENT, Budget, Spent, read_spent
from cptron.errors import DataError


class Disk:
    """What a power cut leaves of `spent.json`: the content when it was last forced out."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.left: dict[str, int] | None = None
        self.forced = 0
        self._path, self._fdatasync, self._fsync_path = path, os.fdatasync, durable.fsync_path
        patch.setattr(budget.os, "fdatasync", self._force_content)
        patch.setattr(durable, "fsync_path", self._force_path)

    def _force_content(self, descriptor: int) -> None:
        self._fdatasync(descriptor)
        self._keep()

    def _force_path(self, path: Path) -> None:
        self._fsync_path(path)
        if path == self._path.parent and self._path.exists():  # the new name
            self._keep()

    def _keep(self) -> None:
        self.forced += 1
        self.left = json.loads(self._path.read_bytes())


def test_a_power_cut_forgets_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever `reserve` has returned, so that the request goes out; what it cost in the end may count as more. The
    file is forced out once a request."""
    disk = Disk(tmp_path / SPENT, monkeypatch)
    spending, cost = Budget(tmp_path, 0, 0), 0
    for number in range(1, 5):
        spending.reserve(1000)
        assert disk.left == {"requests": number, "tokens": cost + 1000}
        spending.settle(1000, 110)
        cost += 110
    assert disk.forced == 4 and read_spent(tmp_path) == Spent(4, cost)


@pytest.mark.parametrize(
    "content", [b"", bytes(128), b'{"requests": 3, "tok', b"[]", b'{"requests": 3, "tokens": -1}']
)
def test_a_damaged_record_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    """And stays as it is; one that is mended by hand counts."""
    (tmp_path / SPENT).write_bytes(content)
    for use in (lambda: Budget(tmp_path, 5, 0).reserve(1), lambda: read_spent(tmp_path)):
        with pytest.raises(
            DataError, match=r"spent.json is damaged \(.*\); write what .* \{.*\}, or remove"
        ) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert (tmp_path / SPENT).read_bytes() == content
    (tmp_path / SPENT).write_text('{"requests": 4, "tokens": 9}')
    Budget(tmp_path, 5, 0).reserve(1)
    with pytest.raises(DataError, match="budget of 5 requests is spent"):
        Budget(tmp_path, 5, 0).reserve(1)
    assert read_spent(tmp_path) == Spent(5, 10)


def test_a_budget_is_shared(tmp_path: Path) -> None:
    """To the request and the token, written over in place by several; locks are of the open file, as of processes."""

    def spend() -> int:
        spending, sent = Budget(tmp_path, 20, 0), 0
        with pytest.raises(DataError, match="budget of 20 requests is spent"):
            while True:
                spending.reserve(7)
                spending.settle(7, 3)
                sent += 1
        return sent

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(lambda _: spend(), range(3))) == 20
    assert read_spent(tmp_path) == Spent(20, 60)
