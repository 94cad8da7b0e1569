"""Fisher information by the engine under every layout, against plain autograd of a transformers model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rank_calls
import torch
from tokens_world import write_known

from cptron.checkpoint import layout as checkpoint_layout
from cptron.checkpoint.reader import ShardReader
from cptron.convert.source import ShardSource
from cptron.data.source import TokenSource
from cptron.model.families import family_of
from cptron.model.vocab_loss import Vocabulary, weighted_losses
from cptron.regularise.fisher_file import SHARDS, FisherRecord, read_record
from cptron.testing import run_ranks

SEQ, SEQUENCES, SEED = 32, 5, 11
LAYOUTS = {
    "one": (1, []),
    "dp2": (2, []),
    "pp2": (2, ["--pp", "2"]),
    "vpp2": (2, ["--pp", "2", "--virtual-stages", "2"]),
    "cp2": (2, ["--cp", "2"]),
    "tp2_pp2": (4, ["--tp", "2", "--pp", "2"]),
}
CASES = {
    "untied": ("one", "dp2", "pp2"),
    "tied": ("vpp2", "cp2", "tp2_pp2"),
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One long document, so that a sample is a plain sequence to transformers too."""
    prefix = tmp_path_factory.mktemp("tokens") / "old"
    ids = np.random.default_rng(5).integers(0, 300, 8 * SEQ + 1).astype(np.int32)
    write_known(prefix, [ids], None, dtype="int32")
    return prefix


def fisher(world_size: int, checkpoint: Path, output: Path, *words: str | Path) -> FisherRecord:
    """`cptron fisher` on so many ranks."""
    arguments = ["fisher", checkpoint, "--output", output, "--device", "cpu", "--seed", SEED, *words]
    for outcome in run_ranks(rank_calls.command, world_size, [str(word) for word in arguments]):
        assert not outcome.error, outcome.error
    return read_record(output)


