"""What a curation reads, how it is cut, what it refuses, and that preprocessing proves what came out."""

from __future__ import annotations

import itertools
import json
import os
import re
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from corpus_world import config_of, documents_of, lines_of, loaded, run, text_of, write_inputs
from tokens_world import save_byte_tokenizer

from cptron.cli import main
from cptron.corpus.load import load_curation
from cptron.corpus.shards import look_up
from cptron.errors import ConfigError, DataError
from cptron.plan.corpus import curated_parts
from cptron.tokens.curated import corpus_path, read_corpora
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.manifest import load_manifest, manifest_path
from cptron.tokens.read_tables import parquet_groups, plain_rows

TEXTS = [text_of(number) for number in range(30)]


def curated_texts(root: Path, path: Path, **source: Any) -> list[str]:
    """Texts of a curation without steps."""
    config = config_of(root / "out", {}, [])
    run({**config, "inputs": [{"name": "x", "paths": [str(path)], **source}]}, restart=True)
    return [document["text"] for document in documents_of(root / "out")]


def test_metadata_that_python_cannot_hold() -> None:
    """A moment in an unknown zone keeps its moment; bytes that are no text, and a year too far, are null."""
    text = pyarrow.array([b"\xff", b"a"]).view(pyarrow.string())
    zoned, far = pyarrow.timestamp("us", "No/Where"), pyarrow.timestamp("s")
    columns = {
        "zoned": pyarrow.array([0, None], zoned),
        "far": pyarrow.array([1 << 60, 0], far),
        "text": text,
    }
    rows = plain_rows(pyarrow.RecordBatch.from_pydict(columns), list(columns))
    zero = datetime(1970, 1, 1)
    assert rows == [
        {"zoned": zero.replace(tzinfo=UTC), "far": None, "text": None},
        {"zoned": None, "far": zero, "text": "a"},
    ]


def test_parquet_is_cut_between_row_groups(tmp_path: Path) -> None:
    """Rows in order, ids by row, columns as metadata, whatever can be JSON; a null text is put aside."""
    table = pyarrow.table({
        "body": [*TEXTS, None],
        "day": pyarrow.array([0] * 31, pyarrow.date32()),
        "raw": [b"\xff"] * 31,
        "n": list(range(31)),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    assert curated_texts(tmp_path, tmp_path / "x.parquet") == TEXTS
    documents = documents_of(tmp_path / "out")
    assert [document["id"] for document in documents] == [f"x/x.parquet#{row}" for row in range(1, 31)]
    assert documents[3]["meta"] == {"day": "1970-01-01", "raw": "ff", "n": 3}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["records_rejected"] == {"not_a_string": 1} and len(manifest["files"]) > 1
    assert json.loads((tmp_path / "out/quarantine.jsonl").read_text())["record"] == 31
    shards = look_up(load_curation(tmp_path / "out.yaml").corpus).shards
    groups = parquet_groups(shards[0].pieces[0].input)
    assert sum(shard.stored_bytes for shard in shards) == sum(num_bytes for _, num_bytes in groups)


def test_tables_are_looked_at_before_the_work_begins(tmp_path: Path) -> None:
    """One of many that is cut off, lacks the text or has numbers for it would end the run when its turn comes."""
    (tmp_path / "raw").mkdir()
    for number in range(10):  # more than the text's key is looked for in
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / f"raw/{number}.parquet")
    last = tmp_path / "raw/9.parquet"
    whole = last.read_bytes()
    config = config_of(tmp_path / "out", {"x": [str(tmp_path / "raw")]}, []) | {"shard_bytes": 1 << 20}
    look_up(loaded(config).corpus)
    for damage, message in (
        (lambda: last.write_bytes(whole[:-9]), "9.parquet must be a sound Parquet file"),
        (
            lambda: pyarrow.parquet.write_table(pyarrow.table({"n": TEXTS}), last),
            "9.parquet has no column 'text'",
        ),
        (
            lambda: pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), last),
            "9.parquet has int64 in column",
        ),
    ):
        damage()
        with pytest.raises(DataError, match=message):
            look_up(loaded(config).corpus)
        look_up(loaded(config).corpus, check=False)


