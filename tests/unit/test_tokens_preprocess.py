"""Preprocessing writes Megatron's bytes, in order, and publishes all of a corpus or nothing."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from cptron.cli import main
from cptron.errors import DataError
from cptron.tokens import encode, preprocess_plan, read_lines
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.inputs import Input, expand_inputs
from cptron.tokens.manifest import load_manifest, manifest_path, verify
from cptron.tokens.merge import merge
from cptron.tokens.preprocess import PreprocessOptions, preprocess
from cptron.tokens.preprocess_options import parse_options
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import Position
from cptron.tokens.tiktoken_tokenizer import megatron_config
from cptron.tokens.tokenizer import load_tokenizer

PROGRAM = Path(__file__).parents[2] / "tools/preprocess_data.py"
ALPHABET = st.sampled_from(["a", "b", " ", "\n", "é", "日", "</s>", "<s>", "\u2028", "\x01", '"', "\\"])
TEXTS = st.lists(st.lists(ALPHABET, max_size=9).map("".join), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with EOS and BOS, as transformers saves it."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), eos_token="</s>", bos_token="<s>")


def save_tokenizer(directory: Path, **special: str) -> Path:
    """A byte-level BPE with a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["ab ab é 日 aab bba"] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    return directory


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    """JSONL, gzipped if the name says so."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    """JSONL with the key `text` among others."""
    return write_lines(path, [{"id": 1, "text": text, "nested": {"text": 3}} for text in texts])


def write_by_megatron(
    prefix: Path, tokenizer: Path, texts: Sequence[str], eos: bool, bos: bool = False
) -> list[list[int]]:
    """What Megatron's program does for texts that have tokens: transformers' ids, its own builder."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    documents = []
    for text in texts:
        if ids := reference.encode(text, add_special_tokens=False):
            ids = [reference.bos_token_id] * bos + ids + [reference.eos_token_id] * eos
            builder.add_document(np.array(ids), [len(ids)])
            documents.append(ids)
    builder.finalize(f"{prefix}.idx")
    return documents


def files_of(prefix: Path) -> list[bytes]:
    """Bytes of both files."""
    return [Path(f"{prefix}.{kind}").read_bytes() for kind in ("bin", "idx")]


@pytest.mark.parametrize("workers", [1, 3])
@settings(deadline=None, max_examples=15)
@given(
    texts=TEXTS, cuts=st.tuples(st.integers(0, 20), st.integers(0, 20)), eos=st.booleans(), bos=st.booleans()
)
def test_files_are_those_of_megatron(
    tokenizer: Path, workers: int, texts: list[str], cuts: tuple[int, int], eos: bool, bos: bool
) -> None:
    """Byte for byte, for any division over plain and gzipped files, any batch and any number of workers."""
    first, second = sorted(cuts)
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_lines, "_BLOCK_RECORDS", 3)
        root = Path(directory)
        options = PreprocessOptions(
            inputs=(
                str(write_texts(root / "z.jsonl", texts[:first])),
                str(write_texts(root / "a.jsonl.gz", texts[first:second])),
                str(write_texts(root / "b.jsonl", texts[second:])),
            ),
            output_prefix=str(root / "new/out"),
            tokenizer=str(tokenizer),
            append_eod=eos,
            prepend_bos=bos,
            workers=workers,
        )
        documents = write_by_megatron(root / "theirs", tokenizer, texts, eos, bos)
        if not documents:
            with pytest.raises(DataError, match="would hold 0 documents"):
                preprocess(options, progress=False)
            assert list((root / "new").iterdir()) == []
            return
        (manifest,) = preprocess(options, progress=False)
        prefix = root / "new/out_text_document"
        assert files_of(prefix) == files_of(root / "theirs")
        assert manifest == verify(prefix)
        assert (manifest.documents, manifest.tokens) == (len(documents), sum(map(len, documents)))
        assert manifest.documents_empty_skipped == texts.count("")
        assert [Path(source.path).name for source in manifest.sources] == ["z.jsonl", "a.jsonl.gz", "b.jsonl"]
        assert (manifest.append_eod, manifest.prepend_bos, manifest.key) == (eos, bos, "text")
        assert manifest.tokenizer.fingerprint == load_tokenizer(tokenizer).fingerprint


