"""Token files get their names in an order in which a stop at any moment leaves nothing that looks whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokens_world import write_known

from cptron.errors import DataError
from cptron.tokens import publish as module
from cptron.tokens.index_layout import bin_path, idx_path, loss_mask_path
from cptron.tokens.manifest import manifest_path
from cptron.tokens.publish import publish, refuse_existing

KINDS = [bin_path, idx_path, loss_mask_path, manifest_path]


class Stopped(Exception):
    """The machine is gone."""


@pytest.mark.parametrize("kind", KINDS)
def test_any_file_of_an_earlier_run_is_refused(kind: object, tmp_path: Path) -> None:
    """Also half of a pair; and so is any other file that is named."""
    path = kind(tmp_path / "b")  # type: ignore[operator]
    refuse_existing([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "other")
    path.touch()
    with pytest.raises(DataError, match=f"{path.name} exists and must not be lost"):
        refuse_existing([str(tmp_path / "a"), str(tmp_path / "b")])
    refuse_existing([str(tmp_path / "a")])
    with pytest.raises(DataError, match="exists"):
        refuse_existing([str(tmp_path / "a")], path)


def make(directory: Path) -> dict[str, Path]:
    """New files beside older ones of the same name, which had a mask and a manifest."""
    write_known(directory / "x", [[1, 2], [3]], [1, 0, 1])
    made = {kind: directory / f"new.{kind}" for kind in ("bin", "idx")}
    for path in made.values():
        path.write_text("new")
    return made


@pytest.mark.parametrize("renames", [0, 1])
def test_a_stop_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """Old and new are never mixed, and the same call again makes it good."""
    made, rename, done = make(tmp_path), Path.replace, list[Path]()

    def stop(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise Stopped
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(Stopped):
            publish(str(tmp_path / "x"), made)
    assert not any(kind(tmp_path / "x").exists() for kind in KINDS[1:])
    publish(str(tmp_path / "x"), made)
    assert [kind(tmp_path / "x").exists() for kind in KINDS] == [True, True, False, False]
    assert idx_path(tmp_path / "x").read_text() == bin_path(tmp_path / "x").read_text() == "new"


def test_the_names_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is flushed once all names are there."""
    made, flushed = make(tmp_path), list[tuple[Path, bool]]()
    monkeypatch.setattr(
        module, "fsync_path", lambda path: flushed.append((path, idx_path(tmp_path / "x").exists()))
    )
    publish(str(tmp_path / "x"), made)
    assert flushed == [(tmp_path, True)]
