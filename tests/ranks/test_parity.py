"""The engine computes what `transformers` and plain torch compute, under every layout."""

from __future__ import annotations

from pathlib import Path

import engine_calls
import numpy as np
import pytest
import torch

from cptron.optim.schedule import learning_rate
from cptron.testing import run_ranks

LAYOUTS = [(1, 1, 1), (2, 2, 1), (2, 1, 2), (2, 1, 1), (4, 2, 2)]
"""(world size, tp, pp); what is left is data parallel."""
MORE = pytest.mark.more
NEWEST_TOO = pytest.mark.core_ranks


def transformers_logits(directory: Path, token_ids: list[int], dtype: str = "float32") -> np.ndarray:
    """Logits `[S, V]`, computed in `dtype`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def plain_torch_run(directory: Path, tokens_NGS1: np.ndarray) -> list[tuple[float, float]]:
    """The same training with `transformers`, `torch.optim.AdamW` and torch's own clipping."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    optim = engine_calls.OPTIM
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(optim.beta1, optim.beta2), eps=optim.eps)
    history = []
    for step, tokens_GS1 in enumerate(tokens_NGS1):
        adamw.zero_grad()
        batches = engine_calls.micro_batches(tokens_GS1, 1, 0, 1)
        loss_sum, count = torch.zeros(()), 0.0
        for batch in batches:
            logits = model(torch.from_numpy(batch.tokens_BS)).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.from_numpy(batch.labels_BS).flatten(), reduction="none"
            )
            loss_sum = loss_sum + (loss * torch.from_numpy(batch.loss_mask_BS).flatten()).sum()
            count += float(batch.loss_mask_BS.sum())
        (loss_sum / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad_norm)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(optim, step, 20)
        adamw.step()
        history.append((float(loss_sum.detach()) / count, float(norm)))
    return history


