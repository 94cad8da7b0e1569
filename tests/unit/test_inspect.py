"""`cptron inspect` tells what is on disk, by independent counts, and says what is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.checkpoint import layout
from cptron.cli import main
from cptron.durable import begin_directory
from cptron.errors import CptronError, DataError
from cptron.inspect import describe, text_lines
from cptron.inspect_run import num_parameters
from cptron.inspect_tokens import printable
from cptron.model.architecture import Architecture
from cptron.tokens.index_layout import HEADER, MAGIC, loss_mask_path
from cptron.tokens.indexed_writer import IndexedWriter
from cptron.tokens.lengths import LengthCounts, log2_bins, quantile, share_longer
from cptron.tokens.manifest import hash_file, load_manifest, manifest_path, write_manifest
from cptron.tokens.preprocess import main as preprocess

ARCH = Architecture(
    family="llama",
    num_layers=2,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=4,
    num_kv_heads=2,
    head_dim=6,
    vocab_size=50,
    max_position_embeddings=32,
    norm_eps=1e-5,
    rope_theta=10000.0,
)
LENGTHS = [1, 2, 3, 4, 10]
RUN_YAML = """\
run: {dir: run}
start: {checkpoint: base}
data:
  seq_length: 8
  sources: [{name: law, path: t, token_share: 0.6}, {name: web, path: u, token_share: 0.4}]
