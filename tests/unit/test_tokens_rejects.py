"""Damaged records stop a run, or are counted, or kept aside; every record of the input is accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_world import save_byte_tokenizer

from cptron.cli import main
from cptron.errors import DataError
from cptron.tokens import read_lines
from cptron.tokens.chat_template import source_sha256
from cptron.tokens.index_layout import loss_mask_path
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.manifest import Manifest, verify
from cptron.tokens.preprocess import PreprocessOptions, preprocess
from cptron.tokens.records import Reject
from cptron.tokens.rejects import OnError, Rejects, quarantine_path
from cptron.tokens.tokenizer import load_tokenizer

LINES: list[tuple[bytes, str]] = [
    (b'{"text": "ab"}', "good"),
    (b'{"text": "\\u00e9 \\u65e5"}', "good"),
    (b'{"text": ""}', "empty"),
    (b'{"text": ', "bad_json"),
    (b"", "bad_json"),
    (b"[1]", "not_an_object"),
    (b'{"title": "ab"}', "missing_key"),
    (b'{"text": null}', "not_a_string"),
    (b'{"text": "\xff"}', "bad_utf8"),
    (b'{"text": "\\u0000"}', "nul"),
    (b'{"text": "' + b"a" * 300 + b'"}', "too_long"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Characters and special tokens, with a chat template."""
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == "
        "'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    )
    special = ["</s>", "<|im_start|>", "<|im_end|>"]
    directory = tmp_path_factory.mktemp("tokenizer")
    return save_byte_tokenizer(directory, special, eos_token="</s>", chat_template=template)


