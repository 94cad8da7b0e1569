"""Only parts of one corpus are joined; leftovers of other runs are nobody's output."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokens_world import save_byte_tokenizer, write_known

from cptron.data.content import open_content
from cptron.durable import partial_path
from cptron.errors import ConfigError, DataError
from cptron.tokens import split as split_module
from cptron.tokens.index_layout import loss_mask_path
from cptron.tokens.manifest import load_manifest, manifest_path, verify
from cptron.tokens.merge import merge
from cptron.tokens.preprocess import PreprocessOptions, preprocess
from cptron.tokens.preprocess_options import parse_options
from cptron.tokens.preprocess_plan import make_plan
from cptron.tokens.rejects import quarantine_path
from cptron.tokens.split import split
from cptron.tokens.split_plan import by_max_tokens
from cptron.tokens.token_files import TokenFiles


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with EOS."""
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["</s>"], eos_token="</s>")


def write_lines(path: Path, count: int) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(count)))


@pytest.fixture
def options(tokenizer: Path, tmp_path: Path) -> PreprocessOptions:
    """A directory of one file."""
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in/a.jsonl", 100)
    return PreprocessOptions(
        inputs=(str(tmp_path / "in"),),
        output_prefix=str(tmp_path / "out/x"),
        tokenizer=str(tokenizer),
        workers=1,
        engine="reference",
    )


def grow(directory: Path) -> None:
    """A file becomes longer."""
    write_lines(directory / "a.jsonl", 300)


def add(directory: Path) -> None:
    """A file comes."""
    write_lines(directory / "b.jsonl", 100)


@pytest.mark.parametrize("change", [grow, add])
def test_parts_of_a_corpus_that_changed_are_not_joined(
    change: Callable[[Path], None], options: PreprocessOptions, tmp_path: Path
) -> None:
    """The cuts have moved: together they would lack documents, or have some twice."""

    def make(number: int) -> str:
        preprocess(replace(options, partition=number, partitions=2, overwrite=True), progress=False)
        return f"{options.output_prefix}_part-{number:05d}-of-00002_text_document"

    parts = [make(0), make(1)]
    assert merge(parts, str(tmp_path / "merged")).documents == 100
    change(tmp_path / "in")
    parts[1] = make(1)
    with pytest.raises(DataError, match=r"part of other input files .*preprocess all parts again"):
        merge(parts, str(tmp_path / "other"))
    assert not list(tmp_path.glob("other*"))


def array(monkeypatch: pytest.MonkeyPatch, task: int, tasks: Sequence[int]) -> None:
    """The environment of a task of `sbatch --array`."""
    values = {"ID": task, "MIN": min(tasks), "MAX": max(tasks), "COUNT": len(tasks)}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


WORDS = ["--input", "a", "--output-prefix", "b", "--tokenizer-model", "c", "--partition", "slurm"]


def test_an_array_task_makes_the_part_of_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when some tasks are submitted again, for which the number of parts must be said."""
    array(monkeypatch, 3, range(8))
    options, _ = parse_options(WORDS)
    assert (options.partition, options.partitions) == (3, 8)
    for tasks in ([3, 5], [3], range(0, 15, 2), range(1, 9)):
        array(monkeypatch, tasks[0], tasks)
        with pytest.raises(ConfigError, match="must have --partitions N"):
            parse_options(WORDS)
    array(monkeypatch, 5, [3, 5])
    options, _ = parse_options([*WORDS, "--partitions", "8"])
    assert (options.partition, options.partitions) == (5, 8)
    with pytest.raises(ConfigError, match="--partition 5 must be below --partitions 4"):
        parse_options([*WORDS, "--partitions", "4"])


def test_leftovers_of_another_run_are_not_published(options: PreprocessOptions, tmp_path: Path) -> None:
    """A quarantine file and a loss mask that this run's manifest does not tell of."""
    prefix = f"{options.output_prefix}_text_document"
    (tmp_path / "out").mkdir()
    stale = [quarantine_path(options.output_prefix), loss_mask_path(prefix)]
    for path in stale:
        partial_path(path).write_text("of another run")
    preprocess(options, progress=False)
    assert not any(path.exists() or partial_path(path).exists() for path in stale)
    verify(prefix)


def test_an_older_quarantine_file_goes_with_its_run(options: PreprocessOptions, tmp_path: Path) -> None:
    """A run without damaged records replaces one that had some."""
    with (tmp_path / "in/a.jsonl").open("a") as stream:
        stream.write("{\n")
    preprocess(replace(options, on_error="quarantine"), progress=False)
    assert quarantine_path(options.output_prefix).exists()
    write_lines(tmp_path / "in/a.jsonl", 3)
    preprocess(replace(options, on_error="quarantine", overwrite=True), progress=False)
    assert not quarantine_path(options.output_prefix).exists()


def test_any_file_name_can_be_an_input(options: PreprocessOptions, tmp_path: Path) -> None:
    """The manifest is JSON in UTF-8 and names it nevertheless."""
    name = os.fsdecode(b"caf\xe9.jsonl")
    (tmp_path / "in/a.jsonl").rename(tmp_path / "in" / name)
    with (tmp_path / "in" / name).open("a") as stream:
        stream.write("{\n")
    preprocess(replace(options, on_error="quarantine"), progress=False)
    prefix = f"{options.output_prefix}_text_document"
    manifest_path(prefix).read_text(encoding="utf-8")
    assert Path(load_manifest(prefix).sources[0].path).name == name
    json.loads(quarantine_path(options.output_prefix).read_text(encoding="utf-8"))


def test_a_mask_without_a_manifest_is_refused(tmp_path: Path) -> None:
    """It would be ignored, and all tokens learned."""
    prefix = write_known(tmp_path / "x", [[1, 2], [3]], [0, 1, 1])
    open_content(str(prefix))
    manifest_path(prefix).unlink()
    with pytest.raises(DataError, match=r"x\.loss_mask\.bin has no manifest"):
        open_content(str(prefix))
    loss_mask_path(prefix).unlink()
    open_content(str(prefix))


def test_a_disk_that_is_full_at_the_manifest_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at any other time."""
    files = TokenFiles(write_known(tmp_path / "x", [[1, 2], [3]]))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr(split_module, "write_manifest", full)
    with pytest.raises(DataError, match="No space left on device"):
        split(files, str(tmp_path / "out"), by_max_tokens(files, 2))


def test_hundreds_of_outputs_may_be_open(tmp_path: Path) -> None:
    """Each holds several files; the soft limit of a login shell is no reason to stop."""
    files = TokenFiles(write_known(tmp_path / "x", [[number] for number in range(90)]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        outputs = split(files, str(tmp_path / "out"), by_max_tokens(files, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(outputs) == 90


def test_other_columns_do_not_count_as_output(options: PreprocessOptions, tmp_path: Path) -> None:
    """How much of a table is text is not known, so nothing is refused for it."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in/a.jsonl").unlink()
    table = arrow.table({"html": [os.urandom(100_000)] * 10, "text": ["ab"] * 10})
    parquet.write_table(table, tmp_path / "in/a.parquet")
    assert make_plan(options).least_bytes == 0
