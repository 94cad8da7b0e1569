"""Dead rows are found, they do make gradients explode, and the repair ends that and touches nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokens_world import save_byte_tokenizer
from weights_world import CONFIG, llama, load, same_bits, save

from cptron.cli import main
from cptron.errors import ConversionError
from cptron.weights import tensors
from cptron.weights.health import Health, examine, facts
from cptron.weights.health_main import UNHEALTHY
from cptron.weights.repair import repair
from cptron.weights.tensors import EMBEDDING, OUTPUT, WeightStream

DEAD = {3: 0.0, 17: 1e-5, 31: 1e-4}
"""Row -> what it is multiplied by."""


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows of the embedding at a time."""
    monkeypatch.setattr(tensors, "BLOCK_ELEMENTS", 50)


def with_dead_rows(
    directory: Path, rows: dict[int, float] = DEAD, tied: bool = False, **options: Any
) -> Path:
    """A model in which some tokens have almost nothing."""
    weights = llama(0, tied=tied)
    for row, factor in rows.items():
        weights[EMBEDDING][row] *= factor
    return save(directory, weights, tie_word_embeddings=tied, **options)


def health_of(directory: Path) -> Health:
    """What the room finds."""
    return examine(WeightStream(directory))


def repaired(directory: Path, target: Path, seed: int = 0) -> list[dict[str, Any]]:
    """What the room does."""
    model = WeightStream(directory)
    return repair(model, examine(model), target, seed)