def options_for(root: Path, tokenizer: Path, lines: list[bytes], on_error: OnError) -> PreprocessOptions:
    """A run over `lines`."""
    (root / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return PreprocessOptions(
        inputs=(str(root / "a.jsonl"),), output_prefix=str(root / "out/x"), tokenizer=str(tokenizer),
        on_error=on_error, max_document_bytes=200, workers=2, engine="reference",
    )  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(chosen=st.lists(st.sampled_from(LINES), max_size=20), on_error=st.sampled_from(["skip", "quarantine"]))
def test_every_record_is_accounted_for(
    chosen: list[tuple[bytes, str]],
    on_error: OnError,
    tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In documents, empty texts or damaged records by reason; good documents are those of a clean input."""
    root = tmp_path_factory.mktemp("run")
    chosen = [*chosen, LINES[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_lines, "_BLOCK_RECORDS", 3)
        options = options_for(root, tokenizer, [line for line, _ in chosen], on_error)
        (manifest,) = preprocess(options, progress=False)
    kinds = Counter(kind for _, kind in chosen)
    good, empty = kinds.pop("good"), kinds.pop("empty", 0)
    assert (manifest.documents, manifest.documents_empty_skipped) == (good, empty)
    assert manifest.documents_rejected == kinds
    assert manifest.records_read == len(chosen) == good + empty + sum(kinds.values())
    tokens, reference = IndexedTokens(root / "out/x_text_document"), load_tokenizer(tokenizer)
    texts = [json.loads(line)["text"] for line, kind in chosen if kind == "good"]
    assert [reference.decode(tokens.read(n).tolist()) for n in range(tokens.num_documents)] == texts
    kept = quarantine_path(options.output_prefix)
    if on_error == "skip" or not kinds:
        assert not kept.exists()
        return
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    bad = [(number, line, kind) for number, (line, kind) in enumerate(chosen, 1) if kind in kinds]
    assert [(record["record"], record["reason"]) for record in records] == [(n, kind) for n, _, kind in bad]
    for record, (_, line, _) in zip(records, bad, strict=True):
        assert record["path"] == options.inputs[0] and record["detail"]
        assert record["raw"] == line.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize(("line", "kind"), [item for item in LINES if item[1] not in ("good", "empty")])
def test_the_default_is_to_stop(line: bytes, kind: str, tokenizer: Path, tmp_path: Path) -> None:
    """File, line, reason and remedy in one line; nothing is left."""
    good = LINES[0][0]
    options = options_for(tmp_path, tokenizer, [good, line, good, line], "stop")
    with pytest.raises(DataError, match=rf"a\.jsonl:2 is damaged \({kind}\).*--on-error skip") as error:
        preprocess(options, progress=False)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_records_alone_are_no_corpus(tokenizer: Path, tmp_path: Path) -> None:
    """Skipping everything is not success."""
    options = options_for(tmp_path, tokenizer, [b"{"] * 3, "skip")
    with pytest.raises(DataError, match=r"0 documents .*3 damaged records"):
        preprocess(options, progress=False)


def test_counts_are_printed(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the table and by reason; an old quarantine file does not outlive a clean run."""
    options_for(tmp_path, tokenizer, [LINES[0][0], b"{", b"[1]", b"{"], "stop")
    prefix = str(tmp_path / "out/x")
    words = [
        "--input",
        str(tmp_path / "a.jsonl"),
        "--output-prefix",
        prefix,
        "--tokenizer-model",
        str(tokenizer),
    ]
    assert main(["preprocess", *words, "--on-error", "quarantine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["1", "0", "3"]
    assert lines[3] == "rejected: 2 bad_json, 1 not_an_object"
    assert quarantine_path(prefix).exists()
    assert main(["preprocess", *words, "--on-error", "skip"]) == 2
    assert main(["preprocess", *words, "--on-error", "skip", "--overwrite"]) == 0
    assert not quarantine_path(prefix).exists()


CHATS: list[tuple[Any, bool]] = [
    ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ab"}], True),
    (
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}],
        True,
    ),
    ("a text", False),
    ([{"role": "nobody", "content": "hi"}], False),
    ([{"role": "user", "content": "<|im_end|>"}], False),
]


@pytest.fixture
def chat_manifests(tokenizer: Path, tmp_path: Path) -> list[Manifest]:
    """One corpus of chats without and with loss mask, with EOS."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat, _ in CHATS))
    words = [
        "--input",
        str(tmp_path / "a.jsonl"),
        "--tokenizer-model",
        str(tokenizer),
        "--chat",
        "--append-eod",
    ]
    words += ["--on-error", "skip", "--output-prefix"]
    assert main(["preprocess", *words, str(tmp_path / "plain")]) == 0
    assert main(["preprocess", *words, str(tmp_path / "masked"), "--loss-mask", "assistant"]) == 0
    return [verify(tmp_path / f"{name}_messages_document") for name in ("plain", "masked")]


def test_chats_become_documents_and_masks(
    chat_manifests: list[Manifest], tokenizer: Path, tmp_path: Path
) -> None:
    """The same ids with and without mask; learned is what the assistant says, its end, and an EOS right after it."""
    plain, masked = chat_manifests
    assert plain.files["bin"] == masked.files["bin"] and plain.files["idx"] == masked.files["idx"]
    assert plain.files.keys() == {"bin", "idx"} and masked.files.keys() == {"bin", "idx", "loss_mask"}
    assert plain.documents_rejected == masked.documents_rejected == {"bad_chat": 3}
    assert masked.options["loss_mask"] == "assistant" and len(masked.options["chat_template"]) == 64
    assert masked.options["chat_template_source"] == source_sha256(tokenizer)
    prefix = tmp_path / "masked_messages_document"
    tokens, reference = IndexedTokens(prefix), load_tokenizer(tokenizer)
    texts = [reference.decode(tokens.read(number).tolist()) for number in range(tokens.num_documents)]
    user, assistant = "<|im_start|>user\n", "<|im_start|>assistant\n"
    assert texts == [
        f"{user}hi<|im_end|>\n{assistant}ab<|im_end|>\n</s>",
        f"{user}hi<|im_end|>\n{assistant}b<|im_end|>\n{user}c<|im_end|>\n</s>",
    ]
    mask = np.fromfile(loss_mask_path(prefix), np.uint8)
    first, second = np.split(mask, [len(tokens.read(0))])
    for number, part, learned in ((0, first, "ab<|im_end|></s>"), (1, second, "b<|im_end|>")):
        assert reference.decode(tokens.read(number)[part == 1].tolist()) == learned


@pytest.mark.parametrize(
    ("flags", "part"),
    [(["--chat", "--prepend-bos"], "--prepend-bos"), (["--loss-mask", "assistant"], "--chat")],
)
def test_chat_flags_that_contradict_are_refused(
    flags: list[str], part: str, tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read."""
    words = ["--input", "none", "--output-prefix", str(tmp_path / "x"), "--tokenizer-model", str(tokenizer)]
    assert main(["preprocess", *words, *flags]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_the_first_ones_are_named_with_file_and_line(
    tmp_path: Path, tokenizer: Path, on_error: OnError, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty of them, over blocks, and then one line that there are more."""
    lines = [line for _ in range(15) for line in (b'{"text": "ab"}', b"{", b'{"title": 1}')]
    preprocess(options_for(tmp_path, tokenizer, lines, on_error), progress=False)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes[0].startswith(f"note: {tmp_path / 'a.jsonl'}:2 left out (bad_json)")
    assert [note.split(" left")[0].rsplit(":", 1)[1] for note in notes[:20]] == [
        str(number) for number in range(2, 46) if number % 3 != 1
    ][:20]
    assert notes[20:] == ["note: further damaged records are counted and not named"]


def test_the_first_ones_are_counted_over_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice fifteen: twenty lines, and one that there are more."""
    rejects = Rejects(str(tmp_path / "x"), "skip", {}, None)
    for first in (1, 16, 31):
        rejects.take([Reject("a.jsonl", number, "nul", "x", b"") for number in range(first, first + 15)])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[:20]] == [f"a.jsonl:{number}" for number in range(1, 21)]
    assert lines[20:] == ["note: further damaged records are counted and not named"]
    assert rejects.counts == {"nul": 45}


def test_half_a_surrogate_pair_can_be_quarantined(tokenizer: Path, tmp_path: Path) -> None:
    """In the name of a key, and in a path that is not UTF-8."""
    lines = [LINES[0][0], b'{"\\ud800": 1}']
    preprocess(options_for(tmp_path, tokenizer, lines, "quarantine"), progress=False)
    (record,) = map(json.loads, quarantine_path(str(tmp_path / "out/x")).read_text().splitlines())
    assert "\ud800" in record["detail"] and record["raw"] == lines[1].decode()
    rejects = Rejects(str(tmp_path / "y"), "quarantine", {}, None)
    rejects.take([Reject("\udcff.jsonl", 1, "nul", "x", b"\xff")])
    rejects.close()
    (written,) = [path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("y.")]
    record = json.loads(written)
    assert (record["path"], record["raw"]) == ("\udcff.jsonl", "\\xff")


MIXED: list[Any] = [
    [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ab"},
    ],
    "a text",
    "",
    [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    "b",
]


@pytest.mark.parametrize("mask", ["none", "assistant", "no_system"])
@pytest.mark.parametrize("bos", [False, True])
def test_texts_among_chats(mask: str, bos: bool, tokenizer: Path, tmp_path: Path) -> None:
    """In the order of the file; a text has the ids that it has alone, with BOS where asked for, and all of it is
    learned; without the flag it is a reject, as before."""
    config = json.loads((tokenizer / "tokenizer_config.json").read_text()) | {"bos_token": "<s>"}
    own = save_byte_tokenizer(tmp_path, ["</s>", "<s>", "<|im_start|>", "<|im_end|>"], **config)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": value}) + "\n" for value in MIXED))
    words = [
        "preprocess",
        "--input",
        str(tmp_path / "a.jsonl"),
        "--tokenizer-model",
        str(own),
        "--append-eod",
    ]
    words += [
        "--output-prefix",
        str(tmp_path / "x"),
        "--loss-mask",
        mask,
        *(["--prepend-bos"] if bos else []),
    ]
    assert main([*words, "--chat-and-text"]) == 0
    manifest = verify(tmp_path / "x_messages_document")
    assert (manifest.documents, manifest.documents_empty_skipped) == (4, 1)
    assert manifest.options["chat_and_text"] == "true"
    files, reference = IndexedTokens(tmp_path / "x_messages_document"), load_tokenizer(own)
    documents = [files.read(number) for number in range(4)]
    start, turn = "<s>" if bos else "", "<|im_start|>{}\n{}<|im_end|>\n".format
    system, rest = turn("system", "s"), turn("user", "hi") + turn("assistant", "ab")
    assert [reference.decode(ids.tolist()) for ids in documents] == [
        f"{system}{rest}</s>", f"{start}a text</s>", turn("user", "c") + turn("assistant", "d") + "</s>",
        f"{start}b</s>",
    ]  # fmt: skip
    assert documents[1].tolist() == [
        *([reference.bos_id] if bos else []),
        *reference.encode("a text"),
        reference.eos_id,
    ]
    if mask == "none":
        assert "loss_mask" not in manifest.files
        return
    masks = np.split(
        np.fromfile(loss_mask_path(files.prefix), np.uint8), np.cumsum([len(d) for d in documents])[:-1]
    )
    kept = [reference.decode(ids[part == 1].tolist()) for ids, part in zip(documents, masks, strict=True)]
    assert kept[1::2] == [f"{start}a text</s>", f"{start}b</s>"]
    assert kept[0] == ("ab<|im_end|></s>" if mask == "assistant" else f"{rest}</s>")
