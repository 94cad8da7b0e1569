"""The room that a run's checkpoints need: known before it starts, and asked of the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_arch import SMALL

from cptron.checkpoint import layout, space
from cptron.checkpoint.marks import MARKS
from cptron.checkpoint.space import check_space, checkpoint_bytes, most_kept
from cptron.config.load import load_config
from cptron.config.schema import Config
from cptron.errors import CheckpointError, ConfigError
from cptron.inspect_run import num_parameters
from cptron.model.vocab import padded_vocab_size

CONFIG = """\
run: {dir: unset}
start: {checkpoint: base}
data:
  seq_length: 10
  sources: [{name: law, path: a, token_share: 1}]
  valid: [{name: law, path: b}]
train: {steps: 100, global_batch_size: 10, precision: bf16}
optim: {lr: 2.0e-3}
eval: {every_steps: 10}
checkpoint: {every_steps: 10}
"""


def config(tmp_path: Path, *overrides: str) -> Config:
    """A run of 100 steps of 100 tokens, saved ten times."""
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return load_config(path, [f"run.dir={tmp_path / 'run'}", *overrides]).config


@pytest.mark.parametrize(
    ("overrides", "bytes_per_parameter"),
    [
        ((), 2 + 4 + 8),
        (("optim.moments=bf16",), 2 + 4 + 4),
        (("optim.name=sgd",), 2 + 4 + 4),
        (("train.precision=fp32",), 4 + 4 + 8),
        (('optim.frozen=["*"]',), 2),
    ],
)
def test_bytes_of_a_parameter(overrides: tuple[str, ...], bytes_per_parameter: int, tmp_path: Path) -> None:
    """Weights, masters and moments; the rest is overhead that does not grow with the model."""
    padding = padded_vocab_size(SMALL.vocab_size, 1) - SMALL.vocab_size
    matrices = 1 if SMALL.tied_embeddings else 2
    parameters = num_parameters(SMALL) + matrices * padding * SMALL.hidden_size
    found = checkpoint_bytes(config(tmp_path, *overrides), SMALL)
    overhead = found - parameters * bytes_per_parameter
    assert 0 < overhead < 200_000 and overhead % 1024 == 0


@pytest.mark.parametrize(
    ("overrides", "existing", "expected"),
    [
        ((), [], 10),
        (("checkpoint.every_steps=0",), [], 1),
        (("checkpoint.every_steps=30",), [], 4),
        ((), [10, 20, 25], 11),
        (("checkpoint.keep_last=3",), [], 3),
        (("checkpoint.keep_last=1", "checkpoint.keep_every_tokens=3000"), [], 4),
        (("checkpoint.keep_last=2", "checkpoint.milestones=[{name: a, tokens: 1500}]"), [], 3),
        (
            (
                "checkpoint.keep_last=1",
                "checkpoint.keep_best=2",
                "checkpoint.best_metric=valid/law/perplexity",
            ),
            [],
            3,
        ),
        (("checkpoint.keep_last=90",), [5], 11),
    ],
)
def test_how_many_are_kept(
    overrides: tuple[str, ...], existing: list[int], expected: int, tmp_path: Path
) -> None:
    """By the rules, over the whole run, with what it has already."""
    assert most_kept(config(tmp_path, *overrides), existing) == expected


def test_marked_ones_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay beside those of the rules, and take none of their room; unreadable marks are said before the start."""
    asked = config(tmp_path, "checkpoint.keep_last=2")
    assert most_kept(asked, [10, 20, 30], {10: ("a",), 20: ("b", "c")}) == 4
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (10, 20, 30):
        layout.step_directory(checkpoints, step).mkdir(parents=True)
    layout.write_json(checkpoints / MARKS, {"10": ["a"], "20": ["b"], "30": ["c"]})
    size = checkpoint_bytes(asked, SMALL)
    for free, said in ((3, False), (2, True)):
        monkeypatch.setattr(space, "free_bytes", lambda path, room=free * size: room)
        assert bool(check_space(asked, SMALL, None)) is said
    (checkpoints / MARKS).write_text("[]")
    with pytest.raises(CheckpointError, match=r"marks\.json cannot be read"):
        check_space(asked, SMALL, None)
    assert check_space(config(tmp_path, "checkpoint.every_steps=0"), SMALL, None) == ()


def test_what_a_killed_run_left_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is removed at the start, so it must not keep the run from going on."""
    asked = config(tmp_path, "checkpoint.keep_last=1")
    size = checkpoint_bytes(asked, SMALL)
    checkpoints = tmp_path / "run" / "checkpoints"
    layout.step_directory(checkpoints, 10).mkdir(parents=True)
    monkeypatch.setattr(space, "free_bytes", lambda path: size // 4)
    with pytest.raises(ConfigError, match="one must fit"):
        check_space(asked, SMALL, None)
    for name in (".writing_step_00000020", ".removing_step_00000005"):
        (checkpoints / name / "shards").mkdir(parents=True)
        (checkpoints / name / "shards" / "a").write_bytes(bytes(size // 2))
    assert check_space(asked, SMALL, None) == ()


def test_the_disk_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where one cannot be written beside another; said where the rules keep more than fit; and what is there
    already is not asked for again."""
    asked = config(tmp_path, "checkpoint.keep_last=3")
    size = checkpoint_bytes(asked, SMALL)

    def checked(free: float, asked: Config = asked) -> str:
        monkeypatch.setattr(space, "free_bytes", lambda path: int(free * size))
        return "".join(check_space(asked, SMALL, None))

    assert checked(4) == ""
    assert "each, and 4 will be there at once" in checked(3.9)
    with pytest.raises(ConfigError, match=r"run\.dir=.* has .* free, .*two must fit"):
        checked(1.9)
    assert checked(1, config(tmp_path, "checkpoint.every_steps=0")) == ""
    with pytest.raises(ConfigError, match="one must fit"):
        checked(0.9, config(tmp_path, "checkpoint.every_steps=0"))
    for step in (10, 20, 30):
        layout.step_directory(tmp_path / "run" / "checkpoints", step).mkdir(parents=True)
    assert checked(1) == ""
    with pytest.raises(ConfigError, match="one must fit"):
        checked(0.9)
    layout.step_directory(tmp_path / "run" / "checkpoints", 100).mkdir()
    assert checked(0) == ""