train: {steps: 30, global_batch_size: 4}
optim: {lr: 0.001}
eval: {at_start: false}
"""
LEDGER = {
    name: {"identity": name * 8, "share": share, "cursor": 3, "since_mix": 3, "tokens": 24, "epochs": 0.5}
    for name, share in (("law", 0.6), ("web", 0.4))
}


def save_tokenizer(directory: Path, words: str) -> Path:
    """A word-level tokenizer with one id a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: number for number, word in enumerate(["<unk>", *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Prefix of token files of documents of 1, 2, 3, 4 and 10 words; one input line is empty."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer", "red green blue")
    texts = [" ".join(["green", "blue", *["red"] * 8][:length]) for length in LENGTHS]
    lines = [json.dumps({"text": text}) + "\n" for text in [*texts[:2], "", *texts[2:]]]
    (tmp_path / "c.jsonl").write_text("".join(lines))
    arguments = ["--input", str(tmp_path / "c.jsonl"), "--tokenizer-model", str(tokenizer)]
    assert preprocess([*arguments, "--output-prefix", str(tmp_path / "c"), "--workers", "1"]) == 0
    return tmp_path / "c_text_document"


def save_checkpoint(directory: Path, parent: str = "", step: int = 0) -> Path:
    """A checkpoint whose shards are three bytes: `inspect` reads none of them."""
    working = begin_directory(directory)
    (working / layout.SHARDS).mkdir()
    (working / layout.SHARDS / "a.distcp").write_bytes(b"abc")
    if step:
        layout.write_json(working / layout.STATE, {"step": step, "ledger": {"entries": LEDGER}})
    manifest = layout.Manifest(
        kind="training" if step else "weights",
        step=step,
        tokens_total=step * 32,
        architecture=ARCH.to_dict(),
        hugging_face_model="tiny",
        tokenizer_fingerprint="",
        weights_fingerprint="f",
        probe=layout.Probe(token_ids=[1, 2], loss_nats_per_token=3.25),
        layout="tp2_pp1_dp1" if step else "",
        precision="fp32",
        parent=parent,
    )
    layout.publish(directory, manifest)
    return directory


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with checkpoints after 10 and 20 steps and metrics of 21."""
    base = save_checkpoint(tmp_path / "base")
    run = tmp_path / "run"
    run.mkdir()
    layout.write_json(run / "run.json", {"identity": {"seed": 1}, "name": "tiny"})
    (run / "config.yaml").write_text(RUN_YAML)
    for step in (10, 20):
        save_checkpoint(layout.step_directory(run / "checkpoints", step), str(base), step)
    records: list[dict[str, Any]] = [
        {"kind": "eval", "step": 0, "valid/law/loss_nats_per_token": 4.0},
        {"kind": "step", "step": 20, "loss_nats_per_token": 3.0},
        {"kind": "step", "step": 21, "loss_nats_per_token": 2.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_token_files_counted_by_hand(corpus: Path) -> None:
    """Documents, tokens and quantiles of 1, 2, 3, 4 and 10 tokens."""
    facts = describe(str(corpus))
    assert (facts["documents"], facts["tokens"], facts["documents_empty_skipped"]) == (5, 20, 1)
    lengths = facts["document_length_tokens"]
    assert {name: lengths[name] for name in ("min", "q25", "median", "q75", "max", "mean")} == {
        "min": 1, "q25": 2, "median": 3, "q75": 4, "max": 10, "mean": 4
    }  # fmt: skip
    assert facts["length_histogram"] == [
        {"from": 1, "to": 1, "documents": 1, "tokens": 1},
        {"from": 2, "to": 3, "documents": 2, "tokens": 5},
        {"from": 4, "to": 7, "documents": 1, "tokens": 4},
        {"from": 8, "to": 15, "documents": 1, "tokens": 10},
    ]
    assert set(facts["share_of_documents_longer_than"].values()) == {0}
    assert facts["header"] == {
        "magic": "MMIDIDX", "version": 1, "dtype_code": 8, "sequences": 5, "document_index_entries": 6
    }  # fmt: skip
    assert facts["dtype"] == "uint16"
    files = [corpus.with_name(f"{corpus.name}.{kind}") for kind in ("bin", "idx")]
    assert facts["bytes"] == sum(len(file.read_bytes()) for file in files)


def test_tokenizer_is_proven_and_shows_text(corpus: Path) -> None:
    """The right one shows the documents' beginnings; another one is refused."""
    facts = describe(str(corpus), tokenizer=str(corpus.parent / "tokenizer"))
    assert facts["made_with_this_tokenizer"] is True
    assert [text.split() for text in facts["begin_with"]] == [
        ["green"],
        ["green", "blue"],
        ["green", "blue", "red"],
    ]
    other = save_tokenizer(corpus.parent / "other", "green red blue")
    with pytest.raises(DataError, match="was made with tokenizer"):
        describe(str(corpus), tokenizer=str(other))


def test_origin_is_shown(corpus: Path) -> None:
    """What the manifest says of records, engine, partition and masks."""
    manifest = replace(
        load_manifest(corpus), partition="2/8", documents_rejected={"nul": 1}, records_read=7, engine="e 1"
    )
    loss_mask_path(corpus).write_bytes(bytes([1, 0] * 10))
    files = {**manifest.files, "loss_mask": hash_file(loss_mask_path(corpus))}
    write_manifest(corpus, replace(manifest, files=files))
    facts = describe(str(corpus), document=4)
    shown = ("records_read", "documents_rejected", "engine", "partition", "loss_mask")
    assert [facts[name] for name in shown] == [7, {"nul": 1}, "e 1", "2/8", True]
    assert facts["document"]["learned_tokens"] == 5


def test_one_document_as_ids_or_as_text(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, and its text verbatim under the facts; a document that is not there is refused."""
    assert describe(str(corpus), document=2)["document"] == {"number": 2, "tokens": 3, "ids": [2, 3, 1]}
    assert main(["inspect", str(corpus), "--document", "2"]) == 0
    assert "2 3 1" in capsys.readouterr().out
    words = ["inspect", str(corpus), "--document", "4", "--tokenizer", str(corpus.parent / "tokenizer")]
    assert main(words) == 0
    head, text = capsys.readouterr().out.split("\ntext\n")
    assert text.split() == ["green", "blue", *["red"] * 8]
    assert "begin_with" not in head
    for number in ("5", "-1"):
        assert main(["inspect", str(corpus), "--document", number]) == 2
        assert "must be in 0..4" in capsys.readouterr().err


def test_control_characters_of_a_document_do_not_reach_the_terminal() -> None:
    """Text of the web may hold escape sequences; line ends, tabs and letters stay."""
    assert printable("ä\tb\n\x1b[31mred\x00\u202e") == "ä\tb\n\\x1b[31mred\\x00\\u202e"


def test_text_has_bars_and_percent(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The longest bar is of the fullest bin; JSON has the numbers alone."""
    assert main(["inspect", str(corpus)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith("#")]
    assert [(row[0], row[1], row[2], row[3], len(row[-1])) for row in rows] == [
        ("1-1", "1", "20.00%", "5.00%", 20),
        ("2-3", "2", "40.00%", "25.00%", 40),
        ("4-7", "1", "20.00%", "20.00%", 20),
        ("8-15", "1", "20.00%", "50.00%", 20),
    ]
    assert main(["inspect", str(corpus), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == describe(str(corpus))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70) | st.sampled_from([4096, 2**20 - 1, 2**20, 2**33]), min_size=1),
    pieces=st.integers(1, 5),
)
def test_statistics_of_lengths_are_numpys(lengths: list[int], pieces: int) -> None:
    """Also beyond the lengths that have a counter each, and counted piece by piece."""
    counter = LengthCounts()
    for part in np.array_split(np.array(lengths, np.int64), pieces):
        counter.add(part)
    distinct, counts = counter.distinct()
    assert dict(zip(distinct.tolist(), counts.tolist(), strict=True)) == Counter(lengths)
    for share in (0, 0.25, 0.5, 0.9, 0.99, 1):
        assert quantile(distinct, counts, share) == pytest.approx(np.quantile(lengths, share), rel=1e-9)
    assert share_longer(distinct, counts, 4096) == sum(length > 4096 for length in lengths) / len(lengths)
    bins = log2_bins(distinct, counts)
    for row in bins:
        inside = [length for length in lengths if row["from"] <= length <= row["to"]]
        assert (row["documents"], row["tokens"]) == (len(inside), sum(inside))
    assert sum(row["documents"] for row in bins) == len(lengths)


def test_megatrons_documents_are_counted_as_its_index_has_them(tmp_path: Path) -> None:
    """Several sequences make one document; empty ones keep their number and are counted apart."""
    np.array([5, 6, 7, 8], "<u2").tofile(tmp_path / "m.bin")
    index = HEADER.pack(MAGIC, 1, 8, 3, 4) + np.array([1, 2, 1], "<i4").tobytes()
    index += np.array([0, 2, 6], "<i8").tobytes() + np.array([0, 2, 2, 3], "<i8").tobytes()
    (tmp_path / "m.idx").write_bytes(index)
    facts = describe(str(tmp_path / "m"), document=0)
    assert (facts["documents"], facts["empty_documents"], facts["header"]["sequences"]) == (2, 1, 3)
    assert facts["document"]["ids"] == [5, 6, 7]
    assert describe(str(tmp_path / "m"), document=1)["document"]["ids"] == []
    assert describe(str(tmp_path / "m"), document=2)["document"]["ids"] == [8]


def test_verify_finds_a_changed_token(corpus: Path) -> None:
    """Sizes alone cannot tell; the hash does."""
    path = corpus.with_name(f"{corpus.name}.bin")
    content = bytearray(path.read_bytes())
    assert describe(str(corpus), check_hashes=True)["hashes"] == "verified"
    content[4] ^= 1
    path.write_bytes(content)
    assert describe(str(corpus))["hashes"] != "verified"
    with pytest.raises(DataError, match="SHA-256"):
        describe(str(corpus), check_hashes=True)


def test_token_files_of_another_tool_are_described(tmp_path: Path) -> None:
    """Megatron writes no manifest: that is said, and cannot be verified."""
    with IndexedWriter(tmp_path / "m", np.uint16) as writer:
        writer.add([1, 2, 3])
        writer.finish()
    facts = describe(str(tmp_path / "m"))
    assert facts["tokens"] == 3
    assert facts["manifest"].startswith("missing")
    with pytest.raises(DataError, match="manifest"):
        describe(str(tmp_path / "m"), check_hashes=True)


@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_half_of_a_pair_is_damage(corpus: Path, kind: str) -> None:
    """Not "no such thing": the other half is there."""
    corpus.with_name(f"{corpus.name}.{kind}").unlink()
    with pytest.raises(DataError, match=kind):
        describe(str(corpus))


def test_checkpoint_says_what_it_holds(run_dir: Path) -> None:
    """Step, ledger, sizes and the chain of checkpoints it came from."""
    facts = describe(str(run_dir / "checkpoints" / "step_00000020"))
    assert (facts["step"], facts["tokens_total"], facts["layout"]) == (20, 640, "tp2_pp1_dp1")
    assert facts["probe_loss_nats_per_token"] == 3.25
    assert facts["architecture"] == ARCH.to_dict()
    assert facts["files"] == 2
    assert facts["bytes"] == 3 + (run_dir / "checkpoints/step_00000020/state.json").stat().st_size
    assert {name: (entry["share"], entry["tokens"]) for name, entry in facts["ledger"].items()} == {
        "law": (0.6, 24),
        "web": (0.4, 24),
    }
    base = run_dir.parent / "base"
    assert facts["lineage"] == [f"{base}: step 0, 0 tokens"]
    (base / "manifest.json").unlink()
    assert "damaged" in describe(str(run_dir / "checkpoints" / "step_00000020"))["lineage"][0]


def test_lineage_ends_where_a_parent_is_gone_or_repeats(tmp_path: Path) -> None:
    """Pruned parents are usual; a ring cannot be, but must not hang."""
    child = save_checkpoint(tmp_path / "child", str(tmp_path / "pruned"), step=10)
    assert describe(str(child))["lineage"] == [f"{tmp_path / 'pruned'}: no longer there"]
    ring = save_checkpoint(tmp_path / "ring", str(tmp_path / "ring"), step=10)
    assert len(describe(str(ring))["lineage"]) == 1


def test_damaged_checkpoint_is_one_error(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of another size than recorded: one line, exit code 2."""
    checkpoint = run_dir / "checkpoints" / "step_00000020"
    (checkpoint / layout.SHARDS / "a.distcp").write_bytes(b"ab")
    assert main(["inspect", str(checkpoint)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.distcp has 2 bytes, expected 3" in line


def test_run_lists_whole_and_damaged_checkpoints(run_dir: Path) -> None:
    """The damaged one stays in the list, with the reason; the last metrics are those of step 21."""
    (run_dir / "checkpoints" / "step_00000020" / layout.SHARDS / "a.distcp").unlink()
    facts = describe(str(run_dir))
    first, second = facts["checkpoints"]
    assert (first["step"], first["tokens"], first["state"]) == (10, 320, "complete")
    assert second["step"] == 20
    assert second["state"].startswith("damaged: ") and "a.distcp is missing" in second["state"]
    assert facts["metrics"]["last_step"] == {"step": 21, "loss_nats_per_token": 2.5}
    assert facts["metrics"]["last_eval"]["valid/law/loss_nats_per_token"] == 4.0
    assert facts["config"]["steps"] == 30
    assert facts["config"]["token_shares"] == {"law": 0.6, "web": 0.4}


def test_run_with_damaged_parts_is_still_described(run_dir: Path) -> None:
    """Configuration and metrics that cannot be read are said where they would stand."""
    (run_dir / "config.yaml").write_text("run: {dri: x}\n")
    (run_dir / "metrics.jsonl").write_text("no json\n")
    facts = describe(str(run_dir))
    assert "unknown key run.dri" in facts["config"]
    assert "metrics.jsonl:1" in facts["metrics"]
    (run_dir / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json is damaged"):
        describe(str(run_dir))


def test_anything_else_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a traceback nor an empty answer."""
    for words in (
        [str(tmp_path)],
        [str(tmp_path / "nothing")],
        [str(tmp_path), "--verify"],
        [str(tmp_path), "--document", "0"],
    ):
        assert main(["inspect", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "give" in line and words[0] in line


def test_json_and_text_say_the_same(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one object; the text has every name and every number of it."""
    checkpoint = str(run_dir / "checkpoints" / "step_00000010")
    assert main(["inspect", checkpoint, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == describe(checkpoint)
    assert main(["inspect", checkpoint]) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == text_lines(facts)
    for name in (*facts, *facts["architecture"], *facts["ledger"]):
        assert name in text
    assert f"{facts['parameters']:,}" in text


def test_inspect_needs_no_torch(run_dir: Path) -> None:
    """It answers in an instant on a login node."""
    program = (
        "import sys; from cptron.cli import main; main(sys.argv[1:]);"
        "assert not {'torch', 'megatron', 'transformers'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", program, "inspect", str(run_dir)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step_" not in done.stderr


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 6), (8, 1)]),
    head_dim=st.sampled_from([4, 6]),
    hidden=st.sampled_from([24, 48]),
    ffn=st.integers(1, 40),
    vocab=st.integers(3, 60),
    tied=st.booleans(),
)
def test_parameters_equal_transformers(
    layers: int, heads: tuple[int, int], head_dim: int, hidden: int, ffn: int, vocab: int, tied: bool
) -> None:
    """`transformers` counts the parameters of the model that it builds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head_dim,
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    arch = replace(
        ARCH,
        num_layers=layers,
        num_attention_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        vocab_size=vocab,
        tied_embeddings=tied,
    )
    assert num_parameters(arch) == sum(parameter.numel() for parameter in model.parameters())


NAMES = st.text("abc_/", min_size=1)
VALUES = st.integers() | st.floats() | st.booleans() | st.none() | st.text() | st.lists(st.text())


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(NAMES, st.recursive(VALUES, lambda inner: st.dictionaries(NAMES, inner))))
def test_no_value_breaks_the_lines_of_the_text(facts: dict[str, Any]) -> None:
    """Names of files and messages of damage come from anywhere; every name still starts a line of its own."""
    lines = text_lines(facts)
    assert all(len(line.splitlines()) <= 1 for line in lines)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(facts)


def test_every_error_is_for_the_user(tmp_path: Path) -> None:
    """Files with the right names and wrong contents never give a traceback."""
    for name in ("x.idx", "x.bin", "x.manifest.json", "manifest.json", "run.json"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_bytes(b"\x00\xff{}")
        with pytest.raises(CptronError):
            describe(str(folder / "x" if name.startswith("x") else folder))


def test_an_empty_part_is_described(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part may be smaller than a record; without a manifest, nothing tells it from a run that was cut short."""
    words = ["--input", str(tmp_path / "c.jsonl"), "--tokenizer-model", str(tmp_path / "tokenizer")]
    words += ["--output-prefix", str(tmp_path / "p"), "--partitions", "1000", "--partition", "500"]
    assert preprocess(words) == 0
    prefix = tmp_path / "p_part-00500-of-01000_text_document"
    facts = describe(str(prefix), tokenizer=str(tmp_path / "tokenizer"), check_hashes=True)
    assert (facts["documents"], facts["tokens"], facts["header"]["sequences"]) == (0, 0, 0)
    assert facts["partition"] == "500/1000" and facts["hashes"] == "verified" and facts["begin_with"] == []
    assert not {"length_histogram", "document_length_tokens", "share_of_documents_longer_than"} & facts.keys()
    capsys.readouterr()
    assert main(["inspect", str(prefix)]) == 0 and "500/1000" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"document 0 of .* does not exist"):
        describe(str(prefix), document=0)
    manifest_path(prefix).unlink()
    with pytest.raises(DataError, match="holds 0 tokens"):
        describe(str(prefix))


def test_a_file_of_the_pair_names_both(corpus: Path) -> None:
    """As the shell completes it; a prefix that ends so itself comes first."""
    for suffix in ("bin", "idx"):
        assert describe(f"{corpus}.{suffix}") == describe(str(corpus))
        corpus.with_name(f"{corpus.name}.{suffix}.bin").touch()
        with pytest.raises(DataError, match=rf"{suffix}\.idx"):
            describe(f"{corpus}.{suffix}")
