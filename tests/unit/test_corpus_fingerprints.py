"""Whatever changes a result has another fingerprint from its stage on; what changes none has the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus_world import config_of, lines_of, run, text_of

from cptron.corpus.load import load_curation
from cptron.corpus.shards import look_up
from cptron.corpus.stages import build_step, cut_into_stages, identities
from cptron.corpus.steps import length

Change = Callable[[dict[str, Any], Path], None]


def config(root: Path) -> dict[str, Any]:
    """Two corpus steps, a list, one input."""
    (root / "a.jsonl").write_bytes(lines_of([text_of(number) for number in range(4)]))
    (root / "list.txt").write_text("bad\n")
    steps = [
        {"step": "length", "min_words": 2},
        {"step": "exact_dedup"},
        {"step": "blocklist", "files": [str(root / "list.txt")]},
        {"step": "quantile", "key": "number"},
    ]
    found: dict[str, Any] = config_of(root / "out", {"x": [str(root / "a.jsonl")]}, steps)
    return found


def names(values: dict[str, Any], root: Path, tokenizer: str = "") -> list[str]:
    """Of the directories of all stages, those of decisions too."""
    (root / "c.yaml").write_text(yaml.safe_dump(values))
    loaded = load_curation(root / "c.yaml")
    stages = cut_into_stages(loaded, look_up(loaded.corpus), identities(loaded), tokenizer)
    return [name for stage in stages for name in (stage.name, stage.decided) if name]


def put(*keys: Any) -> Change:
    """Set the last of `keys` at the place that those before it name."""

    def change(values: dict[str, Any], _: Path) -> None:
        place: Any = values
        for key in keys[:-2]:
            place = place[key]
        place[keys[-2]] = keys[-1]

    return change


def other_list(_: dict[str, Any], root: Path) -> None:
    """Of the same length."""
    (root / "list.txt").write_text("mad\n")


def other_input(_: dict[str, Any], root: Path) -> None:
    """Of the same size, later."""
    import os

    found = (root / "a.jsonl").stat()
    os.utime(root / "a.jsonl", ns=(found.st_atime_ns, found.st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (put("seed", 1), 0),
        (put("strict", True), 0),
        (put("max_document_bytes", 1000), 0),
        (put("shard_bytes", 4096), 0),
        (put("inputs", 0, "name", "y"), 0),
        (put("inputs", 0, "meta_keys", []), 0),
        (put("inputs", 0, "text_key", "number"), 0),
        (other_input, 0),
        (put("steps", 0, "min_words", 3), 0),
        (put("steps", 1, "same", "words"), 1),
        (put("steps", 1, "name", "another"), 1),
        (other_list, 2),
        (put("steps", 2, "sources", ["x"]), 2),
        (put("steps", 3, "highest", 0.5), 3),
        (put("compression_level", 5), 4),
        (put("output", "elsewhere"), 5),
        (put("keep_intermediate", False), 5),
    ],
)
def test_all_from_the_changed_stage_on_is_another(change: Change, same: int, tmp_path: Path) -> None:
    """And everything before it is the same; there are five names: two decisions, three stages."""
    values = config(tmp_path)
    before = names(values, tmp_path)
    assert len(before) == 5 and before == names(values, tmp_path)
    change(values, tmp_path)
    after = names(values, tmp_path)
    assert [one == two for one, two in zip(before, after, strict=True)] == [
        number < same for number in range(5)
    ]


def test_versions_of_steps_and_the_tokenizer_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that gives other results, and another tokenizer, which counts what the last stage writes."""
    values = config(tmp_path)
    before = names(values, tmp_path)
    assert names(values, tmp_path, "another")[:4] == before[:4] != names(values, tmp_path, "another")[1:]
    assert names(values, tmp_path, "another")[4] != before[4]
    monkeypatch.setattr(length.Step, "version", 99)
    assert not set(names(values, tmp_path)) & set(before)


def test_steps_have_seeds_of_their_own(tmp_path: Path) -> None:
    """By the pipeline's seed and their names."""
    values = config(tmp_path)
    seeds = set()
    for seed in (0, 1):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(values | {"seed": seed}))
        loaded = load_curation(tmp_path / "c.yaml")
        seeds |= {build_step(loaded, step).seed for step in loaded.steps}
    assert len(seeds) == 2 * len(values["steps"])


def test_a_corpus_is_known_by_content_and_settings(tmp_path: Path) -> None:
    """Not by where it is: other bytes of the same number, or another setting, are another corpus."""
    values = config(tmp_path)
    first = run(values)
    content = (tmp_path / "a.jsonl").read_bytes()
    assert (
        run(values | {"output": str(tmp_path / "other"), "keep_intermediate": False}).fingerprint
        == first.fingerprint
    )
    (tmp_path / "a.jsonl").write_bytes(content.replace(b"river", b"rover"))
    assert b"river" in content and run(values).fingerprint != first.fingerprint
    (tmp_path / "a.jsonl").write_bytes(content)
    assert run(values | {"compression_level": 5}).fingerprint != first.fingerprint
    values["steps"][0]["min_words"] = 1
    assert run(values).fingerprint != first.fingerprint