def by_name(directory: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
    """What is stored, by the names of transformers; compared with the recorded checksums as it is read."""
    arch = checkpoint_layout.read_manifest(checkpoint).arch
    source = ShardSource(
        ShardReader(directory / SHARDS), family_of(arch.family), arch, read_record(directory).checksums
    )
    return {name: source.read(name).clone() for name in source.names}


def by_autograd(
    model_directory: Path, tokens: Path, sequences: int = SEQUENCES, batch_size: int = 1
) -> dict[str, torch.Tensor]:
    """Mean over the sequences of the squared gradient of a sequence's summed loss, or of a batch's: transformers and
    torch alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    source = TokenSource("old", str(tokens), SEQ, SEED)
    sums = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    for first in range(0, sequences, batch_size):
        model.zero_grad()
        for cursor in range(first, first + batch_size):
            inputs_S, labels_S, _ = source.sample(cursor)
            logits_SV = model(torch.from_numpy(inputs_S)[None]).logits[0]
            labels = torch.from_numpy(labels_S)
            torch.nn.functional.cross_entropy(logits_SV, labels, reduction="sum").backward()
        for name, param in model.named_parameters():
            sums[name] += param.grad.square()  # type: ignore[union-attr]
    return {name: total / sequences for name, total in sums.items()}


@pytest.mark.parametrize(
    "kind",
    [pytest.param("untied", marks=pytest.mark.more), "tied"],
)
def test_equals_autograd_under_every_layout(
    kind: str, request: pytest.FixtureRequest, checkpoints: dict[str, Path], tokens: Path, tmp_path: Path
) -> None:
    """Each weight within 1e-4 of plain autograd's, relative to its own size or the mean; the record counts all."""
    expected = by_autograd(request.getfixturevalue(kind), tokens)
    mean = torch.cat([value.flatten() for value in expected.values()]).double().mean()
    for name in CASES[kind]:
        world_size, cut = LAYOUTS[name]
        words = ["--data", tokens, "--sequences", SEQUENCES, "--seq-length", SEQ, *cut]
        record = fisher(world_size, checkpoints[kind], tmp_path / name, *map(str, words))
        assert record.mean == pytest.approx(float(mean), rel=1e-4)
        assert record.elements == sum(value.numel() for value in expected.values())
        assert (record.sequences, record.tokens, record.estimator) == (
            SEQUENCES,
            SEQUENCES * SEQ,
            "sequences",
        )
        for parameter, value in by_name(tmp_path / name, checkpoints[kind]).items():
            reference = (expected[parameter] / mean).clamp(max=1000).float()
            torch.testing.assert_close(value, reference, rtol=1e-3, atol=1e-4, msg=f"{name} {parameter}")


@pytest.mark.more
def test_bf16_under_a_cut(checkpoints: dict[str, Path], tokens: Path, tmp_path: Path) -> None:
    """Gradients of bf16 weights are summed and squared in fp32: as one rank's, and near those of fp32."""
    words = ["--data", str(tokens), "--sequences", str(SEQUENCES), "--seq-length", str(SEQ)]
    cases = {
        "fp32": (1, []),
        "bf16": (1, ["--precision", "bf16"]),
        "cut": (4, ["--precision", "bf16", "--tp", "2", "--pp", "2"]),
    }
    means = {
        name: fisher(world_size, checkpoints["tied"], tmp_path / name, *words, *more).mean
        for name, (world_size, more) in cases.items()
    }
    assert means["bf16"] != means["fp32"]
    assert means["bf16"] == pytest.approx(means["fp32"], rel=0.1)
    assert means["cut"] == pytest.approx(means["bf16"], rel=0.05)
    one, cut = (by_name(tmp_path / name, checkpoints["tied"]) for name in ("bf16", "cut"))
    for name, value in one.items():
        assert float(cut[name].double().mean()) == pytest.approx(float(value.double().mean()), rel=0.15), name


def test_a_token_that_is_none_stops_every_rank(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """One data parallel rank meets it; the other does not wait for ever."""
    ids = np.arange(2 * SEQ + 1, dtype=np.int32) % 300
    ids[5] = 4000
    write_known(tmp_path / "damaged", [ids], None, dtype="int32")
    words = ["--data", tmp_path / "damaged", "--sequences", 2, "--seq-length", SEQ, "--device", "cpu"]
    arguments = ["fisher", checkpoints["untied"], "--output", tmp_path / "f", *words]
    for outcome in run_ranks(rank_calls.command, 2, [str(word) for word in arguments]):
        assert outcome.error.startswith("DataError") and "4000" in outcome.error


def test_softmax_regression_in_closed_form() -> None:
    """The information of logits W x is the mean of (sum of (softmax - one at the label) x)^2: what the output layer's
    gradient squares to, one sequence at a time, and not what the mean over sequences squares to."""
    draw = torch.Generator().manual_seed(2)
    hidden_NSH, weight_VH = torch.randn(6, 4, 5, generator=draw), torch.randn(7, 5, generator=draw)
    labels_NS = torch.randint(0, 7, (6, 4), generator=draw)
    squares, whole = torch.zeros(7, 5), torch.zeros(7, 5)
    for hidden_SH, labels_S in zip(hidden_NSH, labels_NS, strict=True):
        weight = weight_VH.clone().requires_grad_()
        total, _ = weighted_losses(hidden_SH, weight, labels_S, torch.ones(4), Vocabulary(0, 7, None), 3)
        total.backward()
        assert weight.grad is not None
        squares += weight.grad.square()
        whole += weight.grad
    error_NSV = (hidden_NSH @ weight_VH.t()).softmax(-1) - torch.nn.functional.one_hot(labels_NS, 7)
    expected = torch.einsum("nsv,nsh->nvh", error_NSV, hidden_NSH).square().mean(0)
    torch.testing.assert_close(squares / 6, expected, rtol=1e-4, atol=1e-5)
    assert (expected.mean() / (whole / 6).square().mean()) > 2, "the mean of six is another number"


def test_cheap_estimators_say_so(
    untied: Path, checkpoints: dict[str, Path], tokens: Path, tmp_path: Path
) -> None:
    """Sums over batches: batch size times the mean of squared mean gradients, called an approximation; a checkpoint
    without AdamW's state is refused."""
    words = ["--data", tokens, "--sequences", 4, "--seq-length", SEQ, "--batch-size", 2]
    record = fisher(2, checkpoints["untied"], tmp_path / "batches", *map(str, words))
    assert (record.estimator, record.batch_size) == ("batches", 2)
    values = torch.cat([v.flatten() for v in by_autograd(untied, tokens, 4, 2).values()])
    assert record.mean == pytest.approx(float(values.double().mean()), rel=1e-4)
    arguments = ["fisher", str(checkpoints["untied"]), "--output", str(tmp_path / "adam"), "--from-adam"]
    (outcome,) = run_ranks(rank_calls.command, 1, arguments)
    assert outcome.error.startswith("CheckpointError") and "exp_avg_sq" in outcome.error
