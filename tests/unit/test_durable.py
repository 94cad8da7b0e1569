"""A file that is replaced holds its old content or all of its new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cptron.config.stored import store_config, stored_configs
from cptron.durable import new_directory, partial_path, replace_text, working_directory
from cptron.errors import ConversionError


def test_what_utf8_cannot_hold_is_a_json_escape(tmp_path: Path) -> None:
    """All else is UTF-8."""
    replace_text(tmp_path / "a", '"é\udce9"')
    assert (tmp_path / "a").read_bytes() == '"é\\udce9"'.encode()


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_content(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing beside it; a configuration that never was in force is not kept as one that was."""
    store_config(tmp_path, "old", 0)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", full)
        elif failing == "replace":
            patch.setattr(Path, "replace", full)
        else:
            patch.setattr(Path, "open", full)
        for write in (
            lambda: replace_text(tmp_path / "config.yaml", "new"),
            lambda: store_config(tmp_path, "new", 3),
        ):
            with pytest.raises(OSError, match="No space"):
                write()
    assert not partial_path(tmp_path / "config.yaml").exists()
    assert [path.name for path in stored_configs(tmp_path)] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "old"
    store_config(tmp_path, "new", 3)
    assert [path.read_text() for path in stored_configs(tmp_path)] == ["new", "old"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_content_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the name is, when it returns."""
    done, fsync, replace = list[str](), os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(
        Path, "replace", lambda path, target: (done.append("replace"), replace(path, target))[1]
    )
    replace_text(tmp_path / "a", "text")
    assert done == ["fsync", "replace", "fsync"]


def test_a_new_directory_has_one_writer(tmp_path: Path) -> None:
    """The second is told, and takes nothing of the first's away; what a killed one left is not published."""
    final = tmp_path / "out"
    working_directory(final).mkdir()
    (working_directory(final) / "left").touch()
    with new_directory(final) as working:
        (working / "whole").touch()
        with (
            pytest.raises(ConversionError, match="is being written by another process"),
            new_directory(final),
        ):
            pass
    assert [path.name for path in final.iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_directory_replaces_nothing(tmp_path: Path) -> None:
    """Nor what was made while it was written."""
    final = tmp_path / "out"
    with pytest.raises(ConversionError, match="already exists"), new_directory(final):
        final.mkdir()
        (final / "precious").touch()
    assert [path.name for path in final.iterdir()] == ["precious"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    """With the path that could not be written."""
    with (
        pytest.raises(ConversionError, match=r"out cannot be written \(.*No space"),
        new_directory(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
