"""Merges against exact fractions, models in memory and the theory they come from; and what is refused."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from weights_world import BITS, CONFIG, llama, load, nearest, same_bits, save

from cptron.cli import main
from cptron.errors import ConversionError
from cptron.weights import recipes, tensors
from cptron.weights.combine import combine
from cptron.weights.rounding import round_once

STORED = [torch.bfloat16, torch.float16, torch.float32]
ANY_FLOAT = st.floats(-1e4, 1e4) | st.floats(-1e-6, 1e-6) | st.sampled_from([0.0, -0.0, 6e-8, 1e-40])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every tensor of a tiny model is cut, some of them within a row."""
    monkeypatch.setattr(tensors, "BLOCK_ELEMENTS", 13)


def models(directory: Path, count: int, dtype: torch.dtype = torch.float32) -> list[Path]:
    """Directories of random models."""
    return [save(directory / f"m{seed}", llama(seed, dtype)) for seed in range(count)]


def exact(parts: list[tuple[Path, Fraction]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The sum of weights times models by whole numbers, rounded once."""
    loaded = [(load(path), weight) for path, weight in parts]
    result = {}
    for name, first in loaded[0][0].items():
        columns = zip(*(model[name].flatten().tolist() for model, _ in loaded), strict=True)
        weights = [weight for _, weight in loaded]
        values = [
            nearest(sum((w * Fraction(x) for w, x in zip(weights, column, strict=True)), Fraction(0)), dtype)
            for column in columns
        ]
        result[name] = torch.tensor(values, dtype=torch.float64).to(dtype).reshape(first.shape)
    return result


@given(value=ANY_FLOAT, nudge=st.sampled_from([0.0, 2.0**-45, -(2.0**-45)]), dtype=st.sampled_from(STORED))
@settings(max_examples=300)
def test_rounding_is_to_the_nearest_once(value: float, nudge: float, dtype: torch.dtype) -> None:
    """Also a hair beside the middle between two values, where rounding by way of fp32 goes wrong."""
    low = torch.tensor(value, dtype=dtype)
    high = (low.view(BITS[dtype]) + 1).view(dtype)
    for start in (value, (low.double() + high.double()).item() / 2):
        number = start * (1 + nudge)
        expected = nearest(Fraction(number), dtype)
        assert round_once(torch.tensor([number], dtype=torch.float64), dtype).item() == expected


def test_torch_alone_rounds_twice() -> None:
    """Why `round_once` is there."""
    number = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert number.to(torch.bfloat16).item() == 1.0
    assert round_once(number, torch.bfloat16).item() == 1 + 2.0**-7


def test_a_merge_rounds_once(tmp_path: Path) -> None:
    """The mean of two fp32 models is that number."""
    values = (2 + 2.0**-7, 2.0**-39)
    paths = [save(tmp_path / f"m{i}", {"a": torch.tensor([value])}) for i, value in enumerate(values)]
    combine(recipes.average(paths, tmp_path / "out"), dtype="bf16")
    assert load(tmp_path / "out")["a"].item() == 1 + 2.0**-7


@given(shape=st.lists(st.integers(0, 7), max_size=4), limit=st.integers(1, 40))
def test_blocks_are_the_tensor_in_order(shape: list[int], limit: int) -> None:
    """Nothing twice, nothing left out, none larger than the limit."""
    whole = torch.arange(math.prod(shape)).reshape(shape)
    parts = [whole[block] for block in tensors.blocks_of(tuple(shape), limit)]
    assert all(part.numel() <= limit for part in parts)
    flat = torch.cat([part.flatten() for part in parts]) if parts else torch.empty(0, dtype=torch.int64)
    assert torch.equal(flat, whole.flatten())


@pytest.mark.parametrize("max_shard_bytes", [1, 20, 100, 10**9])
def test_written_models_are_read_by_safetensors(max_shard_bytes: int, tmp_path: Path) -> None:
    """Mixed types, scalars and tensors without values, in one file or many."""
    expected = {
        "a": torch.randn(5, 7),
        "b": torch.randn(3).bfloat16(),
        "c": torch.tensor(2.0),
        "d": torch.randn(0, 4),
        "e": torch.randn(2, 3, 5).half(),
        "f": torch.randn(0),
    }
    infos = {name: tensors.TensorInfo(tuple(x.shape), x.dtype) for name, x in expected.items()}
    writer = tensors.WeightWriter(tmp_path, infos, max_shard_bytes)
    for name in writer.order:
        for block in tensors.blocks_of(infos[name].shape):
            writer.write(expected[name][block])
    writer.finish()
    assert same_bits(load(tmp_path), expected)
    for path in tmp_path.glob("*.safetensors"):
        header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
        assert len(header) % 8 == 0
        for name, entry in json.loads(header).items():
            if name in expected:
                assert entry["data_offsets"][0] % expected[name].itemsize == 0, "not aligned"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert tensors.WeightStream(tmp_path).infos == infos
    assert (tmp_path / "model.safetensors.index.json").is_file() == (max_shard_bytes < 10**9)


@pytest.mark.parametrize("dtype", STORED)
def test_weighted_sums_are_exact_values_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights of few bits, so that fp64 holds the sums exactly; what is left is one rounding."""
    paths = models(tmp_path, 3, dtype)
    weights = [Fraction(1, 2), Fraction(3, 8), Fraction(1, 8)]
    given_ = [(path, float(weight)) for path, weight in zip(paths, weights, strict=True)]
    combine(recipes.weighted(given_, tmp_path / "out"))
    assert same_bits(load(tmp_path / "out"), exact(list(zip(paths, weights, strict=True)), dtype))


def test_means_do_not_depend_on_the_order(tmp_path: Path) -> None:
    """To the last bit: sums are exact here, also where the mean lies in the middle between two values."""
    paths = models(tmp_path, 3, torch.bfloat16)
    combine(recipes.average(paths, tmp_path / "out"))
    combine(recipes.average(paths[::-1], tmp_path / "reversed"))
    assert same_bits(load(tmp_path / "out"), load(tmp_path / "reversed"))
    assert same_bits(
        load(tmp_path / "out"), exact([(path, Fraction(1, 3)) for path in paths], torch.bfloat16)
    )


@given(
    values=st.lists(ANY_FLOAT, min_size=1, max_size=20),
    count=st.integers(2, 7),
    dtype=st.sampled_from(STORED),
)
@settings(max_examples=40)
def test_the_mean_of_equal_models_is_the_model(
    values: list[float], count: int, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To the last bit, in every type: also signs of zeros and values below the smallest normal one."""
    root = tmp_path_factory.mktemp("equal")
    weights = {"a": torch.tensor(values).to(dtype)}
    paths = [save(root / f"m{number}", weights) for number in range(count)]
    combine(recipes.average(paths, root / "mean"))
    combine(recipes.wsm(paths, "cosine", root / "wsm"))
    assert same_bits(load(root / "mean"), weights)
    assert same_bits(load(root / "wsm"), weights)


@pytest.mark.parametrize("dtype", STORED)
def test_ends_of_an_interpolation_are_the_models(dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit; the grid is what single merges are; and the middle is exact."""
    base, tuned = models(tmp_path, 2, dtype)
    changed(NORM, poisoned(-0.0))(base)
    combine(recipes.wise_ft(base, tuned, [0, 0.25, 1], f"{tmp_path}/w"))
    assert same_bits(load(tmp_path / "w_0"), load(base))
    assert same_bits(load(tmp_path / "w_1"), load(tuned))
    assert same_bits(
        load(tmp_path / "w_0.25"), exact([(base, Fraction(3, 4)), (tuned, Fraction(1, 4))], dtype)
    )
    combine(recipes.wise_ft(base, tuned, [0.25], f"{tmp_path}/single"))
    assert same_bits(load(tmp_path / "w_0.25"), load(tmp_path / "single_0.25"))


def test_a_task_vector_is_added_and_taken_away(tmp_path: Path) -> None:
    """On its own base it gives the tuned model; added and subtracted it is gone, up to the rounding between."""
    base, tuned, target = models(tmp_path, 3)
    combine(recipes.task_vector(base, [(tuned, base, 1.0)], tmp_path / "tuned_again"))
    assert same_bits(load(tmp_path / "tuned_again"), load(tuned))
    combine(recipes.task_vector(target, [(tuned, base, 1.0)], tmp_path / "added"))
    one, half = Fraction(1), Fraction(1, 2)
    assert same_bits(
        load(tmp_path / "added"), exact([(target, one), (tuned, one), (base, -one)], torch.float32)
    )
    combine(recipes.task_vector(tmp_path / "added", [(tuned, base, -1.0)], tmp_path / "back"))
    back, original = load(tmp_path / "back"), load(target)
    largest = max(float(x.abs().max()) for x in load(tmp_path / "added").values())
    assert all(float((back[name] - original[name]).abs().max()) <= largest * 2.0**-23 for name in original)
    combine(recipes.task_vector(target, [(tuned, base, 0.5), (target, base, 0.5)], tmp_path / "two"))
    expected = exact([(target, one + half), (tuned, half), (base, -one)], torch.float32)
    assert same_bits(load(tmp_path / "two"), expected)


def instruct_files(directory: Path, name: str) -> dict[str, str]:
    """What an instruct model has beside its weights, told apart by `name`."""
    files = {
        "chat_template.jinja": f"{{{{ {name!r} }}}}",
        "generation_config.json": json.dumps({"eos_token_id": [0, 2], "name": name}),
        "special_tokens_map.json": json.dumps({"eos_token": "<|im_end|>", "name": name}),
    }
    for file, text in files.items():
        (directory / file).write_text(text)
    return files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_instruction_residual(dtype: torch.dtype, tmp_path: Path) -> None:
    """On the base itself it is the instruct model; of an instruct model that is the base it is nothing; else the sum,
    rounded once; in every case the files are the instruct model's, and none of the others'."""
    base, cpt, instruct = models(tmp_path, 3, dtype)
    same = save(tmp_path / "same", load(base))
    for path in (base, cpt, same):
        (path / "generation_config.json").write_text("{}")
    (cpt / "notes.txt").write_text("of the run")
    files = instruct_files(instruct, "chat") | {"config.json": json.dumps(CONFIG | {"eos_token_id": 2})}
    (instruct / "config.json").write_text(files["config.json"])
    one = Fraction(1)
    expected = {
        "on_base": (same, instruct, base, load(instruct)),
        "sum": (cpt, instruct, base, exact([(cpt, one), (instruct, one), (base, -one)], dtype)),
    }
    for name, (target, tuned, origin, weights) in expected.items():
        words = ["merge-weights", "residual", str(target), "--instruct", str(tuned), "--base", str(origin)]
        assert main([*words, "--output", str(tmp_path / name)]) == 0
        assert same_bits(load(tmp_path / name), weights)
        found = {
            path.name: path.read_text()
            for path in (tmp_path / name).iterdir()
            if path.suffix != ".safetensors"
        }
        record = json.loads(found.pop("merge.json"))
        assert (record["recipe"], record["files_from"], record["scale"]) == ("residual", str(instruct), 1.0)
        config = json.loads(found.pop("config.json"))
        assert config.pop("dtype") == str(dtype).removeprefix("torch.")
        assert config == json.loads(files["config.json"])
        assert found == {file: text for file, text in files.items() if file != "config.json"}
    combine(recipes.residual(cpt, same, base, tmp_path / "nothing"))
    assert same_bits(load(tmp_path / "nothing"), load(cpt))
    combine(recipes.residual(cpt, instruct, base, tmp_path / "half", 0.5))
    half = Fraction(1, 2)
    assert same_bits(load(tmp_path / "half"), exact([(cpt, one), (instruct, half), (base, -half)], dtype))


@pytest.mark.parametrize("larger", ["m0", "m1", "m2"])
def test_a_residual_between_vocabularies_is_refused(
    larger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of the three was given new tokens; in one line, with nothing left behind. The same model twice too."""
    base, cpt, instruct = models(tmp_path, 3)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed(name, lambda x: torch.cat([x, x[:2]]))(tmp_path / larger)
    words = ["merge-weights", "residual", str(cpt), "--instruct", str(instruct), "--base"]
    assert main([*words, str(base), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "of one architecture and vocabulary" in error and "\n" not in error
    assert main([*words, str(cpt), "--output", str(tmp_path / "out")]) == 2
    assert "is given twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("decay", recipes.DECAYS)
@pytest.mark.parametrize("count", [2, 3, 7])
def test_wsm_is_the_trajectory_with_decayed_updates(decay: str, count: int, tmp_path: Path) -> None:
    """SGD at a constant rate, a checkpoint after every update: the merge is the same updates, decayed."""
    curves = {
        "linear": lambda r: 1 - r,
        "cosine": lambda r: math.cos(math.pi * r / 2) ** 2,
        "1-sqrt": lambda r: 1 - r**0.5,
    }
    torch.manual_seed(count)
    gradients = [torch.randn(31, dtype=torch.float64) for _ in range(count - 1)]
    theta = torch.randn(31, dtype=torch.float64)
    decayed = theta.clone()
    paths = [save(tmp_path / "m0", {"a": theta.float()})]
    for number, gradient in enumerate(gradients, start=1):
        theta = theta - 0.1 * gradient
        decayed = decayed - 0.1 * curves[decay](number / count) * gradient
        paths.append(save(tmp_path / f"m{number}", {"a": theta.float()}))
    combine(recipes.wsm(paths, decay, tmp_path / "out"))
    torch.testing.assert_close(load(tmp_path / "out")["a"].double(), decayed, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", recipes.DECAYS)
def test_wsm_weights(decay: str) -> None:
    """Positive, of sum one, the differences that the paper states; those of a linear decay are equal."""
    for count in (2, 5, 50):
        weights = recipes.wsm_weights(count, decay)
        assert math.fsum(weights) == pytest.approx(1, abs=1e-15)
        assert all(weight > 0 for weight in weights)
        multipliers = [recipes.DECAYS[decay](j / count) for j in range(1, count)]  # w_1 ... w_k
        stated = [1 - multipliers[0], *(a - b for a, b in pairwise(multipliers))]
        assert weights == pytest.approx([*stated, multipliers[-1]])
    assert recipes.wsm_weights(4, "linear") == (0.25,) * 4
    assert recipes.wsm_weights(4, "1-sqrt") == pytest.approx((0.5, 0.207106781, 0.158918623, 0.133974596))


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_what_it_computes_on_a_merge_in_memory(tied: bool, tmp_path: Path) -> None:
    """Loaded without a missing tensor; weights equal those merged by plain torch, and so do logits."""
    from transformers import AutoModelForCausalLM

    paths = [save(tmp_path / f"m{i}", llama(i, tied=tied), tie_word_embeddings=tied) for i in range(2)]
    combine(recipes.weighted([(paths[0], 0.25), (paths[1], 0.75)], tmp_path / "out"))
    merged, notes = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    in_memory, other = (AutoModelForCausalLM.from_pretrained(path, local_files_only=True) for path in paths)
    with torch.no_grad():
        for mine, theirs in zip(in_memory.parameters(), other.parameters(), strict=True):
            mine.copy_((0.25 * mine.double() + 0.75 * theirs.double()).float())
        loaded = dict(merged.named_parameters())
        assert all(torch.equal(loaded[name], mine) for name, mine in in_memory.named_parameters())
        ids = torch.arange(24)[None]  # same weights at other addresses: sums may be in another order
        torch.testing.assert_close(merged(ids).logits, in_memory(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "stored"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")]
)
def test_the_type_asked_for_is_written_and_stated(dtype: str, stored: str, tmp_path: Path) -> None:
    """In the weights and in config.json; inputs may have several types."""
    paths = [save(tmp_path / "a", llama(0, torch.bfloat16)), save(tmp_path / "b", llama(1))]
    combine(recipes.average(paths, tmp_path / "out"), dtype=dtype)
    wanted = getattr(torch, stored)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == stored
    half = Fraction(1, 2)
    assert same_bits(load(tmp_path / "out"), exact([(paths[0], half), (paths[1], half)], wanted))
    combine(recipes.average(paths, tmp_path / "first"))
    assert all(x.dtype == torch.bfloat16 for x in load(tmp_path / "first").values())


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Damage to one tensor."""

    def damage(path: Path) -> None:
        weights = load(path)
        weights[name] = change(weights[name]).contiguous()
        save_file(weights, path / "model.safetensors")

    return damage


def without(name: str) -> Callable[[Path], None]:
    """A tensor is gone."""

    def damage(path: Path) -> None:
        weights = load(path)
        del weights[name]
        save_file(weights, path / "model.safetensors")

    return damage


def configured(**fields: Any) -> Callable[[Path], None]:
    """Other fields in config.json."""
    return lambda path: (path / "config.json").write_text(json.dumps(CONFIG | fields)) and None


def poisoned(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """One bad value, in the last block."""

    def poison(x: torch.Tensor) -> torch.Tensor:
        x.view(-1)[-1] = value
        return x

    return poison


NORM = "model.norm.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor fewer": (
        without(NORM),
        r"m1 lacks 1 tensor\(s\) of .*m0: model\.norm\.weight; merge models of one",
    ),
    "another shape": (changed(GATE, lambda x: x[:-1]), r"gate_proj\.weight \[24, 16\] and \[23, 16\]"),
    "another theta": (configured(rope_theta=5e5), "differ in rope_theta 10000.0 and 500000.0"),
    "another unknown field": (configured(model_type="x", sliding=3), "differ in .*model_type|sliding"),
    "tied": (
        configured(tie_word_embeddings=True),
        r"tie_word_embeddings=true and a lm_head\.weight that is not",
    ),
    "nan": (changed(GATE, poisoned(math.nan)), r"m1 has NaN or infinity in model\.layers\.0\.mlp\.gate_proj"),
    "infinity": (changed(NORM, poisoned(-math.inf)), r"m1 has NaN or infinity in model\.norm\.weight"),
    "integers": (
        changed(NORM, lambda x: x.to(torch.int8)),
        r"norm\.weight of type I8; only bf16, fp16 and fp32",
    ),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "model.safetensors does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    """In one line that names the difference, with nothing left behind."""
    paths = models(tmp_path, 2)
    damage, message = REFUSED[case]
    damage(paths[1])
    with pytest.raises(ConversionError, match=message) as error:
        combine(recipes.average(paths, tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1"]


def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output there already, small disk, foreign files, values that fp16 cannot hold; nothing left behind."""
    paths = models(tmp_path, 2)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConversionError, match="there already exists"):
        combine(recipes.average(paths, tmp_path / "there"))
    with pytest.raises(ConversionError, match="elsewhere is not one of the merged models"):
        combine(recipes.average(paths, tmp_path / "out"), files_from=tmp_path / "elsewhere")
    changed(NORM, poisoned(1e6))(paths[0])
    with pytest.raises(ConversionError, match=r"model\.norm\.weight that float16 cannot hold"):
        combine(recipes.average(paths, tmp_path / "out"), dtype="fp16")
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    combine(recipes.average(paths, tmp_path / "small"))  # 13 kB
    with pytest.raises(ConversionError, match="are free; make room"):
        combine(recipes.wise_ft(*paths, [0.3, 0.5], f"{tmp_path}/w"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1", "small", "there"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["average", "a", "--output", "o"], r"1 model\(s\) are given, and a merge needs at least 2"),
        (["average", "a", "./a", "--output", "o"], "a is given twice"),
        (["weighted", "a=0.5", "b=0.6", "--output", "o"], "weights sum to 1.1, and must sum to 1"),
        (
            ["weighted", "a=0.5", "b=-0.5", "--normalize", "--output", "o"],
            "weights sum to 0, and --normalize",
        ),
        (["weighted", "a=nan", "b=1", "--output", "o"], "must be finite"),
        (["weighted", "a=x", "b=1", "--output", "o"], "'x' in 'a=x' must be a number"),
        (["weighted", "a", "b", "--output", "o"], "'a' must be MODEL=WEIGHT"),
        (["wise-ft", "a", "b", "--alpha", "1.5", "--output-prefix", "o"], "--alpha 1.5 is outside 0 to 1"),
        (["wise-ft", "a", "b", "--alpha", "nan", "--output-prefix", "o"], "--alpha nan is outside 0 to 1"),
        (["wise-ft", "a", "b", "--alpha", ".5,0.5", "--output-prefix", "o"], "must name each value once"),
        (["task-vector", "a", "--add", "b", "--output", "o"], "'b' must be TUNED:BASE"),
        (["task-vector", "a", "--add", "b:b", "--output", "o"], "b:b adds nothing"),
        (["task-vector", "a", "--add", "b:c:inf", "--output", "o"], "must have a finite scale"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any file is looked at."""
    assert main(["merge-weights", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.replace("\\", "") in line


def test_weights_written_in_decimals_count_as_one(tmp_path: Path) -> None:
    """0.333333 three times; and --normalize takes any."""
    paths = [Path(name) for name in "abc"]
    near = recipes.weighted([(path, 0.333333) for path in paths], tmp_path)
    assert near.outputs[0].shares == pytest.approx((1 / 3,) * 3, abs=1e-15)
    normal = recipes.weighted([(paths[0], 3), (paths[1], 1)], tmp_path, normalize=True)
    assert normal.outputs[0].shares == (0.75, 0.25)


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_tokenizers_are_compared(tmp_path: Path) -> None:
    """Another end of document is a note, other ids are refused unless allowed, an absent one is a note."""
    a, b, c = (save(tmp_path / name, llama(i), tokenizer=True) for i, name in enumerate("abc"))
    assert combine(recipes.average([a, b], tmp_path / "same")) == []
    edit(b / "config.json", eos_token_id=7)
    (b / "tokenizer_config.json").unlink(missing_ok=True)
    (note,) = combine(recipes.average([a, b], tmp_path / "eos"))
    assert "give the same ids; they name other BOS or EOS tokens" in note
    tokenizer = json.loads((c / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (c / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ConversionError, match=r"the tokenizers of .*a and .*c differ .*--allow-different-tokenizers"
    ):
        combine(recipes.average([a, c], tmp_path / "out"))
    (note,) = combine(recipes.average([a, c], tmp_path / "out"), different_tokenizers=True)
    assert note.endswith("differ (allowed)")
    (c / "tokenizer.json").unlink()
    (note,) = combine(recipes.average([a, c], tmp_path / "none"))
    assert note.startswith("no tokenizer in") and "/c: not compared" in note


def test_spellings_of_one_config_are_one(tmp_path: Path) -> None:
    """transformers 4 and 5 write rotary fields differently; what does not change the weights' meaning may differ."""
    a, b = models(tmp_path, 2)
    configured(rope_theta=1e6)(a)
    configured(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, dtype="float16", use_cache=False)(
        b
    )
    assert combine(recipes.average([a, b], tmp_path / "out")) == [f"no tokenizer in {a}, {b}: not compared"]
    configured(rope_theta=1e5)(b)
    notes = combine(recipes.average([a, b], tmp_path / "allowed"), different_configs=True)
    assert "rope_theta 1000000.0 and 100000.0 (allowed)" in notes[0]


def test_a_stored_copy_of_a_tied_embedding_is_left_out(tmp_path: Path) -> None:
    """One model has it, the other not; a copy that differs is refused in the test above."""
    weights = llama(0, tied=True)
    twice = weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    a = save(tmp_path / "a", twice, tie_word_embeddings=True)
    b = save(tmp_path / "b", weights, tie_word_embeddings=True)
    combine(recipes.average([a, b], tmp_path / "out"))
    assert same_bits(load(tmp_path / "out"), weights)


def test_the_record_and_the_files_say_how_it_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """merge.json of every output; small files of the model that was named; the weights on the screen."""
    base, tuned = (
        save(tmp_path / name, llama(i), tokenizer=True) for i, name in enumerate(("base", "tuned"))
    )
    (tuned / "chat_template.jinja").write_text("hello")
    (tuned / "merge.json").write_text("{}")
    (tuned / "repair.json").write_text("{}")
    words = ["wise-ft", str(base), str(tuned), "--alpha", "0.3,0.70", "--output-prefix", str(tmp_path / "w")]
    assert main(["merge-weights", *words, "--files-from", str(tuned)]) == 0
    shown = capsys.readouterr().out
    assert f"w_0.3: +0.700000 {base}" in shown and f"w_0.7: +0.700000 {tuned}" in shown
    for alpha in (0.3, 0.7):
        out = tmp_path / f"w_{alpha}"
        record = json.loads((out / "merge.json").read_text())
        assert record["recipe"] == "wise-ft"
        assert record["weights"] == {str(base): pytest.approx(1 - alpha), str(tuned): alpha}
        assert record["inputs"][str(base)]["headers_sha256"] == record["inputs"][str(tuned)]["headers_sha256"]
        assert record["inputs"][str(base)]["tokenizer_fingerprint"]
        assert (out / "chat_template.jinja").read_text() == "hello"
        assert (out / "tokenizer.json").is_file()
        assert not (out / "repair.json").exists()


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no output of the grid, whenever it comes."""
    paths = models(tmp_path, 2)
    for stop in (1, 50, random.Random(0).randrange(100, 300)):
        calls = iter(range(stop))

        def write(self: Any, block: torch.Tensor, calls: Any = calls) -> None:
            next(calls)

        with monkeypatch.context() as patch:
            patch.setattr(tensors.WeightWriter, "write", write)
            with pytest.raises((StopIteration, RuntimeError)):
                combine(recipes.wise_ft(*paths, [0.3, 0.5], f"{tmp_path}/w"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1"]
