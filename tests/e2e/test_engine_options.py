"""What the engine can be asked for beside tensor, pipeline and data parallelism, through the command line.

Runs of six steps; the plain one, on one rank, is what the others are compared with.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import assert_close, call, cptron, error_lines, evals, steps
from tiny_world import ONE, SEQ_LENGTH, SHORT, Layout, World, command, interrupted

from cptron.data.source import TokenSource

CUT = [
    Layout(2, cp=2),
    Layout(2, tp=2),
    Layout(2, pp=2, virtual_stages=2),
    Layout(4, tp=2, cp=2),
]
NO_EVAL = ("eval.at_start=false", "eval.every_steps=0", "checkpoint.every_steps=0")
LOSS = "loss_nats_per_token"


@pytest.fixture(scope="module")
def plain(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on one rank, with checkpoints and evaluations at steps 3 and 6."""
    return world.trained(tmp_path_factory.mktemp("plain") / "run", ONE, *SHORT)


@pytest.fixture(scope="module")
def whole_of(world: World, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Layout], Path]:
    """The same run by a layout, made when it is asked for first."""
    root = tmp_path_factory.mktemp("cut")

    @functools.cache
    def made(layout: Layout) -> Path:
        return plain if layout == ONE else world.trained(root / str(layout), layout, *SHORT)

    return made


def losses(run: Path) -> list[float]:
    """Loss of each step."""
    return [record[LOSS] for record in steps(run)]


def evaluated(checkpoint: Path, data: Path, *flags: str, kind: str = "checkpoint") -> dict[str, Any]:
    """What `cptron eval` prints."""
    words: list[str | Path] = ["--data", data, "--seq-length", str(SEQ_LENGTH), "--max-tokens", "800", *flags]
    done = command("eval", f"--{kind}", checkpoint, *words)
    assert done.error == ""
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def weights(directory: Path) -> dict[str, Any]:
    """Tensors of a Hugging Face model."""
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


# 1. layouts


def test_samples_hold_several_documents(world: World) -> None:
    """Else the equalities below would not show that every rank masks documents."""
    source = TokenSource("domain", str(world.tokens("domain")), SEQ_LENGTH, 1234)
    assert sum(len(source.spans(cursor)) > 1 for cursor in range(6 * 5)) >= 3


@pytest.mark.parametrize(
    "layout", [*(pytest.param(cut, marks=pytest.mark.more) for cut in CUT[:2]), *CUT[2:]], ids=str
)
def test_every_layout_gives_the_same_run(
    layout: Layout, plain: Path, whole_of: Callable[[Layout], Path]
) -> None:
    """Losses, gradient norms and validation losses within 1e-4."""
    assert_close(steps(whole_of(layout)), steps(plain))
    assert_close(evals(whole_of(layout)), evals(plain))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(CUT[0], CUT[2], marks=pytest.mark.more),
        (CUT[2], CUT[3]),
        pytest.param(CUT[3], ONE, marks=pytest.mark.more),
    ],
    ids=lambda layout: str(layout),
)
def test_a_checkpoint_goes_on_under_another_layout(
    before: Layout,
    after: Layout,
    world: World,
    plain: Path,
    whole_of: Callable[[Layout], Path],
    tmp_path: Path,
) -> None:
    """The second half continues the curve."""
    whole = whole_of(before)
    run = world.trained(interrupted(whole, tmp_path / "run"), after, *SHORT)
    assert steps(run)[:3] == steps(whole)[:3]
    assert_close(steps(run), steps(plain))
    assert_close(evals(run), evals(plain))


def test_documents_positions_and_targets_survive_every_cut(world: World, tmp_path: Path) -> None:
    """Positions and targets of documents are also right on ranks that read no token or a part of each row."""
    words = [*SHORT, "attention.document_mask=false", "attention.reset_positions=true"]
    words += ["data.eod_mask_loss=true", "train.steps=3"]
    alone = world.trained(tmp_path / "alone", ONE, *words)
    run = world.trained(tmp_path / "cut", CUT[3], *words)
    assert_close(steps(run), steps(alone))
    assert_close(evals(run), evals(alone))


# 2. documents


def test_documents_count(world: World, plain: Path, tmp_path: Path) -> None:
    """Masks and positions change the loss, and `eod_mask_loss` the number of targets.

    No sample of the first step crosses documents, so the second is compared, which starts from equal weights.
    Positions are relative: to start them anew matters where documents see each other only.
    """
    few = [*SHORT, "train.steps=2"]
    off = ["attention.document_mask=false"]
    reset = ["attention.reset_positions=true"]
    unmasked = world.trained(tmp_path / "off", ONE, *few, *off)
    assert losses(unmasked)[1] != pytest.approx(losses(plain)[1], rel=1e-4)
    unmasked_reset = world.trained(tmp_path / "off_reset", ONE, *few, *off, *reset)
    assert losses(unmasked_reset)[1] != pytest.approx(losses(unmasked)[1], rel=1e-4)
    masked_reset = world.trained(tmp_path / "reset", ONE, *few, *reset)
    assert losses(masked_reset) == pytest.approx(losses(plain)[:2], rel=1e-5)
    eod = world.trained(tmp_path / "eod", ONE, *few, "data.eod_mask_loss=true")
    for ours, theirs in ((steps(eod)[1], steps(plain)[1]), (evals(eod)[0], evals(plain)[0])):
        counts = [key for key in ours if key == "tokens_total" or key.endswith("/tokens")]
        assert all(ours[key] <= theirs[key] for key in counts)
        assert any(ours[key] < theirs[key] for key in counts)
    assert losses(eod)[1] != pytest.approx(losses(plain)[1], rel=1e-4)