def test_hugging_face_dataset(tmp_path: Path) -> None:
    """As `datasets` saves it."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"content": TEXTS, "n": list(range(30))}).save_to_disk(tmp_path / "set")
    assert curated_texts(tmp_path, tmp_path / "set", meta_keys=["n"]) == TEXTS


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ({"text": "a", "content": "much longer than a"}, "text"),
        ({"content": "a b", "url": "https://example.org/much/longer"}, "content"),
        ({"story": "a long story of many words and more", "id": "7"}, "story"),
        ({"only": "x"}, "only"),
    ],
)
def test_key_of_the_text_is_found(record: dict[str, str], key: str, tmp_path: Path) -> None:
    """By name, then by length."""
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n")
    assert curated_texts(tmp_path, tmp_path / "x.jsonl") == [record[key]]


def test_key_is_not_guessed(tmp_path: Path) -> None:
    """Two alike are a question; under strict only `text` will do, or what is named."""
    (tmp_path / "x.jsonl").write_text(json.dumps({"one": "some words", "two": "more words"}) + "\n")
    with pytest.raises(DataError, match="keys one, two, none of which is clearly"):
        curated_texts(tmp_path, tmp_path / "x.jsonl")
    assert curated_texts(tmp_path, tmp_path / "x.jsonl", text_key="two") == ["more words"]
    (tmp_path / "x.jsonl").write_text(json.dumps({"content": "words"}) + "\n")
    manifest = run({**config_of(tmp_path / "out", {"x": [str(tmp_path / "x.jsonl")]}, []), "strict": True})
    assert manifest.records_rejected == {"missing_key": 1} and manifest.documents == 0


def test_files_with_other_keys_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Naming one key would lose the others' files: the error says what to do. A key that was found is told."""
    for name, key in (("a", "text"), ("b", "content")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({key: f"words of {name}", "n": 1}) + "\n")
    inputs = {"x": [str(tmp_path / "*.jsonl")]}
    with pytest.raises(
        DataError, match=r"several keys \(text in .*a\.jsonl, content in .*b\.jsonl\).* of its own"
    ):
        run(config_of(tmp_path / "out", inputs, []))
    apart = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("a", "b")}
    run(config_of(tmp_path / "out", apart, []))
    assert [document["text"] for document in documents_of(tmp_path / "out")] == ["words of a", "words of b"]
    assert "note: input b has its text at 'content'" in capsys.readouterr().err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {name: source["text_key"] for name, source in report["sources"].items()} == {
        "a": "text",
        "b": "content",
    }


def test_what_has_no_end_is_refused(tmp_path: Path) -> None:
    """To open a pipe waits for a writer, and a link to a directory around it is walked for ever."""
    (tmp_path / "raw/below").mkdir(parents=True)
    (tmp_path / "raw/x.jsonl").write_bytes(lines_of(TEXTS))
    (tmp_path / "raw/below/up").symlink_to("..")
    with pytest.raises(DataError, match="raw/below/up is a link to a directory around it"):
        curated_texts(tmp_path, tmp_path / "raw")
    (tmp_path / "raw/below/up").unlink()
    os.mkfifo(tmp_path / "raw/below/y.jsonl")
    for path in (tmp_path / "raw", tmp_path / "raw/below/y.jsonl"):
        with pytest.raises(DataError, match=r"y\.jsonl is a pipe or a device"):
            curated_texts(tmp_path, path)


