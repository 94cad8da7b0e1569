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


def by_autograd(model_directory: Path, tokens: Path) -> dict[str, torch.Tensor]:
    """Mean over the sequences of the squared gradient of a sequence's summed loss: transformers and torch alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    source = TokenSource("old", str(tokens), SEQ, SEED)
    sums = {name: torch.zeros_like(param) for name, param in model.named_parameters()}
    for cursor in range(SEQUENCES):
        inputs_S, labels_S, _ = source.sample(cursor)
        model.zero_grad()
        logits_SV = model(torch.from_numpy(inputs_S)[None]).logits[0]
        torch.nn.functional.cross_entropy(logits_SV, torch.from_numpy(labels_S), reduction="sum").backward()
        for name, param in model.named_parameters():
            sums[name] += param.grad.square()  # type: ignore[union-attr]
    return {name: total / SEQUENCES for name, total in sums.items()}


@pytest.mark.parametrize("kind", ["untied", pytest.param("tied", marks=pytest.mark.core_ranks)])
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


def test_cheap_estimators_say_so(checkpoints: dict[str, Path], tokens: Path, tmp_path: Path) -> None:
    """Sums over batches: another number, called an approximation; a checkpoint without AdamW's state is refused."""
    words = ["--data", tokens, "--sequences", 4, "--seq-length", SEQ, "--batch-size", 2]
    record = fisher(2, checkpoints["untied"], tmp_path / "batches", *map(str, words))
    assert (record.estimator, record.batch_size) == ("batches", 2)
    arguments = ["fisher", str(checkpoints["untied"]), "--output", str(tmp_path / "adam"), "--from-adam"]
    (outcome,) = run_ranks(rank_calls.command, 1, arguments)
    assert outcome.error.startswith("CheckpointError") and "exp_avg_sq" in outcome.error
