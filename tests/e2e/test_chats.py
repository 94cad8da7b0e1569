"""Chats with a loss mask in a real run: what is trained on, and nothing else, is in the loss and in the accounts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import assert_close, steps
from tiny_world import ONE, SHORT, Layout, World

from cptron.config.stored import read_stored
from cptron.data.source import TokenSource
from cptron.tokens.index_layout import loss_mask_path
from cptron.tokens.indexed import IndexedTokens
from cptron.tokens.preprocess import main as preprocess

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SEQ, LONG = 32, 64


@pytest.fixture(scope="module")
def chats(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of 80 chats of one to three turns, some with a system message; the assistant's words are learned."""
    root = tmp_path_factory.mktemp("chats")
    for path in world.hugging_face.glob("tokenizer*"):
        shutil.copy(path, root / path.name)
    (root / "chat_template.jinja").write_text(TEMPLATE)
    draw = np.random.default_rng(5)
    words = ["ledger", "index", "winter", "bird", "commit", "été"]
    with (root / "chats.jsonl").open("w") as file:
        for number in range(80):
            texts = [" ".join(draw.choice(words, draw.integers(1, 15))) for _ in range(2 * (1 + number % 3))]
            messages = [
                {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)
            ]
            system = [{"role": "system", "content": "Be brief, be kind."}] if number % 4 == 0 else []
            file.write(json.dumps({"messages": system + messages}) + "\n")
    arguments = ["--input", str(root / "chats.jsonl"), "--tokenizer-model", str(root), "--chat"]
    assert (
        preprocess(
            [*arguments, "--loss-mask", "assistant", "--output-prefix", str(root / "c"), "--workers", "1"]
        )
        == 0
    )
    return root / "c_messages_document"


def words_of(chats: Path) -> list[str]:
    """Overrides: chats are a source, and more of it in the second stage, in longer samples."""
    return [
        *SHORT,
        "eval.every_steps=0",
        "attention.document_mask=false",
        "data.sources.general.role=replay",
        f"data.sources.general.path={chats}",
        "data.stages=[{until_tokens: 700, shares: {domain: 3, general: 1}}, "
        f"{{shares: {{domain: 1, general: 1}}, seq_length: {LONG}, global_batch_size: 4}}]",
    ]


@pytest.fixture(scope="module")
def whole(world: World, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one rank."""
    return world.trained(tmp_path_factory.mktemp("runs") / "one", ONE, *words_of(chats))


def samples(source: TokenSource, first: int, last: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids of some samples with the last label, and which of them are learned: from the index and the files alone."""
    files = IndexedTokens(source.prefix)
    path = loss_mask_path(source.prefix)
    mask = np.fromfile(path, np.uint8) if path.exists() else np.ones(files.num_tokens, np.uint8)
    starts = np.cumsum([0, *(len(files.read(n)) for n in range(files.num_documents))])
    found = []
    for cursor in range(first, last):
        spans = source.spans(cursor)
        ids = [files.read(s.document)[s.offset : s.offset + s.length] for s in spans]
        learned = [mask[starts[s.document] + s.offset :][: s.length] for s in spans]
        found.append((np.concatenate(ids), np.concatenate(learned)))
    return found


def test_accounts_are_those_of_the_mask(whole: Path, chats: Path, world: World) -> None:
    """Tokens trained on: the learned labels of every sample drawn, over both lengths, and of no other."""
    last = steps(whole)[-1]
    state = json.loads((whole / "checkpoints/step_00000006/state.json").read_text())
    entries = state["ledger"]["entries"]
    expected = 0
    for seq, account in ((SEQ, "general"), (LONG, f"general.length_{LONG}")):
        drawn = samples(
            TokenSource("general", str(chats), seq, seed_of(whole)), 0, entries[account]["cursor"]
        )
        assert len(drawn) > 3
        expected += sum(int(learned[1:].sum()) for _, learned in drawn)
    assert last["trained/general"] == state["trained"]["general"]["tokens"] == expected
    assert 0.2 * last["tokens/general"] < expected < 0.8 * last["tokens/general"]
    assert last["trained/domain"] == last["tokens/domain"]
    assert last["tokens_total"] == last["trained/general"] + last["trained/domain"]
    assert [r["trained/general"] for r in steps(whole)] == sorted(r["trained/general"] for r in steps(whole))


def seed_of(run: Path) -> int:
    """`run.seed` of a run."""
    return int(read_stored(run)["run"]["seed"])


def test_the_loss_is_that_of_what_the_assistant_says(whole: Path, chats: Path, world: World) -> None:
    """Of the first step, against transformers on the files' own mask."""
    import torch
    from transformers import AutoModelForCausalLM

    first = steps(whole)[0]
    model = AutoModelForCausalLM.from_pretrained(world.hugging_face, dtype=torch.float32)
    source = TokenSource("general", str(chats), SEQ, seed_of(whole))
    total, count = 0.0, 0
    for ids, learned in samples(source, 0, int(first["samples/general"])):
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(
                model(tokens[:, :-1]).logits[0].double(), tokens[0, 1:], reduction="none"
            )
        total += float((losses * torch.from_numpy(learned[1:].astype(np.float64))).sum())
        count += int(learned[1:].sum())
    assert count and count == first["trained/general"]
    assert first["loss_nats_per_token/general"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "layout",
    [Layout(2, cp=2), pytest.param(Layout(4, tp=2, pp=2), marks=pytest.mark.more)],
    ids=str,
)
def test_masks_under_every_layout(
    layout: Layout, world: World, whole: Path, chats: Path, tmp_path: Path
) -> None:
    """Where a sequence is cut over ranks and stages of the pipeline: the same losses, the same tokens."""
    run: Any = world.trained(tmp_path / "run", layout, *words_of(chats))
    assert_close(steps(run), steps(whole))
    assert [r["trained/general"] for r in steps(run)] == [r["trained/general"] for r in steps(whole)]