def test_odd_records(tmp_path: Path) -> None:
    """Huge numbers and half surrogates in metadata are kept or put aside; a line beyond the limit is not held."""
    lines = [
        b'{"text": "a", "n": 123456789012345678901234567890, "h": "\\ud800", "x": NaN}',
        b'{"text": "\\ud800"}',
        b'{"text": "deep", "m": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"text": "' + b"z" * 5000 + b'"}',
        b'{"text": "nul\\u0000"}',
        b'{"text": "last"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    config = config_of(tmp_path / "out", {"x": [str(tmp_path / "x.jsonl")]}, [{"step": "exact_dedup"}])
    manifest = run({**config, "max_document_bytes": 3000})
    assert [document["text"] for document in documents_of(tmp_path / "out")] in (
        ["a", "deep", "last"],
        ["a", "last"],
    )
    rejected = dict(manifest.records_rejected)
    assert rejected.pop("bad_json", 0) + manifest.documents == 3
    assert rejected == {"bad_utf8": 1, "nul": 1, "too_long": 1}


def test_damaged_zip_and_locked_zip(tmp_path: Path) -> None:
    """A member that is cut is reported where it is damaged; what cannot be read is refused by name."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", lines_of(TEXTS))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    content[300:310] = bytes(10)
    (tmp_path / "x.zip").write_bytes(content)
    manifest = run(config_of(tmp_path / "out", {"x": [str(tmp_path / "x.zip")]}, []))
    assert sum(manifest.records_rejected.values()) >= 1 and manifest.records_read >= 1
    (tmp_path / "y.zip").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match="must be a sound ZIP file"):
        run(config_of(tmp_path / "out2", {"x": [str(tmp_path / "y.zip")]}, []))
    with pytest.raises(DataError, match=r"packed as \.zip"):
        expand_inputs([str(tmp_path / "x.zip")])


def test_the_members_of_an_archive_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each of them: an archive of many small texts would take the square of their number."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number, text in enumerate(TEXTS):
            archive.writestr(f"{number}.txt", text)
    opened = []
    whole = zipfile.ZipFile

    def counted(*given: Any, **named: Any) -> zipfile.ZipFile:
        opened.append(given)
        return whole(*given, **named)

    monkeypatch.setattr(zipfile, "ZipFile", counted)
    assert sorted(curated_texts(tmp_path, tmp_path / "x.zip")) == sorted(TEXTS)
    assert len(opened) <= 3


def test_cut_depends_on_sizes_alone(tmp_path: Path) -> None:
    """Shards are of one source, near the size asked for, and cover every byte once."""
    inputs = write_inputs(tmp_path / "raw")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config_of(tmp_path / "out", inputs, [])))
    corpus = look_up(load_curation(tmp_path / "c.yaml").corpus)
    of_a = [
        (piece.input.start_byte, piece.input.stop_byte)
        for shard in corpus.shards for piece in shard.pieces if piece.name == "web/a.jsonl"
    ]  # fmt: skip
    assert len(of_a) > 3 and of_a[0][0] == 0 and of_a[-1][1] == Path(inputs["web"][0]).stat().st_size
    assert all(one[1] == two[0] for one, two in itertools.pairwise(of_a))
    assert [shard.source for shard in corpus.shards] == sorted(shard.source for shard in corpus.shards)
    assert len(corpus.shards[-1].pieces) == 5, "small files are joined"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [{"step": "lenght"}]}, "steps.0.step is lenght, must be one of"),
        ({"steps": [{"step": "lenght"}]}, "did you mean length?"),
        ({"steps": [{"pii": {"kinds": ["email"]}}]}, "steps.0 has no key step; write `step: pii`"),
        ({"steps": [{"step": "pii", "name": ["x"]}]}, "steps.0.name=(a list) must be text"),
        ({"steps": [{"step": "length", "min_wrods": 3}]}, "unknown key steps.0.min_wrods; did you mean"),
        ({"steps": [{"step": "length", "min_words": "x"}]}, "min_words"),
        ({"steps": [{"step": "length", "min_words": 9, "max_words": 3}]}, "min_words 9 and max_words 3"),
        ({"steps": [{"step": "length"}, {"step": "length"}]}, "length is there twice"),
        ({"steps": [{"step": "length", "sources": ["no"]}]}, "for the source no, must be one of x"),
        (
            {"steps": [{"step": "near_duplicates", "prefer_sources": ["X"]}]},
            "step near_duplicates has the source X in prefer_sources, must be one of x",
        ),
        ({"inputs": []}, "inputs has 0 elements"),
        ({"inputs": [{"name": "../x", "paths": ["a"]}]}, "must be of letters"),
        ({"shard_bytes": 1}, "shard_bytes 1"),
        ({"compression_level": 99}, "compression_level 99"),
        ({"outptu": "x"}, "unknown key outptu"),
    ],
)
def test_wrong_files_are_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """With file and line where there is one."""
    config = {**config_of(tmp_path / "out", {"x": ["a.jsonl"]}, []), **change}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError) as caught:
        load_curation(tmp_path / "c.yaml")
    assert message in str(caught.value) and "c.yaml" in str(caught.value)


def test_overrides_name_steps(tmp_path: Path) -> None:
    """By place, by name, or by what the step is called."""
    steps = [{"step": "length"}, {"step": "length", "name": "second"}]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config_of(tmp_path / "out", {"x": ["a"]}, steps)))
    config = load_curation(
        tmp_path / "c.yaml", ["steps.0.min_words=3", "steps.second.min_words=4", "steps.length.max_words=9"]
    )
    first, second = (step.settings for step in config.steps)
    assert (first.min_words, first.max_words, second.min_words) == (3, 9, 4)


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated corpus with token counts, and a tokenizer beside it."""
    root = tmp_path_factory.mktemp("curated")
    save_byte_tokenizer(root, ["</s>"], eos_token="</s>")
    config = config_of(
        root / "out", write_inputs(root / "raw"), [{"step": "exact_dedup"}], tokenizer=str(root)
    )
    run(config)
    return root


def test_preprocessing_reads_the_corpus_and_carries_its_manifest_on(curated: Path, tmp_path: Path) -> None:
    """The directory is enough; tokens are those that were counted; merged token files keep the manifest."""
    for name, pattern in (("a", str(curated / "out")), ("b", str(curated / "out/web-*.zst"))):
        words = [
            "preprocess",
            "--input",
            pattern,
            "--tokenizer-model",
            str(curated),
            "--output-prefix",
            str(tmp_path / name),
        ]
        assert main(words) == 0
    manifest = json.loads((curated / "out/manifest.json").read_text())
    prefix = tmp_path / "a_text_document"
    tokens = load_manifest(prefix)
    assert (tokens.tokens, tokens.documents) == (manifest["tokens"], manifest["documents"])
    assert tokens.options["corpus"] == manifest["fingerprint"]
    assert [corpus.fingerprint for corpus in read_corpora(prefix)] == [manifest["fingerprint"]]
    both = [str(prefix), str(tmp_path / "b_text_document")]
    assert main(["merge", "--inputs", *both, "--output-prefix", str(tmp_path / "ab_text_document")]) == 0
    assert len(read_corpora(tmp_path / "ab_text_document")) == 1


def test_split_files_keep_the_manifests_and_plans_read_them(curated: Path, tmp_path: Path) -> None:
    """Each output has that of the whole corpus, which a plan counts source by source; files that are put in the place
    of such ones, and have no manifest, lose it."""
    whole = tmp_path / "w_text_document"
    words = ["--tokenizer-model", str(curated), "--output-prefix", str(tmp_path / "w")]
    assert main(["preprocess", "--input", str(curated / "out"), *words]) == 0
    words = ["--fractions", "0.5,0.5", "--output-prefix", str(tmp_path / "s")]
    assert main(["split", "--input-prefix", str(whole), *words]) == 0
    corpora = read_corpora(whole)
    assert corpora and read_corpora(tmp_path / "s_train") == corpora == read_corpora(tmp_path / "s_valid")
    parts = curated_parts(str(tmp_path / "s_valid"))
    assert [part.source for part in parts] == ["web", "book"]
    documents = Counter(document["source"] for document in documents_of(curated / "out"))
    assert {part.source: part.documents for part in parts} == documents
    sums = (sum(part.text_bytes for part in parts), sum(part.tokens or 0 for part in parts))
    assert sums == (corpora[0].text_bytes, corpora[0].tokens)
    manifest_path(whole).unlink()
    assert main(["split", "--input-prefix", str(whole), *words, "--overwrite"]) == 0
    assert (
        main(["merge", "--inputs", str(whole), "--output-prefix", str(tmp_path / "s_train"), "--overwrite"])
        == 0
    )
    assert not read_corpora(tmp_path / "s_train") and not read_corpora(tmp_path / "s_valid")


def test_preprocessing_refuses_another_file_than_the_manifests(curated: Path, tmp_path: Path) -> None:
    """Another size at once, other bytes of the same size at the end; nothing is published."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for path in (curated / "out").iterdir():
        if path.is_file():
            (directory / path.name).write_bytes(path.read_bytes())
    other = directory / json.loads((directory / "manifest.json").read_text())["files"][0]["name"]
    words = ["preprocess", "--input", str(directory), "--tokenizer-model", str(curated)]
    words += ["--output-prefix", str(tmp_path / "x"), "--on-error", "skip"]
    content = other.read_bytes()
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # in the checksum of the last frame
    assert main(words) == 2
    other.write_bytes(content + b"x")
    assert main(words) == 2
    assert not corpus_path(tmp_path / "x_text_document").exists() and not list(tmp_path.glob("*.bin"))
    other.write_bytes(content)
    assert main([*words, "--restart"]) == 0


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM's commands in a folder: `asked` gets what sbatch was given, `queue` is what squeue shows, and
    sbatch refuses all jobs after the first `most`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "most").write_text("99")
    (tmp_path / "queue").touch()
    bodies = {
        "sbatch": 'echo "$*" >>asked; [ $(wc -l <asked) -le $(cat most) ] || { echo "QOSMaxSubmitJobPerUserLimit" >&2; '
        "exit 1; }; wc -l <asked",
        "squeue": "cat queue",
        "scancel": 'echo "$*" >>cancelled',
    }
    for name, body in bodies.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncd {tmp_path} && {{ {body}; }}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name, value in (("PATH", f"{tmp_path}/bin:/usr/bin:/bin"), ("CPTRON_JOBS", f"{tmp_path}/jobs.jsonl")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path / "out", write_inputs(tmp_path / "raw"), [{"step": "exact_dedup"}])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


SUBMIT = ["curate", "c.yaml", "--executor", "slurm", "--parts", "2", "--partition", "cpu"]


def test_jobs_of_a_cluster(
    scheduler: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage is an array behind the end of the stage before; the jobs' own commands make the corpus."""
    assert main([*SUBMIT, "--after", "77", "seed=3"]) == 0
    assert f"job 4 writes {scheduler}/out/manifest.json" in capsys.readouterr().out
    jobs = [line.split() for line in (scheduler / "asked").read_text().splitlines()]
    after = [
        [word.partition(":")[2] for word in job if word.startswith("--dependency=afterok:")] for job in jobs
    ]
    assert after == [["77"], ["1"], ["2"], ["3"]]
    assert all("--kill-on-invalid-dep=yes" in job for job in jobs)
    for number, job in enumerate(jobs):
        script = Path(job[-1]).read_text().splitlines()
        assert "#SBATCH --partition=cpu" in script
        assert ("#SBATCH --array=0-1" in script) == (number % 2 == 0)
        words = next(line for line in script if line.startswith("command=("))
        arguments = words.removeprefix("command=(").removesuffix(")").split()
        for task in range(2 - number % 2):
            for name, value in (("ID", task), ("MIN", 0), ("MAX", 1), ("COUNT", 2)):
                monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
            assert main([*arguments, "--workers", "1"]) == 0
    assert (scheduler / "out/manifest.json").is_file()


def test_all_jobs_or_none(scheduler: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the third is refused, the first two are taken back, the one that would start last; and while jobs of an
    output are in the queue, no more are submitted, and nothing of them is discarded."""
    (scheduler / "most").write_text("2")
    assert main(SUBMIT) == 2
    assert "QOSMaxSubmitJobPerUserLimit" in capsys.readouterr().err
    assert (scheduler / "cancelled").read_text().split() == ["2", "1"]
    comments = re.findall(r"--comment=(\S+)", (scheduler / "asked").read_text())
    assert len(comments) == 3 and len(set(comments)) == 1
    (scheduler / "queue").write_text(f"7 (null)\n12 {comments[0]}\n9 {comments[0]}\n12 {comments[0]}\n")
    assert main([*SUBMIT, "--restart"]) == 2
    assert "made by 2 jobs that wait or run, such as 9;" in capsys.readouterr().err
    assert (scheduler / "out/.work").is_dir() and len((scheduler / "asked").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "words",
    [
        ("--partition", "cpu"),
        ("--stage", "0"),
        ("--part", "0/2"),
        ("--finish", "0", "--restart"),
        ("--finish", "0", "--executor", "slurm"),
        ("--finish", "0", "--part", "0/2", "--stage", "0"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(words: tuple[str, ...], scheduler: Path) -> None:
    """In one line, before anything is written."""
    assert main(["curate", "c.yaml", *words]) == 2
    assert not (scheduler / "out").exists()