# 3. evaluation


def test_eval_equals_transformers_with_and_without_mask(world: World, plain: Path, tmp_path: Path) -> None:
    """Both forms of `cptron eval` agree within 1e-4, and the mask is no empty word."""
    exported = tmp_path / "hf"
    assert command("export", plain, exported).error == ""
    found = {}
    for flags in ((), ("--no-document-mask",)):
        ours = evaluated(plain, world.tokens("domain_valid"), *flags)
        theirs = evaluated(exported, world.corpus("domain_valid"), *flags, kind="hugging-face")
        assert ours["tokens"] == theirs["tokens"]
        assert ours[LOSS] == pytest.approx(theirs[LOSS], rel=1e-4)
        found[flags] = ours[LOSS]
    assert found[()] != pytest.approx(found["--no-document-mask",], rel=1e-4)


# 4. memory


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        pytest.param(ONE, ("memory.recompute=full", "memory.logits_chunk_tokens=5"), marks=pytest.mark.more),
        (
            ONE,
            (
                "memory.recompute=selective",
                "memory.recompute_modules=[core_attn,mlp]",
                "memory.logits_chunk_tokens=0",
            ),
        ),
        (CUT[2], ("memory.recompute=full", "memory.recompute_layers=1")),
    ],
    ids=lambda value: str(value) if isinstance(value, Layout) else value[0].partition("=")[2],
)
def test_memory_options_change_no_number(
    layout: Layout, words: tuple[str, ...], world: World, whole_of: Callable[[Layout], Path], tmp_path: Path
) -> None:
    """Losses and gradient norms of three steps within 1e-6."""
    expected = steps(whole_of(layout))[:3]
    run = world.trained(tmp_path / "run", layout, *SHORT, *NO_EVAL, "train.steps=3", *words)
    for ours, theirs in zip(steps(run), expected, strict=True):
        for key in (LOSS, "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6), key


# 5. optimizers


@pytest.mark.parametrize("choice", [pytest.param("name=sgd", marks=pytest.mark.more), "moments=bf16"])
def test_optimizers_train_and_resume(choice: str, world: World, plain: Path, tmp_path: Path) -> None:
    """They learn, differ from AdamW, go on to the bit after step 3, and elsewhere within 1e-4."""
    words = [*SHORT, f"optim.{choice}"]
    words += ["optim.lr=1.0e-1", "optim.lr_min=1.0e-2"] if choice == "name=sgd" else []
    whole = world.trained(tmp_path / "whole", ONE, *words)
    assert losses(whole)[-1] < losses(whole)[0] - 0.1
    assert losses(whole)[1:] != losses(plain)[1:]
    run = world.trained(interrupted(whole, tmp_path / "run"), ONE, *words)
    assert steps(run) == steps(whole)
    other = world.trained(interrupted(whole, tmp_path / "other"), CUT[1], *words)
    assert_close(steps(other), steps(whole))
    changed = "optim.name=adamw" if choice == "name=sgd" else "optim.name=sgd"
    refused = world.train(
        interrupted(whole, tmp_path / "changed"), CUT[1], *SHORT, changed, "optim.moments=fp32"
    )
    assert_same_line(refused, "ConfigError", "the stored state is that optimizer's")


def assert_same_line(outcomes: list[Any], *words: str) -> None:
    """Every rank says the same, in one line that holds all words."""
    (line,) = {outcome.error for outcome in outcomes}
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_groups_and_frozen_parameters(world: World, tmp_path: Path) -> None:
    """The exported embedding and a layer with rate 0 are the base model's bits, also after a resume in two stages."""
    words = [*SHORT, "optim.frozen=['*word_embeddings*', '*layernorm*']"]
    words += ["optim.groups=[{match: 'decoder.layers.1.*', lr_mult: 0.0}]"]
    whole = world.trained(tmp_path / "whole", ONE, *words)
    run = world.trained(interrupted(whole, tmp_path / "run"), CUT[2], *words)
    assert_close(steps(run), steps(whole))
    assert command("export", run, tmp_path / "hf").error == ""
    before, after = weights(world.hugging_face), weights(tmp_path / "hf")
    kept = {name for name in before if "embed_tokens" in name or "norm" in name or ".layers.1." in name}
    assert len(kept) > 10
    assert {name for name in before if before[name].equal(after[name])} == kept
    refused = world.train(interrupted(whole, tmp_path / "thawed"), CUT[1], *SHORT)
    assert_same_line(refused, "ConfigError", "optim.frozen", "what was trained")


@pytest.mark.parametrize("layout", [pytest.param(CUT[1], marks=pytest.mark.more), CUT[2]], ids=str)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("optim.frozen=['*nowhere*']", ("optim.frozen='*nowhere*'", "fits no parameter")),
        ("optim.groups=[{match: layers.9, lr_mult: 2}]", ("'layers.9'", "fits no trained parameter")),
        ("optim.frozen=['*']", ("nothing would be trained",)),
    ],
    ids=["frozen", "groups", "all"],
)
def test_idle_patterns_are_refused_on_every_rank(
    words: str, expected: tuple[str, ...], layout: Layout, world: World, tmp_path: Path
) -> None:
    """One line that names the pattern, and nothing is left behind."""
    assert_same_line(world.train(tmp_path / "run", layout, *SHORT, words), "ConfigError", *expected)
    assert not (tmp_path / "run").exists()


