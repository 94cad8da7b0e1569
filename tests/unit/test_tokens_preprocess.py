"""Preprocessing writes Megatron's bytes, in order, and publishes all of a corpus or nothing."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from cptron.errors import DataError
from cptron.tokens import encode
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import load_manifest, manifest_path, verify
from cptron.tokens.preprocess import PreprocessOptions, main, preprocess
from cptron.tokens.tokenizer import load_tokenizer

PROGRAM = Path(__file__).parents[2] / "tools/preprocess_data.py"
ALPHABET = st.sampled_from(["a", "b", " ", "\n", "é", "日", "</s>", "<s>", "\u2028", "\x00", '"', "\\"])
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
        patch.setattr(encode, "_BATCH_BYTES", 6)
        patch.setattr(encode, "_BATCH_RECORDS", 3)
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
        return main(["--input", *paths, "--output-prefix", prefix, "--tokenizer-model", model, *arguments])

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


def test_a_stop_while_publishing_leaves_no_manifest(
    tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two outputs, a stop at any rename: what has a manifest is whole, and what is not whole has none."""
    write_lines(tmp_path / "in.jsonl", [{"text": "ab", "title": "b"}])
    assert run("--json-keys", "text", "title") == 0
    write_lines(tmp_path / "in.jsonl", [{"text": "é", "title": "日"}])
    rename = Path.replace
    for stop_at in range(6):
        seen: list[Path] = []

        def stop(self: Path, target: Path, seen: list[Path] = seen, stop_at: int = stop_at) -> Path:
            seen.append(target)
            if len(seen) > stop_at:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run("--json-keys", "text", "title", "--overwrite")
        for key in ("text", "title"):
            prefix = tmp_path / f"out/x_{key}_document"
            if manifest_path(prefix).exists():
                verify(prefix)
    assert not manifest_path(tmp_path / "out/x_title_document").exists()


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
    (["--partitions", "2"], "--partitions 2"),
    (["--split-sentences"], "--split-sentences"),
    (["--tokenizer-type", "Llama2Tokenizer"], "--prepend-bos"),
    (["--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", "v.json"], "must be one of"),
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
    capsys.readouterr()
    assert run("--append-eod", "--tokenizer-type", "HuggingFaceTokenizer", "--partitions", "1", *idle) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    for flag in idle:
        assert not flag.startswith("--") or f"{flag} has no effect" in notes[0]
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


def test_memory_is_bounded_by_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the consumer is, only two batches per worker are read ahead."""
    num_read = 0

    def batches() -> Iterable[list[Any]]:
        nonlocal num_read
        for _ in range(100):
            num_read += 1
            yield []

    empty = encode.Encoded((), 0, 0)
    for num_taken, _ in enumerate(encode._map_in_order(lambda batch: empty, batches(), 3), start=1):
        assert num_read - num_taken < 2 * 3
    assert num_read == num_taken == 100


def test_the_program_prints_what_it_made(tmp_path: Path, tokenizer: Path) -> None:
    """As a user starts it; it imports neither torch nor transformers."""
    write_texts(tmp_path / "in.jsonl", ["ab", "", "b b"])
    arguments = ["--input", "in.jsonl", "--output-prefix", "x", "--tokenizer-model", str(tokenizer)]
    command = [sys.executable, "-X", "importtime", str(PROGRAM), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    manifest = load_manifest(tmp_path / "x_text_document")
    header, row = done.stdout.splitlines()
    assert header.split() == ["documents", "empty", "tokens", "bin", "bytes", "tokens/s", "prefix"]
    made = row.split()
    assert made[:4] == ["2", "1", str(manifest.tokens), str(manifest.tokens * 2)]
    assert made[-1] == "x_text_document"
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "transformers", "megatron"}) and "tokenizers" in imported
    failed = subprocess.run([*command, "--partitions", "2"], cwd=tmp_path, capture_output=True, timeout=60)
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