def test_rows_are_measured(tmp_path: Path) -> None:
    """RMS, median and kinds as plain torch has them."""
    weights = load(with_dead_rows(tmp_path / "m"))[EMBEDDING].double()
    rms_V = weights.square().mean(dim=1).sqrt()
    health = health_of(tmp_path / "m")
    assert torch.allclose(torch.from_numpy(health.rows.rms_V), rms_V, rtol=1e-12)
    alive = sorted(float(rms) for rms in rms_V if rms > 0)
    assert health.rows.median_rms == pytest.approx(alive[len(alive) // 2], rel=1e-12)  # 39 rows
    assert [(row, health.rows.kind(row)) for row in health.harmful] == [
        (3, "zero"),
        (17, "near zero"),
        (31, "near zero"),
    ]
    assert not health.healthy


@pytest.mark.parametrize(("part", "healthy"), [(0.9e-3, False), (1.1e-3, True)])
def test_the_threshold_is_a_thousandth_of_the_median(part: float, healthy: bool, tmp_path: Path) -> None:
    """On both sides."""
    weights = llama(0)
    rms_V = weights[EMBEDDING].square().mean(dim=1).sqrt()
    weights[EMBEDDING][5] *= part * rms_V.median() / rms_V[5]
    assert health_of(save(tmp_path / "m", weights)).healthy is healthy


def test_rows_that_are_the_same_are_a_note(tmp_path: Path) -> None:
    """Groups of ids, the largest first; zero rows are no group; training can start."""
    weights = llama(0)
    weights[EMBEDDING][[4, 9, 30]] = weights[EMBEDDING][4].clone()
    weights[EMBEDDING][[7, 8]] = weights[EMBEDDING][8].clone()
    weights[OUTPUT][[1, 2]] = 0.0
    model = save(tmp_path / "m", weights)
    health = health_of(model)
    assert health.rows.duplicates() == [[4, 9, 30], [7, 8]]
    assert health.output_rows is not None and health.output_rows.bad() == [1, 2]
    assert health.output_rows.duplicates() == []
    assert health.healthy


def test_padding_is_no_harm_and_tokens_are_named(tmp_path: Path) -> None:
    """Rows that no text can ask for are told apart from tokens by the tokenizer."""
    generator = torch.Generator().manual_seed(0)
    weights = llama(0)
    for name in (EMBEDDING, OUTPUT):
        weights[name] = torch.randn(300, CONFIG["hidden_size"], generator=generator)
    weights[EMBEDDING][280:] = 0
    model = save(tmp_path / "m", weights, vocab_size=300)
    save_byte_tokenizer(model)  # 256 tokens
    assert health_of(model).healthy
    weights[EMBEDDING][64] = 0
    worse = save(tmp_path / "worse", weights, vocab_size=300)
    save_byte_tokenizer(worse)
    health = health_of(worse)
    assert health.harmful == [64] and health.num_tokens == 256
    bad = facts(WeightStream(worse), health)["embedding"]["bad"]
    assert len(bad) == 21
    assert bad[0]["token"] == health.token(64) != "" and not bad[0]["padding"]
    assert bad[1]["token"] is None and bad[1]["padding"]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("model.layers.0.mlp.down_proj.weight", math.nan, "nonfinite"),
        ("model.layers.0.mlp.down_proj.weight", -math.inf, "nonfinite"),
        ("model.norm.weight", 2e3, "wild_norms"),
        ("model.layers.0.input_layernorm.weight", 0.0, "wild_norms"),
    ],
)
def test_bad_values_elsewhere_are_found_and_not_repaired(
    name: str, value: float, found: str, tmp_path: Path
) -> None:
    """The tensor is named; a repair of the rows alone would hide it."""
    weights = llama(0)
    weights[name].view(-1)[slice(None) if value == 0 else slice(2, 3)] = value
    weights[EMBEDDING][3] = 0
    model = save(tmp_path / "m", weights)
    health = health_of(model)
    assert list(getattr(health, found)) == [name] and not health.healthy
    with pytest.raises(ConversionError, match=rf"bad values in {name.replace('.', '[.]')} \(1 such"):
        repaired(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_norms_that_store_their_distance_from_one_may_be_zero(tmp_path: Path) -> None:
    """Gemma's; a Llama's may not."""
    weights = llama(0) | {"model.norm.weight": torch.zeros(CONFIG["hidden_size"])}
    assert health_of(save(tmp_path / "g", weights, model_type="gemma2")).healthy
    assert not health_of(save(tmp_path / "l", weights)).healthy


@pytest.mark.parametrize("tied", [False, True])
def test_repair_changes_the_bad_rows_only(tied: bool, tmp_path: Path) -> None:
    """Same file otherwise; new rows have the median RMS, and the direction of the output row where there is one."""
    model = with_dead_rows(tmp_path / "m", tied=tied, tokenizer=True)
    before, median = load(model), health_of(model).rows.median_rms
    done = repaired(model, tmp_path / "out")
    after = load(tmp_path / "out")
    changed = (after[EMBEDDING] != before[EMBEDDING]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [what["id"] for what in done] == sorted(DEAD)
    rest = [row for row in range(CONFIG["vocab_size"]) if row not in DEAD]
    assert same_bits(
        after | {EMBEDDING: after[EMBEDDING][rest]}, before | {EMBEDDING: before[EMBEDDING][rest]}
    )
    mean = before[EMBEDDING][rest].double().mean(dim=0)
    for what in done:
        row = after[EMBEDDING][what["id"]].double()
        assert float(row.square().mean().sqrt()) == pytest.approx(median, rel=1e-6)
        direction = mean if tied else before[OUTPUT][what["id"]].double()
        cosine = float(torch.nn.functional.cosine_similarity(row, direction, dim=0))
        assert cosine > (0.98 if tied else 1 - 1e-6)
        assert what["direction"] == ("mean of healthy rows" if tied else "output row")
    if tied:
        assert not torch.equal(after[EMBEDDING][3], after[EMBEDDING][17]), "they would stay one token"
    assert health_of(tmp_path / "out").healthy
    assert json.loads((tmp_path / "out/repair.json").read_text())["rows"] == done
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_a_new_row_depends_on_seed_and_id_alone(tmp_path: Path) -> None:
    """The same again; and by the formula, also where another row is bad too."""
    model = with_dead_rows(tmp_path / "m", tied=True)
    more = with_dead_rows(tmp_path / "more", {**DEAD, 20: math.nan}, tied=True)
    for name, source, seed in (("a", model, 0), ("b", model, 0), ("c", model, 1), ("d", more, 0)):
        repaired(source, tmp_path / name, seed)
    a, b, c, d = (load(tmp_path / name)[EMBEDDING] for name in "abcd")
    assert torch.equal(a, b)
    assert not torch.equal(a[17], c[17])
    weights = load(more)[EMBEDDING].double().numpy()
    bad = [*DEAD, 20]
    mean = np.delete(weights, bad, axis=0).mean(axis=0)
    for row in bad:
        noise = np.random.default_rng([0, row]).standard_normal(len(mean))
        expected = mean + 0.1 * np.sqrt((mean**2).mean()) * noise
        expected *= health_of(more).rows.median_rms / np.sqrt((expected**2).mean())
        np.testing.assert_allclose(d[row].numpy(), expected, rtol=1e-6)


def test_an_output_row_that_is_not_trained_gives_no_direction(tmp_path: Path) -> None:
    """Dead, or the same as others: else the repaired rows would be one token."""
    weights = llama(0)
    weights[EMBEDDING][[3, 5, 6]] = 0
    weights[OUTPUT][3] = 0
    weights[OUTPUT][5] = weights[OUTPUT][6]
    done = repaired(save(tmp_path / "m", weights), tmp_path / "out")
    assert {what["direction"] for what in done} == {"mean of healthy rows"}


def gradient_norm(directory: Path, ids: list[int]) -> float:
    """Of transformers, on one sequence."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    tokens_BS = torch.tensor([ids])
    model(tokens_BS, labels=tokens_BS).loss.backward()
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))


@pytest.mark.parametrize("tied", [False, True])
def test_dead_rows_explode_the_first_gradient_and_repaired_ones_do_not(tied: bool, tmp_path: Path) -> None:
    """The harm that this is about, seen from outside: at step 0, with transformers' Llama."""
    healthy = save(tmp_path / "healthy", llama(0, tied=tied), tie_word_embeddings=tied)
    dead = with_dead_rows(tmp_path / "dead", tied=tied)
    repaired(dead, tmp_path / "repaired")
    with_them = [1, 3, 8, 17, 22, 31, 5, 3, 17, 9]
    without = [1, 2, 8, 18, 22, 30, 5, 2, 18, 9]
    norms = {path.name: gradient_norm(path, with_them) for path in (healthy, dead, tmp_path / "repaired")}
    assert norms["dead"] > 30 * norms["healthy"], norms
    assert 0.2 * norms["healthy"] < norms["repaired"] < 5 * norms["healthy"], norms
    assert gradient_norm(dead, without) < 5 * norms["healthy"], "only where the tokens are met"


def test_exit_codes_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 healthy, 3 not, 0 repaired, 2 where there is nothing to do or nothing to see."""
    dead = with_dead_rows(tmp_path / "dead", tokenizer=True)
    assert main(["health", str(dead)]) == UNHEALTHY == 3
    assert "near zero" in capsys.readouterr().out
    assert main(["health", str(dead), "--json"]) == UNHEALTHY
    found = json.loads(capsys.readouterr().out)
    assert [bad["id"] for bad in found["embedding"]["bad"]] == sorted(DEAD) and not found["healthy"]
    assert main(["health", str(dead), "--repair", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["repaired"]) == 3
    assert main(["health", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["health", str(tmp_path / "out"), "--repair", str(tmp_path / "again")]) == 2
    assert "no embedding row to repair" in capsys.readouterr().err
    assert main(["health", str(dead), "--repair", str(tmp_path / "out")]) == 2
    assert "already exists" in capsys.readouterr().err
    strange = save(tmp_path / "strange", {"transformer.wte.weight": torch.ones(3, 4)})
    assert main(["health", str(strange)]) == 2
    assert "has no tensor model.embed_tokens.weight" in capsys.readouterr().err


def test_a_model_without_a_healthy_row_cannot_be_repaired(tmp_path: Path) -> None:
    """There is no scale to give."""
    weights = llama(0)
    weights[EMBEDDING][:] = 0
    with pytest.raises(ConversionError, match="no healthy row in model"):
        repaired(save(tmp_path / "m", weights), tmp_path / "out")