# 6. FP8


@pytest.mark.more
@pytest.mark.parametrize(("recipe", "layout"), [("tensorwise", ONE), ("rowwise", CUT[1])])
def test_fp8_trains_and_resumes(
    recipe: str, layout: Layout, world: World, plain: Path, tmp_path: Path
) -> None:
    """Emulated: other numbers than fp32, within 2 % of them; the second half again to the bit, or without FP8."""
    words = [*SHORT, f"fp8.recipe={recipe}", "fp8.without_hardware=emulate"]
    outcomes = world.train(tmp_path / "whole", layout, *words)
    assert [outcome.error for outcome in outcomes] == [""] * layout.world_size
    assert "its numbers are emulated" in outcomes[0].stdout
    whole = tmp_path / "whole"
    assert losses(whole) == pytest.approx(losses(plain), rel=0.02)
    assert losses(whole)[0] != pytest.approx(losses(plain)[0], rel=1e-6)
    run = world.trained(interrupted(whole, tmp_path / "run"), layout, *words)
    assert steps(run) == steps(whole)
    run = world.trained(interrupted(whole, tmp_path / "off"), ONE, *SHORT)
    assert losses(run) == pytest.approx(losses(plain), rel=0.02)


def test_fp8_without_hardware_is_refused_or_off(world: World, plain: Path, tmp_path: Path) -> None:
    """Refused in one line on every rank; `off` trains the fp32 numbers and says so."""
    outcomes = world.train(tmp_path / "refused", CUT[1], *SHORT, "fp8.recipe=tensorwise")
    assert_same_line(outcomes, "ConfigError", "fp8.recipe=tensorwise", "without_hardware=emulate")
    assert not (tmp_path / "refused").exists()
    words = ["train.steps=3", "fp8.recipe=tensorwise", "fp8.without_hardware=off"]
    (outcome,) = world.train(tmp_path / "off", ONE, *SHORT, *words)
    assert outcome.error == ""
    assert "fp8.recipe=tensorwise" in outcome.stdout and "training goes on in fp32" in outcome.stdout
    assert steps(tmp_path / "off") == steps(plain)[:3]


# 8. bad input


@pytest.mark.parametrize(
    ("ranks", "words", "expected"),
    [
        (2, ("parallel.cp=2", "data.seq_length=30"), ("data.seq_length=30", "multiple of", "use 28 or 32")),
        (8, ("parallel.tp=8",), ("parallel.tp=8", "num_kv_heads=4", "use 1, 2 or 4")),
        (
            2,
            ("parallel.pp=2", "parallel.virtual_stages=2", "train.global_batch_size=10"),
            ("train.global_batch_size=10", "use 8 or 12"),
        ),
        (2, ("parallel.pp=2", "parallel.virtual_stages=3"), ("parallel.virtual_stages=3", "2 layers")),
    ],
    ids=["cp and sequence", "tp and groups", "interleaving and batch", "interleaving and layers"],
)
def test_impossible_layouts_are_refused(
    ranks: int, words: tuple[str, ...], expected: tuple[str, ...], world: World, tmp_path: Path
) -> None:
    """One line, exit code 2, nothing left behind, before any rank starts."""
    overrides = [f"run.dir={tmp_path / 'run'}", f"parallel.local_ranks={ranks}", *words]
    done = call(cptron("train", world.config, *overrides), 240)
    assert done.returncode == 2, done.stderr
    (line,) = error_lines(done.stderr)
    assert all(word in line for word in expected), line
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_may_change_what_changes_no_weight(world: World, plain: Path, tmp_path: Path) -> None:
    """Memory options and the cut are no part of a run's identity; both at once go on with the curve."""
    copy = tmp_path / "run"
    shutil.copytree(plain, copy)
    words = ["train.steps=7", "memory.recompute=full", "parallel.sequence_parallel=false"]
    run = world.trained(copy, CUT[1], *SHORT, *words)
    assert [record["step"] for record in steps(run)] == list(range(1, 8))
