"""Distillation from the starting weights: the same under every layout, and cached answers are the model's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rank_calls
import torch
from test_regularise import LAYOUTS, assert_same, config_file, run
from tokens_world import write_known

from cptron.data.content import open_content
from cptron.data.source import TokenSource
from cptron.regularise.taught_file import Taught, bin_file, open_taught, record_file
from cptron.regularise.teach import Windows
from cptron.runtime.topology import Layout
from cptron.testing import run_ranks

__all__ = ["config_file"]

LAYOUTS["cp2"] = (2, Layout(cp=2))
DISTILL = ["data.sources.general.role=replay", "regularise.distill.weight=2.0", "regularise.distill.top_k=8"]
SEQ = 32


@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param(("tp2",), id="tp2", marks=pytest.mark.core_ranks),
        pytest.param(("vpp2", "cp2"), id="vpp2 and cp2", marks=pytest.mark.more),
    ],
)
def test_live_teacher_under_layouts(
    layouts: tuple[str, ...], config_file: Path, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """At the start nothing is to be kept; then the pull lowers the divergence of the replay rows, and is the same where
    the vocabulary, the stages or the sequences are cut."""
    base, tokens = checkpoints["tied"], np.repeat(tokens_NGS1[:1], 4, axis=0)
    (one,) = run(config_file, base, tokens, DISTILL)
    (free,) = run(config_file, base, tokens, [*DISTILL[:1], "regularise.distill.weight=1.0e-9", DISTILL[2]])
    for outcome in (one, free):
        assert outcome.divergences[0] == pytest.approx([0.0, 0.0], abs=1e-4)
        assert all(nats[0] == 0.0 for nats in outcome.divergences), "the new source is not asked about"
    assert 0.01 < one.divergences[-1][1] < 0.8 * free.divergences[-1][1]
    for layout in layouts:
        found = run(config_file, base, tokens, DISTILL, layout)
        assert_same(found, one)
        np.testing.assert_allclose(found[0].divergences, one.divergences, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files of some documents, short and long."""
    prefix = tmp_path_factory.mktemp("replay") / "old"
    draw = np.random.default_rng(2)
    documents = [draw.integers(0, 300, size).astype(np.int32) for size in (9, 40, 1, 70, 20, 5)]
    write_known(prefix, documents, None, dtype="int32")
    return prefix


def teach(world_size: int, checkpoint: Path, replay: Path, *words: str) -> Taught:
    """`cptron teach` on so many ranks, and the file opened and verified."""
    arguments = ["teach", str(checkpoint), "--data", str(replay), "--top-k", "5", "--seq-length", str(SEQ)]
    for outcome in run_ranks(rank_calls.command, world_size, [*arguments, "--device", "cpu", *words]):
        assert not outcome.error, outcome.error
    return open_taught(str(replay), TokenSource("old", str(replay), SEQ, 1).identity, 4, verify=True)


def test_cached_answers_are_those_of_transformers_under_every_layout(
    untied: Path, checkpoints: dict[str, Path], replay: Path
) -> None:
    """Ids and probabilities at each token of a document that a window holds whole."""
    from transformers import AutoModelForCausalLM

    found = teach(1, checkpoints["untied"], replay)
    rows = np.array(found.rows)
    model = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.float32)
    document = open_content(str(replay)).tokens.read(0, 0, 9).astype(np.int64)
    with torch.no_grad():
        chances = model(torch.from_numpy(document)[None]).logits[0].softmax(-1).topk(5)
    np.testing.assert_array_equal(rows["ids"][:9], chances.indices.numpy())
    np.testing.assert_allclose(np.exp(rows["logs"][:9].astype(np.float32)), chances.values.numpy(), rtol=3e-3)
    for world_size, words in ((2, ["--tp", "2"]), (2, ["--pp", "2"]), (2, ["--cp", "2"]), (2, [])):
        other = teach(world_size, checkpoints["untied"], replay, *words, "--micro-batch-size", "2")
        assert (other.rows["ids"] == rows["ids"]).mean() > 0.99
        np.testing.assert_allclose(
            other.rows["logs"].astype(np.float32), rows["logs"].astype(np.float32), atol=2e-2
        )


def test_a_token_that_is_none_stops_every_rank(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """It is in the windows of the second copy of the model only; the first does not wait for ever."""
    prefix = tmp_path / "damaged"
    ids = np.arange(8 * SEQ, dtype=np.int32) % 300
    ids[5 * SEQ] = 4000
    write_known(prefix, [ids], None, dtype="int32")
    arguments = ["teach", str(checkpoints["untied"]), "--data", str(prefix), "--seq-length", str(SEQ)]
    for outcome in run_ranks(rank_calls.command, 2, [*arguments, "--device", "cpu", "--top-k", "5"]):
        assert outcome.error.startswith("DataError") and "4000" in outcome.error
    assert not record_file(str(prefix)).exists()


def test_the_answers_have_their_place_before_they_are_written(replay: Path, tmp_path: Path) -> None:
    """A full disk is found at the start, with one line, and not in the middle by a signal."""
    prefix = tmp_path / "old"
    for end in (".bin", ".idx", ".manifest.json"):
        shutil.copy(f"{replay}{end}", f"{prefix}{end}")
    windows = Windows(str(prefix), SEQ, 300, 200)
    windows.make_file(200)
    made = bin_file(str(prefix)).stat()
    assert made.st_size == windows.num_tokens * 200 * 6
    assert made.st_blocks * 512 >= made.st_size


@pytest.mark.parametrize("packing", ["joined", "best_fit"])
def test_cached_answers_are_found_at_a_samples_tokens(packing: str, replay: Path) -> None:
    """The places of a sample's input tokens hold these tokens, over two epochs."""
    assert all(run_ranks(rank_of_places, 1, str(replay), packing))


def rank_of_places(replay: str, packing: str) -> bool:
    """On a rank, because it needs torch's engine: compare tokens at the places with the sample's own."""
    from cptron.regularise.taught_file import TaughtRecord, starts_of
    from cptron.regularise.teacher import CachedTeacher
    from cptron.tokens.indexed import IndexedTokens

    source = TokenSource("old", replay, SEQ, 1, packing=packing)  # type: ignore[arg-type]
    tokens = IndexedTokens(replay)
    stream = np.concatenate([tokens.read(d, 0, int(n)) for d, n in enumerate(tokens.lengths_tokens)])
    record = TaughtRecord(
        top_k=1,
        tokens=len(stream),
        seq_length=SEQ,
        checkpoint="",
        weights_fingerprint="",
        data="",
        bytes=0,
        sha256="",
    )
    taught = Taught(Path(replay), record, np.zeros(0), starts_of(tokens))
    teacher = CachedTeacher([source], {0: taught}, 1.0, 1, torch.device("cpu"), packed=packing == "best_fit")
    for cursor in range(2 * source.samples_per_epoch):
        places_S = teacher._places(0, cursor)
        inputs_S, _, mask_S = source.sample(cursor)
        count = int(np.flatnonzero(mask_S).max()) + 1
        if not (len(places_S) >= count and (stream[places_S][:count] == inputs_S[:count]).all()):
            return False
    return True