@pytest.mark.parametrize(
    ("world_size", "tp", "pp", "name"),
    [
        (1, 1, 1, "untied"),
        (4, 4, 1, "untied"),
        (2, 1, 2, "tied"),
        pytest.param(4, 2, 2, "tied", marks=NEWEST_TOO),
        *(
            pytest.param(*layout, name, marks=MORE)
            for layout, name in (
                ((1, 1, 1), "tied"),
                ((2, 2, 1), "untied"),
                ((2, 2, 1), "tied"),
                ((4, 4, 1), "tied"),
                ((2, 1, 2), "untied"),
                ((4, 2, 2), "untied"),
            )
        ),
    ],
)
def test_logits_equal_transformers(
    name: str, world_size: int, tp: int, pp: int, checkpoints: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    """Largest difference of any logit is within 1e-4 in fp32."""
    token_ids = np.random.default_rng(1).integers(0, 300, 48).tolist()
    expected = transformers_logits(request.getfixturevalue(name), token_ids)
    found = run_ranks(engine_calls.first_logits, world_size, str(checkpoints[name]), token_ids, tp=tp, pp=pp)
    holders = [logits for logits in found if logits is not None]
    assert len(holders) == world_size // pp
    for logits in holders:
        assert np.abs(logits - expected).max() <= 1e-4
    assert np.abs(expected).max() > 0.5, "logits this small could not tell a wrong model"


@pytest.mark.parametrize(
    ("world_size", "tp", "pp", "name"),
    [
        (2, 1, 1, "untied"),
        (2, 1, 2, "tied"),
        pytest.param(4, 2, 2, "untied", marks=NEWEST_TOO),
        *(
            pytest.param(*layout, name, marks=MORE)
            for layout, name in (
                ((1, 1, 1), "untied"),
                ((1, 1, 1), "tied"),
                ((2, 2, 1), "untied"),
                ((2, 2, 1), "tied"),
                ((2, 1, 2), "untied"),
                ((2, 1, 1), "tied"),
                ((4, 2, 2), "tied"),
            )
        ),
    ],
)
def test_twenty_steps_equal_plain_torch(
    name: str,
    world_size: int,
    tp: int,
    pp: int,
    checkpoints: dict[str, Path],
    tokens_NGS1: np.ndarray,
    request: pytest.FixtureRequest,
) -> None:
    """Losses and gradient norms of 20 fp32 steps are within 1e-4 of `transformers` + AdamW, on every rank."""
    expected = np.array(plain_torch_run(request.getfixturevalue(name), tokens_NGS1))
    results = run_ranks(
        engine_calls.train_losses, world_size, str(checkpoints[name]), tokens_NGS1, tp=tp, pp=pp
    )
    assert all(result == results[0] for result in results), "every rank must report the same numbers"
    np.testing.assert_allclose(np.array(results[0]), expected, rtol=1e-4)
    assert expected[-1, 0] < expected[0, 0], "twenty steps that teach nothing would prove nothing"


@pytest.mark.parametrize(
    ("world_size", "tp", "pp"),
    [pytest.param(*layout, marks=() if layout == (2, 2, 1) else MORE) for layout in LAYOUTS],
)
def test_bf16_stays_close_to_fp32(
    world_size: int, tp: int, pp: int, checkpoints: dict[str, Path], tokens_NGS1: np.ndarray
) -> None:
    """bf16 with fp32 masters: losses within 2 %, gradient norms within 10 % of fp32 (8 bits of mantissa)."""
    kwargs = {"tp": tp, "pp": pp}
    full = run_ranks(engine_calls.train_losses, world_size, str(checkpoints["tied"]), tokens_NGS1, **kwargs)[
        0
    ]
    half = run_ranks(
        engine_calls.train_losses,
        world_size,
        str(checkpoints["tied"]),
        tokens_NGS1,
        precision="bf16",
        **kwargs,
    )[0]
    full_N2, half_N2 = np.array(full), np.array(half)
    np.testing.assert_allclose(half_N2[:, 0], full_N2[:, 0], rtol=0.02)
    np.testing.assert_allclose(half_N2[:, 1], full_N2[:, 1], rtol=0.10)
    assert (half_N2[:, 0] != full_N2[:, 0]).any(), "bf16 that equals fp32 to the bit was not bf16"


def test_recompute_changes_nothing(checkpoints: dict[str, Path], tokens_NGS1: np.ndarray) -> None:
    """Full recomputation gives the same losses and norms to the bit."""
    plain, recomputed = (
        run_ranks(
            engine_calls.train_losses,
            2,
            str(checkpoints["untied"]),
            tokens_NGS1[:5],
            tp=2,
            pp=1,
            recompute=recompute,
        )[0]
        for recompute in ("none", "full")
    )
    assert plain == recomputed


@pytest.mark.core_ranks
@pytest.mark.parametrize(
    ("source", "precision"),
    [
        ((4, 2, 2), "fp32"),
        pytest.param((4, 2, 2), "bf16", marks=MORE),
        pytest.param((2, 2, 1), "fp32", marks=MORE),
        pytest.param((2, 2, 1), "bf16", marks=MORE),
    ],
)
def test_optimizer_resumes_under_any_layout(
    source: tuple[int, int, int],
    precision: str,
    checkpoints: dict[str, Path],
    tokens_NGS1: np.ndarray,
    tmp_path: Path,
) -> None:
    """Weights and moments saved after five steps continue the curve: to the bit in the same layout, 1e-4 in
    others."""
    base, tokens_NGS1, half = str(checkpoints["tied"]), tokens_NGS1[:10], 5
    world_size, tp, pp = source
    shards = tmp_path / "shards"
    shards.mkdir()
    whole = run_ranks(
        engine_calls.train_losses, world_size, base, tokens_NGS1, tp=tp, pp=pp, precision=precision
    )[0]
    run_ranks(
        engine_calls.train_losses,
        world_size,
        base,
        tokens_NGS1[:half],
        tp=tp,
        pp=pp,
        precision=precision,
        save_shards_to=str(shards),
    )
    for layout in [source, *(other for other in LAYOUTS if other != source)]:
        continued = run_ranks(
            engine_calls.train_losses,
            layout[0],
            base,
            tokens_NGS1[half:],
            tp=layout[1],
            pp=layout[2],
            precision=precision,
            first_step=half,
            resume_shards=str(shards),
        )[0]
        if layout == source:
            assert continued == whole[half:]
        else:
            rtol = 1e-4 if precision == "fp32" else 0.02
            np.testing.assert_allclose(np.array(continued)[:, 0], np.array(whole)[half:, 0], rtol=rtol)
