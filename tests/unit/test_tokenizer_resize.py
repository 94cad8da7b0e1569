"""Rows of new tokens: at the index of their id, from the matching matrix, never near zero; and all else to the bit."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from extension_world import DOMAIN, blocks, make_base
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from weights_world import CONFIG, llama, load, same_bits, save

from cptron.checkpoint.layout import read_manifest
from cptron.cli import main as cli
from cptron.convert.hf_export import export_hugging_face
from cptron.convert.hf_import import import_hugging_face
from cptron.errors import ConversionError, DataError
from cptron.model.vocab import padded_vocab_size
from cptron.tokenizer.base import open_base
from cptron.tokenizer.extend import learn
from cptron.tokenizer.extended import extended_content, write_extended
from cptron.tokenizer.focus import read_vectors, sparsemax
from cptron.tokenizer.initial_rows import INITS
from cptron.tokenizer.main import INITS as OFFERED
from cptron.tokenizer.resize import import_resized, resize
from cptron.tokenizer.resized import resized_model
from cptron.tokenizer.word_counts import count_words
from cptron.weights.tensors import EMBEDDING, OUTPUT

OLD, NEW, SPARE = 402, 40, 10
"""Tokens of the base, new tokens, and rows that the model has beyond the base's tokens."""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of Llama-3's kind, and its extension. Nobody changes them."""
    root = tmp_path_factory.mktemp("tokenizers")
    base = open_base(make_base(root / "base", "llama3", OLD - 2))
    assert base.tokenizer.vocab_size == OLD
    learned = learn(base, count_words(base, blocks(DOMAIN)), NEW, 2)
    (root / "new").mkdir()
    write_extended(base, extended_content(base, learned.new_tokens, learned.merges), root / "new")
    return root / "base", root / "new"


def model(path: Path, base: Path, *, tied: bool = False, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A tiny model of the base tokenizer, with a few rows too many, as Qwen's are."""
    tensors = llama(1, dtype, tied)
    generator = torch.Generator().manual_seed(7)
    for name, scale in ((EMBEDDING, 1.0), (OUTPUT, 0.2)):
        if name in tensors:
            rows = scale * torch.randn(OLD + SPARE, CONFIG["hidden_size"], generator=generator)
            rows[OLD:] = 0
            tensors[name] = rows.to(dtype)
    save(path, tensors, vocab_size=OLD + SPARE, tie_word_embeddings=tied, eos_token_id=OLD - 2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((base / name).read_bytes())
    (path / "generation_config.json").write_text('{"eos_token_id": 400, "temperature": 0.5}')
    (path / "merges.txt").write_text("of the base")
    return path


def pieces(base: Path, new: Path) -> dict[int, list[int]]:
    """New id -> old ids, by the library's own model on the token itself."""
    old, extended = (Backend.from_file(str(path / "tokenizer.json")) for path in (base, new))
    return {
        number: [piece.id for piece in old.model.tokenize(extended.id_to_token(number))]
        for number in range(OLD, OLD + NEW)
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_subtoken_mean(tied: bool, dtype: torch.dtype, tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """Each matrix from its own rows; the rows that padded the model are overwritten at the id; the rest is the same."""
    base, new = tokenizers
    source = model(tmp_path / "hf", base, tied=tied, dtype=dtype)
    record = resize(source, new, tmp_path / "out")
    before, after = load(source), load(tmp_path / "out")
    matrices = [EMBEDDING] if tied else [EMBEDDING, OUTPUT]
    for name in matrices:
        old, found = before.pop(name), after.pop(name)
        assert found.shape == (OLD + NEW, CONFIG["hidden_size"])
        assert found.dtype == dtype
        assert torch.equal(found[:OLD], old[:OLD])
        for number, ids in pieces(base, new).items():
            assert torch.equal(found[number], old[ids].double().mean(dim=0).to(dtype))
        assert record[name]["guarded"] == 0
    assert same_bits(before, after)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == OLD + NEW
    assert config["eos_token_id"] == OLD - 2
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.5
    assert not (tmp_path / "out" / "merges.txt").exists()


def test_transformers_loads_it(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """Tokenizer and weights, and gives old text of old ids the logits that it gave."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, new = tokenizers
    source = model(tmp_path / "hf", base, dtype=torch.float32)
    resize(source, new, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id == OLD - 2
    ids = tokenizer(DOMAIN[0], add_special_tokens=False)["input_ids"]
    assert max(ids) >= OLD
    assert tokenizer.decode(ids) == DOMAIN[0]
    nets = [AutoModelForCausalLM.from_pretrained(path) for path in (source, tmp_path / "out")]
    tokens = torch.tensor([[1, 5, 300, 40]])
    with torch.no_grad():
        old, extended = (net(tokens).logits for net in nets)
        assert torch.equal(old[..., :OLD], extended[..., :OLD])
        assert nets[1](torch.tensor([ids[:30]])).logits.isfinite().all()


@pytest.mark.parametrize("tied", [False, True])
def test_conversion_is_the_same(tied: bool, tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """`convert --tokenizer` makes the checkpoint that conversion of the resized model makes; an export brings it back,
    without the padding of the vocabulary."""
    base, new = tokenizers
    source = model(tmp_path / "hf", base, tied=tied)
    resize(source, new, tmp_path / "out")
    import_hugging_face(tmp_path / "out", tmp_path / "one")
    import_resized(source, new, tmp_path / "two")
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert one.weights_fingerprint == two.weights_fingerprint
    assert one.probe == two.probe
    assert one.padded_vocab_size == padded_vocab_size(OLD + NEW, 1) > OLD + NEW
    assert one.tokenizer_fingerprint == two.tokenizer_fingerprint == open_base(new).tokenizer.fingerprint
    export_hugging_face(tmp_path / "two", tmp_path / "back")
    assert same_bits(load_file(tmp_path / "back" / "model.safetensors"), load(tmp_path / "out"))
    assert open_base(tmp_path / "back").tokenizer.fingerprint == two.tokenizer_fingerprint


def test_mean_and_mvn(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """The mean of the tokens' rows, padding left out; and noise of the covariance that is stated, by the seed."""
    base, new = tokenizers
    source = model(tmp_path / "hf", base, dtype=torch.float32)
    old = load(source)[OUTPUT][:OLD].double()
    mean = resized_model(source, new, "mean").new_rows[OUTPUT].values_KH
    assert torch.allclose(mean.double(), old.mean(dim=0).repeat(NEW, 1), atol=1e-6)
    draws = [resized_model(source, new, "mvn", seed=seed).new_rows[OUTPUT].values_KH for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    variance = (draws[0].double() - mean.double()).square().mean()
    wanted = 1e-9 * (old - old.mean(dim=0)).square().mean()
    assert variance == pytest.approx(float(wanted), rel=0.3)


def test_norm_guard(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """A token of dead rows gets a row of the usual size, other than that of every other such token."""
    base, new = tokenizers
    found = pieces(base, new)
    source = model(tmp_path / "hf", base, dtype=torch.float32)
    tensors = load(source)
    first, second = list(found)[:2]
    dead = sorted({*found[first], *found[second]})
    tensors[EMBEDDING][dead] = 0
    from safetensors.torch import save_file

    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    rows = resized_model(source, new).new_rows
    guarded = rows[EMBEDDING].guarded
    assert {first, second} <= set(guarded)
    assert set(guarded) == {number for number, ids in found.items() if set(ids) <= set(dead)}
    rms = rows[EMBEDDING].values_KH.square().mean(dim=1).sqrt()[[number - OLD for number in guarded]]
    assert torch.allclose(rms.double(), torch.full((len(guarded),), rows[EMBEDDING].old_median_rms).double())
    made = rows[EMBEDDING].values_KH[[number - OLD for number in guarded]]
    assert len({tuple(row) for row in made.tolist()}) == len(guarded)
    assert rows[OUTPUT].guarded == []


def test_focus(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """A new token whose vector is that of an old one gets its row; one between two, both of them; one without a
    vector, a row like the others."""
    base, new = tokenizers
    extended = Backend.from_file(str(new / "tokenizer.json"))
    source = model(tmp_path / "hf", base, dtype=torch.float32)
    texts = Counter(extended.decode([number]).strip() for number in range(OLD + NEW))
    one, two, three = [i for i in range(256, OLD - 2) if texts[extended.decode([i]).strip()] == 1][:3]
    vectors = {one: "10 0 0", two: "0 10 0", three: "0 0 5", OLD: "3 0 0", OLD + 1: "1 1 0"}
    lines = [f"{extended.id_to_token(number)} {vector}" for number, vector in vectors.items()]
    (tmp_path / "words.vec").write_text("\n".join(["5 3", *lines]) + "\n", encoding="utf-8")
    old = load(source)[EMBEDDING]
    made = resized_model(source, new, "focus", tmp_path / "words.vec").new_rows[EMBEDDING].values_KH
    assert torch.allclose(made[0], old[one], atol=1e-6)
    assert torch.allclose(made[1], (old[one] + old[two]) / 2, atol=1e-6)
    assert made[2:].std() == pytest.approx(float(old[:OLD].std()), rel=0.2)
    with pytest.raises(ConversionError, match="--init focus needs vectors"):
        resized_model(source, new, "focus")
    (tmp_path / "words.vec").write_text("word 1 2 3\n")
    with pytest.raises(ConversionError, match="vectors of 0 old and 0 new tokens"):
        resized_model(source, new, "focus", tmp_path / "words.vec")


def test_vectors_of_tokens_and_of_words(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """In a file of tokens each has its own vector or none; in one of words, both ` x` and `x` have that of `x`."""
    base, extended = map(open_base, tokenizers)
    ids = {word: extended.vocab[word] for word in ("and", "\u0120and", "day", "\u0120day", "install")}
    path = tmp_path / "some.vec"
    path.write_text("and 1 0\nday 1 1\ninstall 0 1\n", encoding="utf-8")
    assert ids["install"] >= OLD and set(read_vectors(path, base, extended)) == set(ids.values())
    path.write_text("and 1 0\n\u0120day 1 1\ninstall 0 1\n", encoding="utf-8")
    named = {ids[word] for word in ("and", "\u0120day", "install")}
    assert set(read_vectors(path, base, extended)) == named


def test_sparsemax_is_the_nearest_point() -> None:
    """Against a search over all supports."""
    scores = torch.tensor([[0.1, 0.9, 0.85, -0.3], [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 2.5]]).double()
    for row, found in zip(scores, sparsemax(scores), strict=True):
        best = None
        for support in range(1, 16):
            chosen = [i for i in range(4) if support >> i & 1]
            point = torch.zeros(4).double()
            point[chosen] = row[chosen] - (row[chosen].sum() - 1) / len(chosen)
            distance = float((point - row).square().sum())
            if (point >= 0).all() and (best is None or distance < best[0]):
                best = (distance, point)
        assert best is not None
        assert torch.allclose(found, best[1])


def test_what_does_not_fit_is_refused(
    tokenizers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer that moves ids, one that adds none, and options that say two things."""
    base, new = tokenizers
    source = model(tmp_path / "hf", base)
    other = make_base(tmp_path / "other", "gpt2", 500)
    with pytest.raises(DataError, match="an extension keeps every old id"):
        resized_model(source, other)
    with pytest.raises(DataError, match="has no token that"):
        resized_model(source, base)
    with pytest.raises(ConversionError, match="--vectors belongs to --init focus"):
        resized_model(source, new, "mean", tmp_path / "words.vec")
    for words in (["--init", "mean"], ["--tokenizer", str(new), "--verify"]):
        assert cli(["convert", str(source), str(tmp_path / "checkpoint"), *words]) == 2
    said = capsys.readouterr().err
    assert "add --tokenizer" in said
    assert "write the model first" in said
    assert not (tmp_path / "checkpoint").exists()


def test_ranges_are_those_of_the_whole(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    """Any stretch of rows, as shards of a layout ask for it, over the old end and the spare rows."""
    base, new = tokenizers
    resized = resized_model(model(tmp_path / "hf", base), new)
    whole = resized.read(OUTPUT)
    cuts = np.linspace(0, OLD + NEW, 12).astype(int).tolist()
    for start, end in pairwise(cuts):
        assert torch.equal(resized.read_range(OUTPUT, 0, start, end), whole[start:end])
    assert torch.equal(resized.read_range(OUTPUT, 1, 3, 9), whole[:, 3:9])
    assert OFFERED == INITS
