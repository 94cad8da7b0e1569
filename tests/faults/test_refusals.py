"""Wrong input stops a run before anything is written: exit code 2, one clear line, no traceback, no directory."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import TORCHRUN, call, cptron, error_lines, snapshot
from shard_files import sign
from tiny_world import ONE, Layout, World, save_tokenizer, tokenize, write_corpus

LIMIT_S = 240
Prepare = Callable[[World, Path], list[str]]


def copied_tokens(world: World, directory: Path) -> Path:
    """A copy of the first source's token files, to be damaged."""
    for suffix in ("bin", "idx", "manifest.json"):
        source = world.tokens("domain")
        shutil.copyfile(f"{source}.{suffix}", directory / f"copy.{suffix}")
    return directory / "copy"


def truncated(suffix: str) -> Prepare:
    """The first source with the last ten bytes of a file missing."""

    def prepare(world: World, tmp_path: Path) -> list[str]:
        prefix = copied_tokens(world, tmp_path)
        path = Path(f"{prefix}.{suffix}")
        path.write_bytes(path.read_bytes()[:-10])
        return [f"data.sources.domain.path={prefix}"]

    return prepare


def other_tokenizer(world: World, tmp_path: Path) -> list[str]:
    """A source made with a tokenizer of the same size that knows other words."""
    corpus = write_corpus(tmp_path / "other.jsonl", ["zebra", "quartz", "violin", "fjord"], 30, seed=9)
    save_tokenizer(tmp_path / "tokenizer", [corpus], vocab_size=280)
    return [f"data.sources.domain.path={tokenize(corpus, tmp_path / 'tokenizer', '--append-eod')}"]


def one_token_validation(world: World, tmp_path: Path) -> list[str]:
    """A validation set of a single token: nothing to predict."""
    corpus = tmp_path / "single.jsonl"
    corpus.write_text(json.dumps({"text": "a"}) + "\n")
    return [f"data.valid.general.path={tokenize(corpus, world.hugging_face)}"]