@pytest.fixture
def run(tmp_path: Path, tokenizer: Path) -> Callable[..., int]:
    """The command line on inputs in `tmp_path`, output to `tmp_path/out/x`."""

    def run(*arguments: str, tokenizer_model: Path = tokenizer, inputs: Sequence[str] = ("in.jsonl",)) -> int:
        paths = [str(tmp_path / name) for name in inputs]
        prefix = str(tmp_path / "out/x")
        model = str(tokenizer_model)
        return main(
            [
                "preprocess",
                "--input",
                *paths,
                "--output-prefix",
                prefix,
                "--tokenizer-model",
                model,
                *arguments,
            ]
        )

    return run


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that says what is wrong; a progress bar may stand before it."""
    captured = capsys.readouterr()
    assert captured.out == ""
    _, _, error = captured.err.rpartition("error: ")
    assert error.endswith("\n") and error.count("\n") == 1
    return error


def test_each_key_becomes_an_output_of_its_own(tmp_path: Path, run: Callable[..., int]) -> None:
    """An empty text counts for its key only."""
    write_lines(tmp_path / "in.jsonl", [{"text": "ab", "title": "b"}, {"text": "é", "title": ""}])
    assert run("--json-keys", "text", "title") == 0
    counts = {}
    for key in ("text", "title"):
        manifest = load_manifest(tmp_path / f"out/x_{key}_document")
        counts[key] = (manifest.key, manifest.documents, manifest.documents_empty_skipped)
    assert counts == {"text": ("text", 2, 0), "title": ("title", 1, 1)}


def test_a_glob_is_read_in_the_order_of_names(
    tmp_path: Path, tokenizer: Path, run: Callable[..., int]
) -> None:
    """Whatever order the file system lists them in."""
    for name in ("p2", "p0", "p1"):
        write_texts(tmp_path / f"{name}.jsonl", [name])
    assert run(inputs=["p*.jsonl"]) == 0
    tokens, ours = IndexedTokens(tmp_path / "out/x_text_document"), load_tokenizer(tokenizer)
    assert [ours.decode(tokens.read(i).tolist()) for i in range(3)] == ["p0", "p1", "p2"]


def test_the_same_command_gives_the_same_manifest(tmp_path: Path, run: Callable[..., int]) -> None:
    """No time, no machine, no number of workers in it."""
    write_texts(tmp_path / "in.jsonl", ["ab", "b"])
    path = manifest_path(tmp_path / "out/x_text_document")
    assert run("--workers", "1") == 0
    first = path.read_bytes()
    assert run("--workers", "2", "--overwrite") == 0
    assert path.read_bytes() == first


GOOD = b'{"text": "ab"}\n'
BAD_LINES = {
    "cut off": b'{"text": "ab\n',
    "blank": b"\n",
    "two objects": b'{"text": "ab"} {"text": "b"}\n',
    "a list": b'["text"]\n',
    "no such key": b'{"txt": "ab"}\n',
    "null": b'{"text": null}\n',
    "sentences": b'{"text": ["ab", "b"]}\n',
    "Latin-1": b'{"text": "caf\xe9"}\n',
    "UTF-16": '{"text": "ab"}'.encode("utf-16-le") + b"\n",
    "half a surrogate pair": b'{"text": "\\ud83d"}\n',
    "too deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_a_bad_line_is_named_and_nothing_is_published(
    name: str, line: bytes, tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """File and line number, exit status 2, an empty output directory."""
    data = GOOD * 2 + line + GOOD
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert run(inputs=[name]) == 2
    assert f"{tmp_path / name}:3 " in error_of(capsys)
    assert list((tmp_path / "out").iterdir()) == []


def _cut(data: bytes) -> bytes:
    return data[:-20]


def _no_gzip(data: bytes) -> bytes:
    return gzip.decompress(data)


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [_cut, _no_gzip, _flip])
def test_damaged_gzip_is_named_and_nothing_is_published(
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also when whole lines came out of it before the damage."""
    path = write_texts(tmp_path / "in.jsonl.gz", [f"a{number}" for number in range(3000)])
    path.write_bytes(damage(path.read_bytes()))
    assert run(inputs=[path.name]) == 2
    assert str(path) in error_of(capsys)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_existing_output_is_only_replaced_when_asked(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Any one of the three files is enough to refuse; a failed run leaves the old ones as they were."""
    write_texts(tmp_path / "in.jsonl", ["ab"])
    assert run() == 0
    prefix = tmp_path / "out/x_text_document"
    before = files_of(prefix)
    capsys.readouterr()
    write_texts(tmp_path / "in.jsonl", ["b b b"])
    assert run() == 2
    assert "--overwrite" in error_of(capsys)
    (tmp_path / "bad.jsonl").write_bytes(GOOD + b"{\n")
    assert run("--overwrite", inputs=["bad.jsonl"]) == 2
    assert files_of(prefix) == before
    verify(prefix)
    capsys.readouterr()
    assert run("--overwrite") == 0
    assert files_of(prefix) != before
    for path in sorted(prefix.parent.iterdir()):
        for other in prefix.parent.iterdir():
            if other != path:
                other.unlink()
        assert run() == 2
        assert run("--overwrite") == 0


@pytest.mark.parametrize("stop_at", range(7))
def test_a_stop_while_publishing_is_made_good_by_the_next_run(
    stop_at: int, tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two outputs, a stop at any rename: what has a manifest is whole, and the same command completes the rest."""
    arguments = ["--json-keys", "text", "title", "--overwrite"]
    prefixes = [tmp_path / f"out/x_{key}_document" for key in ("text", "title")]
    write_lines(tmp_path / "in.jsonl", [{"text": "é", "title": "日"}])
    assert run(*arguments) == 0
    expected = [files_of(prefix) for prefix in prefixes]
    status = (tmp_path / "in.jsonl").stat()
    write_lines(tmp_path / "other.jsonl", [{"text": "ab", "title": "b"}])
    assert run(*arguments, inputs=["other.jsonl"]) == 0
    rename, seen = Path.replace, 0

    def stop(self: Path, target: Path) -> Path:
        nonlocal seen
        seen += 1
        if seen > stop_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        stopped = run(*arguments)
    assert stopped == 130 and seen > stop_at
    for prefix in prefixes:
        if manifest_path(prefix).exists():
            verify(prefix)
    assert (tmp_path / "in.jsonl").stat().st_mtime_ns == status.st_mtime_ns
    assert run(*arguments) == 0
    assert [files_of(prefix) for prefix in prefixes] == expected
    for prefix in prefixes:
        verify(prefix)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("bin", "idx", "manifest.json")
    assert names == {f"x_{key}_document.{kind}" for key in ("text", "title") for kind in kinds}


def test_inputs_that_cannot_be_meant_are_refused(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """No file, the same file twice (also through a glob or a link), the same key twice."""
    write_texts(tmp_path / "in.jsonl", ["ab"])
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    for inputs, part in (
        (["none*.jsonl"], "matches 0 files"),
        (["in.jsonl", "in.jsonl"], "2 times"),
        (["in.jsonl", "i*.jsonl"], "2 times"),
        (["in.jsonl", "link.jsonl"], "2 times"),
    ):
        assert run(inputs=inputs) == 2
        assert part in error_of(capsys)
    assert run("--json-keys", "text", "text") == 2
    assert "must differ" in error_of(capsys)


@pytest.mark.parametrize(("flag", "token"), [("--append-eod", "EOS"), ("--prepend-bos", "BOS")])
def test_a_special_token_that_the_tokenizer_lacks_is_refused(
    flag: str, token: str, tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read."""
    bare = save_tokenizer(tmp_path / "bare")
    write_texts(tmp_path / "in.jsonl", ["ab"])
    assert run(flag, tokenizer_model=bare) == 2
    assert f"{flag} needs an {token} token" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The operating system's reason, with the path."""
    write_texts(tmp_path / "in.jsonl", ["ab"])
    (tmp_path / "out").write_text("a file, not a directory")
    assert run() == 2
    assert str(tmp_path / "out") in error_of(capsys)


REFUSED = [
    (["--partition", "2", "--partitions", "2"], "--partition 2"),
    (["--partition", "last", "--partitions", "2"], "--partition last"),
    (["--partition", "slurm", "--partitions", "2"], "SLURM_ARRAY_TASK_ID"),
    (["--tokenizer-special-tokens", "<a>", "<b>"], "--tokenizer-special-tokens"),
    (["--tokenizer-type", "NullTokenizer"], "must be one of"),
    (["--split-sentences"], "--split-sentences"),
    (["--tokenizer-type", "Llama2Tokenizer"], "--prepend-bos"),
    (["--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", "v.json"], "GPT2TokenizerFast"),
    (["--vocab-file", "v.json", "--merge-file", "m.txt"], "--vocab-file v.json"),
]


@pytest.mark.parametrize(("arguments", "part"), REFUSED)
def test_what_is_not_supported_is_refused(
    arguments: list[str],
    part: str,
    tmp_path: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Flags of Megatron that would change the output are never passed over."""
    write_texts(tmp_path / "in.jsonl", ["ab"])
    assert run(*arguments) == 2
    assert part in error_of(capsys)


def test_flags_without_effect_are_named_and_change_nothing(
    tmp_path: Path, tokenizer: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """One note; the files are those without the flags. `--tokenizer-type` says what `auto` finds."""
    write_texts(tmp_path / "in.jsonl", ["ab", "b"])
    write_by_megatron(tmp_path / "theirs", tokenizer, ["ab", "b"], eos=True)
    idle = ["--keep-sequential-samples", "--dataset-impl", "mmap", "--make-vocab-size-divisible-by", "128"]
    idle += ["--find-optimal-num-workers", "--workers-to-check", "2", "4", "--lang", "english"]
    capsys.readouterr()
    assert run("--append-eod", "--tokenizer-type", "HuggingFaceTokenizer", "--partitions", "3", *idle) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    for flag in idle:
        assert not flag.startswith("--") or f"{flag} has no effect" in notes[0]
    assert notes[0].count("has no effect") == 7
    assert files_of(tmp_path / "out/x_text_document") == files_of(tmp_path / "theirs")


def test_sentencepiece_models_encode_too(tmp_path: Path, run: Callable[..., int]) -> None:
    """The ids of its own library, with its EOS."""
    import sentencepiece

    model = tmp_path / "piece.model"
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["ab ba", "aab"] * 9), model_writer=file, vocab_size=20, minloglevel=2,
            hard_vocab_limit=False,
        )  # fmt: skip
    texts = ["ab ba aab", "", "b"]
    write_texts(tmp_path / "in.jsonl", texts)
    arguments = ["--append-eod", "--tokenizer-type", "GPTSentencePieceTokenizer", "--workers", "2"]
    assert run(*arguments, tokenizer_model=model) == 0
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected = [[*theirs.encode(text), theirs.eos_id()] for text in texts if text]
    tokens = IndexedTokens(tmp_path / "out/x_text_document")
    assert [tokens.read(i).tolist() for i in range(tokens.num_documents)] == expected


def test_the_environment_is_left_as_it_was(
    tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a line is bad."""
    (tmp_path / "in.jsonl").write_bytes(GOOD + b"{\n")
    for before in ("true", None):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        assert run() == 2
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_memory_is_bounded_by_the_workers() -> None:
    """However slow the consumer is, only two blocks per worker are read ahead."""
    num_read = 0

    def blocks() -> Iterable[Any]:
        nonlocal num_read
        for number in range(1, 101):
            num_read += 1
            yield SimpleNamespace(end=Position(0, number, number), num_bytes=1)

    for num_taken, _ in enumerate(encode._map_in_order(encoded_nothing, blocks(), 3), start=1):
        assert num_read - num_taken < 2 * 3
    assert num_read == num_taken == 100


def test_memory_is_bounded_for_very_long_documents_too() -> None:
    """Blocks of 64 MiB do not wait for one another beyond 96 MiB, whatever the number of workers."""
    num_read = 0

    def blocks() -> Iterable[Any]:
        nonlocal num_read
        for number in range(1, 21):
            num_read += 1
            yield SimpleNamespace(end=Position(number, 0, 0), num_bytes=1 << 26)

    for num_taken, _ in enumerate(encode._map_in_order(encoded_nothing, blocks(), 16), start=1):
        assert num_read - num_taken < 3
    assert num_taken == 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet"])
def test_blocks_know_what_memory_they_take(name: str, tmp_path: Path) -> None:
    """Of whatever kind the input is: by it the blocks read ahead are counted."""
    text = "ab" * 50_000
    if name.endswith("parquet"):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": [text] * 3}), tmp_path / name)
    else:
        (tmp_path / name).write_text(text if name.endswith("txt") else json.dumps({"text": text}) + "\n")
    inputs = expand_inputs([str(tmp_path / name)])
    blocks = read_blocks(inputs, Position(0, 0, 0), max_record_bytes=1 << 20, keys=["text"])
    assert 100_000 <= sum(block.num_bytes for block in blocks) < 400_000


def encoded_nothing(block: Any) -> encode.Encoded:
    """A block without records."""
    return encode.Encoded((), (), 0, 0, block.end, 0)


def test_the_program_prints_what_it_made(tmp_path: Path, tokenizer: Path) -> None:
    """As a user starts it; it imports neither torch nor transformers."""
    write_texts(tmp_path / "in.jsonl", ["ab", "", "b b"])
    arguments = ["--input", "in.jsonl", "--output-prefix", "x", "--tokenizer-model", str(tokenizer)]
    command = [sys.executable, "-X", "importtime", str(PROGRAM), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True)
    manifest = load_manifest(tmp_path / "x_text_document")
    header, _, row = done.stdout.splitlines()
    assert header.split() == [
        "documents", "empty", "rejected", "tokens", "bin", "bytes", "tokens/s", "prefix"
    ]  # fmt: skip
    made = row.split()
    assert made[:5] == ["2", "1", "0", str(manifest.tokens), str(manifest.tokens * 2)]
    assert made[-1] == "x_text_document"
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "transformers", "megatron"}) and "tokenizers" in imported
    failed = subprocess.run([*command, "--split-sentences"], cwd=tmp_path, capture_output=True, timeout=240)
    assert failed.returncode == 2


def test_options_state_the_overwrite_for_callers_too(tmp_path: Path, tokenizer: Path) -> None:
    """The same rules hold for `preprocess` called from Python."""
    options = PreprocessOptions(
        inputs=(str(write_texts(tmp_path / "in.jsonl", ["ab"])),),
        output_prefix=str(tmp_path / "x"),
        tokenizer=str(tokenizer),
    )
    first = preprocess(options, progress=False)
    with pytest.raises(DataError, match="exists"):
        preprocess(options, progress=False)
    assert preprocess(replace(options, overwrite=True), progress=False) == first


@pytest.fixture(scope="module")
def with_bos(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts BOS before every text by itself, as Llama's do."""
    directory = tmp_path_factory.mktemp("with_bos")
    for path in tokenizer.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    content = json.loads((directory / "tokenizer.json").read_text())
    bos_id = load_tokenizer(tokenizer).bos_id
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos_id], "tokens": ["<s>"]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def write_by_megatrons_tokenizer(prefix: Path, tokenizer: Path, texts: Sequence[str], special: bool) -> None:
    """Megatron's program with `--tokenizer-type HuggingFaceTokenizer --append-eod`: its own tokenizer and builder."""
    from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer

    theirs = HuggingFaceTokenizer(str(tokenizer), use_fast=True, include_special_tokens=special)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for text in texts:
        ids = [*theirs.text_to_ids(text), theirs.eod]
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_special_tokens_are_those_of_megatrons_hugging_face_tokenizer(
    special: bool,
    adds_bos: bool,
    tmp_path: Path,
    tokenizer: Path,
    with_bos: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """BOS is added where the post-processor adds it, said in a note and in the manifest; a flag leaves it out."""
    model = with_bos if adds_bos else tokenizer
    texts = ["ab b", "é 日 <s>", "</s>", "\n"]
    write_texts(tmp_path / "in.jsonl", texts)
    write_by_megatrons_tokenizer(tmp_path / "theirs", model, texts, special)
    capsys.readouterr()
    flags = [] if special else ["--tokenizer-hf-no-include-special-tokens"]
    hugging_face = ["--tokenizer-type", "HuggingFaceTokenizer", "--append-eod"]
    assert run(*hugging_face, *flags, tokenizer_model=model) == 0
    assert files_of(tmp_path / "out/x_text_document") == files_of(tmp_path / "theirs")
    assert load_manifest(tmp_path / "out/x_text_document").prepend_bos == (special and adds_bos)
    assert ("adds <s> to every document" in capsys.readouterr().err) == (special and adds_bos)


def test_nothing_is_added_unasked(tmp_path: Path, with_bos: Path, run: Callable[..., int]) -> None:
    """Without Megatron's tokenizer type, only --prepend-bos adds BOS."""
    write_texts(tmp_path / "in.jsonl", ["ab"])
    assert run(tokenizer_model=with_bos) == 0
    tokens = IndexedTokens(tmp_path / "out/x_text_document")
    assert tokens.read(0).tolist() == load_tokenizer(with_bos).encode("ab")
    assert not load_manifest(tmp_path / "out/x_text_document").prepend_bos


def test_special_tokens_that_cannot_be_reproduced_are_refused(
    tmp_path: Path, with_bos: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """EOS after a text, and files that contradict one another."""
    write_texts(tmp_path / "in.jsonl", ["ab"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((with_bos / name).read_bytes())
    config = json.loads((with_bos / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    assert run("--tokenizer-type", "HuggingFaceTokenizer", tokenizer_model=tmp_path) == 2
    assert "add_bos_token" in error_of(capsys)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"]["single"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert run("--tokenizer-type", "HuggingFaceTokenizer", tokenizer_model=tmp_path) == 2
    assert "--tokenizer-hf-no-include-special-tokens" in error_of(capsys)


@settings(deadline=None, max_examples=30)
@given(
    documents=st.lists(st.lists(st.integers(0, 65000), min_size=1, max_size=4), max_size=6),
    bos_id=st.none() | st.integers(0, 9),
    eos_id=st.none() | st.integers(0, 9),
)
def test_special_tokens_stand_around_every_document(
    documents: list[list[int]], bos_id: int | None, eos_id: int | None
) -> None:
    """As if each document had been put together alone."""
    ids = np.array([token for document in documents for token in document], np.uint32)
    lengths = np.array([len(document) for document in documents], np.int64)
    tokens, full = encode.with_special(ids, lengths, np.dtype(np.uint16), bos_id, eos_id)
    before, after = [[] if token is None else [token] for token in (bos_id, eos_id)]
    expected = [[*before, *document, *after] for document in documents]
    assert tokens.dtype == np.uint16 and full.dtype == np.int32
    assert tokens.tolist() == [token for document in expected for token in document]
    assert full.tolist() == [len(document) for document in expected]


class BrokenEngine:
    """Gives what its test wants."""

    name = "broken 1.0"

    def __init__(self, ids: list[int], lengths: list[int]) -> None:
        self._made = np.array(ids, np.uint32), np.array(lengths, np.int64)

    def encode(self, texts: Sequence[bytes]) -> Any:
        """Whatever the texts are."""
        return self._made


@pytest.mark.parametrize(("ids", "lengths"), [([99999], [1]), ([1, 2], [1]), ([1], [1, 0])])
def test_an_engine_that_gives_what_cannot_be_is_refused(
    ids: list[int], lengths: list[int], tokenizer: Path, tmp_path: Path
) -> None:
    """An id outside the vocabulary, ids or texts that are not accounted for."""
    encoder = encode.Encoder(
        keys=("text",), engine=BrokenEngine(ids, lengths), reference=load_tokenizer(tokenizer),
        dtype=np.dtype(np.uint16), bos_id=None, eos_id=None,
    )  # fmt: skip
    source = Input(write_texts(tmp_path / "in.jsonl", ["ab"]), "jsonl")
    (block,) = read_blocks([source], Position(0, 0, 0), max_record_bytes=1 << 20)
    with pytest.raises(DataError, match=r"broken 1\.0 gave"):
        encoder(block)


def test_every_document_can_be_compared(
    tmp_path: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--verify` finds a document that the sample did not hold; the manifest says that all were compared."""
    write_texts(tmp_path / "in.jsonl", ["ab"] * 300)
    assert run("--verify") == 0
    assert "every document" in load_manifest(tmp_path / "out/x_text_document").engine
    broken = BrokenEngine([0] * 300, [1] * 300)
    monkeypatch.setattr(preprocess_plan, "choose_engine", lambda *_: (broken, []))
    capsys.readouterr()
    assert run("--verify", "--overwrite") == 2
    assert "broken 1.0" in error_of(capsys)


def test_a_disk_that_is_clearly_too_small_is_refused(
    tmp_path: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is written; one that may do is not."""
    write_texts(tmp_path / "in.jsonl", ["ab " * 1000] * 40)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    assert run() == 2
    assert "free" in error_of(capsys)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=60_000))
    assert run() == 0


def test_partitions_of_a_job_array_are_the_whole(
    tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged, they are the single run byte for byte, manifest included; a part without a line is no error."""
    write_texts(tmp_path / "a.jsonl", ["ab é", "", "b" * 300, "日 ab"] * 3)
    write_texts(tmp_path / "b.jsonl.gz", ["ab", "b"])
    inputs = ["a.jsonl", "b.jsonl.gz"]
    assert run("--append-eod", inputs=inputs) == 0
    whole = tmp_path / "out/x_text_document"
    parts = []
    for name, value in (("MIN", "0"), ("MAX", "11"), ("COUNT", "12")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    for number in range(12):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        assert run("--append-eod", "--partition", "slurm", inputs=inputs) == 0
        parts.append(str(tmp_path / f"out/x_part-{number:05d}-of-00012_text_document"))
        assert load_manifest(parts[-1]).partition == f"{number}/12"
    assert 0 in [load_manifest(part).documents for part in parts]
    merge(parts, str(tmp_path / "merged"))
    assert files_of(tmp_path / "merged") == files_of(whole)
    assert manifest_path(tmp_path / "merged").read_bytes() == manifest_path(whole).read_bytes()


def test_tiktoken_flags_of_megatron_act() -> None:
    """With Megatron's defaults; for another tokenizer they are named as without effect."""
    words = ["--input", "a", "--output-prefix", "b", "--tokenizer-model", "c"]
    flags = ["--tiktoken-pattern", "v1", "--tiktoken-num-special-tokens", "20", "--vocab-size", "500"]
    options, notes = parse_options([*words, "--tokenizer-type", "TikTokenizer"])
    assert (options.tiktoken, notes) == (megatron_config(), [])
    options, notes = parse_options([*words, "--tokenizer-type", "TikTokenizer", *flags])
    assert options.tiktoken == megatron_config(pattern="v1", num_special_tokens=20, vocab_size=500)
    assert notes == []
    options, notes = parse_options([*words, *flags])
    assert options.tiktoken is None and len(notes) == 3
