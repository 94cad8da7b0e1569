"""What a run directory remembers of its configurations."""

from __future__ import annotations

from pathlib import Path

from cptron.config.stored import store_config, stored_configs


def test_no_configuration_is_lost(tmp_path: Path) -> None:
    """However often a run is resumed from one step with another configuration; the newest comes first."""
    for text, step in [("a", 0), ("a", 4), ("b", 6), ("c", 6), ("d", 6), ("e", 9), ("e", 9)]:
        store_config(tmp_path, text, step)
    assert [path.read_text() for path in stored_configs(tmp_path)] == ["e", "d", "c", "b", "a"]
    assert (tmp_path / "config.yaml").read_text() == "e"
