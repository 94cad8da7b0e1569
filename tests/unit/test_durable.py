"""A file that is replaced holds its old content or all of its new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cptron.config.stored import store_config, stored_configs
from cptron.durable import partial_path, replace_text


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