def foreign_directory(world: World, tmp_path: Path) -> list[str]:
    """An output directory that holds somebody's file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    return []


def file_in_the_way(world: World, tmp_path: Path) -> list[str]:
    """An output directory that is a file."""
    (tmp_path / "notes.txt").write_text("mine")
    return [f"run.dir={tmp_path / 'notes.txt'}"]


def architecture(content: str | bytes) -> Prepare:
    """Random weights for a model whose description is damaged."""

    def prepare(world: World, tmp_path: Path) -> list[str]:
        path = tmp_path / "config.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["start.mode=random", "start.checkpoint=", f"model.architecture={path}"]

    return prepare


def another_shape_than_declared(world: World, tmp_path: Path) -> list[str]:
    """The base as it is, and a recipe that says it had another base of its rotary embedding."""
    config = json.loads((world.hugging_face / "config.json").read_text())
    config.pop("rope_parameters", None)
    (tmp_path / "shape.json").write_text(json.dumps(config | {"rope_theta": 8_000_000.0}))
    return [f"model.architecture={tmp_path / 'shape.json'}"]


CASES: dict[str, tuple[Prepare, tuple[str, ...]]] = {
    "missing base": (lambda w, t: [f"start.checkpoint={t}/absent"], ("absent", "does not exist")),
    "no base named": (lambda w, t: ["start.checkpoint="], ("start.checkpoint", "init_from")),
    "random without architecture": (
        lambda w, t: ["start.mode=random", "start.checkpoint="],
        ("model.architecture",),
    ),
    "architecture cut off": (architecture('{"model_type": "llama",'), ("model.architecture=", "no JSON")),
    "architecture that is a list": (architecture("[]"), ("model.architecture=", "a list")),
    "architecture that is no text": (architecture(b"\xff\xfe\x00"), ("model.architecture=", "no JSON")),
    "another shape than declared": (
        another_shape_than_declared,
        ("is another model than model.architecture=", "instead of 8000000.0"),
    ),
    "Hugging Face model as base": (
        lambda w, t: [f"start.checkpoint={w.hugging_face}"],
        ("is no checkpoint", "cptron convert"),
    ),
    "truncated idx": (truncated("idx"), ("copy.idx",)),
    "truncated bin": (truncated("bin"), ("copy.bin", "bytes")),
    "missing token files": (lambda w, t: [f"data.sources.general.path={t}/absent"], ("absent.idx",)),
    "other tokenizer": (other_tokenizer, ("source domain", "tokenized with", "cptron preprocess")),
    "empty validation set": (one_token_validation, ("validation set general", "1 tokens")),
    "no validation set": (lambda w, t: ["data.valid=[]"], ("data.valid is empty",)),
    "layout and heads": (
        lambda w, t: ["parallel.local_ranks=3", "parallel.tp=3", "data.seq_length=33"],
        ("parallel.tp=3", "heads"),
    ),
    "layout and layers": (lambda w, t: ["parallel.local_ranks=3", "parallel.pp=3"], ("parallel.pp=3", "4")),
    "layout and ranks": (lambda w, t: ["parallel.tp=2"], ("parallel.tp=2", "1")),
    "unknown key": (lambda w, t: ["train.stepz=5"], ("unknown key train.stepz", "did you mean train.steps?")),
    "file as directory": (file_in_the_way, ("notes.txt is a file",)),
    "foreign directory": (foreign_directory, ("run.dir=", "not empty")),
}


def assert_refused(
    done: subprocess.CompletedProcess[str], words: tuple[str, ...], num_lines: int = 1
) -> None:
    """Exit code 2 and one line a rank that holds all words."""
    lines = error_lines(done.stderr)
    assert len(lines) == num_lines, done.stderr
    assert all(word in line for line in lines for word in words), lines
    assert "Traceback (most recent call last)" not in done.stderr or num_lines > 1, done.stderr


@pytest.mark.parametrize("case", CASES)
def test_refused_before_anything_is_written(case: str, world: World, tmp_path: Path) -> None:
    """The message names the value and the rule; the output directory is as it was."""
    prepare, words = CASES[case]
    overrides = prepare(world, tmp_path)
    before = snapshot(tmp_path)
    done = call(cptron("train", world.config, f"run.dir={tmp_path / 'run'}", *overrides), LIMIT_S)
    assert_refused(done, words)
    assert snapshot(tmp_path) == before
    assert (tmp_path / "run").exists() == (case == "foreign directory")


def test_unknown_key_of_a_file_is_named_with_its_line(world: World, tmp_path: Path) -> None:
    """File and line, so that an editor can jump there."""
    path = tmp_path / "run.yaml"
    path.write_text(world.config.read_text().replace("eval: {every_steps", "eval: {evry_steps"))
    number = 1 + path.read_text().splitlines().index("eval: {evry_steps: 10}")
    done = call(cptron("train", path, f"run.dir={tmp_path / 'run'}"), LIMIT_S)
    assert_refused(done, (f"{path}:{number}", "eval.evry_steps", "did you mean eval.every_steps?"))


@pytest.mark.parametrize(
    ("change", "word"), [("run.seed=99", "seed"), ("data.seq_length=16", "seq_length"), ("base", "start")]
)
def test_another_run_is_not_overwritten(
    change: str, word: str, world: World, whole_runs: dict[Layout, Path], tmp_path: Path
) -> None:
    """A directory holds one run: another seed, length or base is refused, and every file stays."""
    run = tmp_path / "run"
    shutil.copytree(whole_runs[ONE], run)
    if change == "base":
        shutil.copytree(world.base, tmp_path / "base")
        sign(tmp_path / "base", weights_fingerprint="0" * 64)
        change = f"start.checkpoint={tmp_path / 'base'}"
    before = snapshot(run)
    done = call(cptron("train", world.config, f"run.dir={run}", change), LIMIT_S)
    assert_refused(done, ("holds another run", word))
    assert snapshot(run) == before


def test_every_rank_of_torchrun_stops(world: World, tmp_path: Path) -> None:
    """Two ranks under torchrun: each says its line, and the launcher ends with an error."""
    overrides = [f"run.dir={tmp_path / 'run'}", f"start.checkpoint={tmp_path}/absent"]
    done = call([*TORCHRUN, "-m", "cptron.cli", "train", world.config, *overrides], LIMIT_S)
    assert done.returncode != 0
    lines = error_lines(done.stderr)
    assert 1 <= len(lines) <= 2  # the launcher may end the second rank before it speaks
    assert all("absent does not exist" in line and "[rank " in line for line in lines)
    assert not (tmp_path / "run").exists()
