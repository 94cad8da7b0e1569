"""`cptron plan --dry-run` from the command line, and what it refuses."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from plan_cases import HUGGING_FACE_8B, LLAMA3_70B, RECIPE, recipe

from cptron import cli
from cptron.errors import ConfigError
from cptron.plan import dry_run as dry
from cptron.plan.dry_run import CATEGORIES, Wanted, ranks_to_trace, require_fit, require_traceable
from cptron.plan.dry_run_shown import dry_run_lines
from cptron.plan.gpus import GPUS
from cptron.runtime.topology import Layout, Topology

SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 4096,
}


def write_model(path: Path, **sizes: int) -> str:
    """A config.json."""
    path.write_text(json.dumps(HUGGING_FACE_8B | sizes))
    return str(path)


def test_record_of_a_small_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process for both stages; the same record as text; and a GPU that is too small."""
    model = write_model(tmp_path / "config.json", **SMALL)
    arguments = [
        "plan",
        str(RECIPE),
        "parallel.pp=2",
        "data.seq_length=1024",
        "--model",
        model,
        "--gpu",
        "h100",
    ]
    assert cli.main([*arguments, "--dry-run", "--world-size", "64", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kernels"] == "cuda" and record["layout"] == "tp2_sp_pp2_dp16"
    assert [facts["rank"] for facts in record["ranks"]] == [0, 32]
    for facts in record["ranks"]:
        assert facts["traced"]["allocated"] == sum(facts["traced"][name] for name in CATEGORIES)
        assert abs(facts["planned_over_traced"]["allocated"]) < 0.05
        for name in ("weights", "gradients", "optimizer"):
            assert abs(facts["planned_over_traced"][name]) < 0.01
        assert (
            facts["left_bytes"] > 70 * 2**30 and facts["micro_batches_traced"] < facts["micro_batches"] == 16
        )
    text = dry_run_lines(record)
    assert any("fits h100" in line for line in text) and max(map(len, text)) < 250
    too_small = replace(GPUS["h100"], memory_gib=1.0)
    with pytest.raises(ConfigError, match=r"--gpu h100: rank .* GiB more than it has"):
        require_fit([facts | {"left_bytes": -(2**30)} for facts in record["ranks"]], too_small)


@pytest.mark.more
def test_70b_on_512_ranks_within_two_minutes_and_8_gb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CPU time, since other tests may run beside it; within a twentieth of the formulas."""
    shape = {
        "hidden_size": LLAMA3_70B.hidden_size,
        "intermediate_size": LLAMA3_70B.ffn_hidden_size,
        "num_hidden_layers": LLAMA3_70B.num_layers,
        "num_attention_heads": LLAMA3_70B.num_attention_heads,
    }
    model = write_model(tmp_path / "config.json", **shape)
    layout = ["parallel.tp=8", "parallel.pp=4", "train.global_batch_size=512"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [
        "plan",
        str(RECIPE),
        *layout,
        "--model",
        model,
        "--dry-run",
        "--world-size",
        "512",
        "--gpu",
        "h100",
    ]
    assert cli.main([*arguments, "--json"]) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
    assert after.ru_maxrss * 1024 < 8e9
    record = json.loads(capsys.readouterr().out)
    assert [facts["stage"] for facts in record["ranks"]] == [0, 1, 3]
    for facts in record["ranks"]:
        assert abs(facts["planned_over_traced"]["allocated"]) < 0.05


@pytest.mark.parametrize(
    ("pp", "wanted", "ranks"),
    [
        (1, {}, [0]),
        (2, {}, [0, 32]),
        (4, {}, [0, 16, 48]),
        (4, {"all_stages": True}, [0, 16, 32, 48]),
        (4, {"rank": 63}, [63]),
    ],
)
def test_ranks_that_matter(pp: int, wanted: dict[str, int], ranks: list[int]) -> None:
    """The first, the second and the last stage."""
    topology = Topology(64, Layout(tp=2, pp=pp))
    assert ranks_to_trace(topology, Wanted(world_size=64, **wanted)) == ranks  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--rank", "64"], "--rank 64 is not one of the 64 ranks; use 0 to 63"),
        (["--dry-run", "--rank", "-1"], "--rank -1"),
        (["--dry-run", "parallel.pp=3"], "must divide the world size 64"),
        (["--dry-run", "fp8.recipe=tensorwise"], "cannot trace fp8.recipe=tensorwise; add fp8.recipe=none"),
        (["--dry-run", "--gpu", "h101"], "did you mean h100"),
        (["--dry-run", "--world-size", "0"], "--world-size 0"),
        (["--dry-run", "--fit", "fit.json"], "--fit is of the plan"),
        (["--rank", "0", "--gpu", "h100"], "--rank is for --dry-run"),
        ([], "--gpu must say which GPUs"),
    ],
)
def test_refusals(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, before any process is started."""
    usual = ["plan", str(RECIPE), "--gpus", "64", "--model", write_model(tmp_path / "config.json")]
    assert cli.main([*usual, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    "override",
    [
        "regularise.l2sp=0.1",
        "regularise.ewc=0.1",
        "regularise.agem=true",
        "memory.offload_modules=[attn_norm]",
    ],
)
def test_what_cannot_be_traced_is_named(override: str) -> None:
    """With what would take it out."""
    with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
        require_traceable(recipe(overrides=(override,)))
    require_traceable(recipe())


def test_without_torch_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that the plan does not need it."""
    monkeypatch.setattr(dry, "_is_installed", lambda name: name != "torch")
    model = write_model(tmp_path / "config.json")
    assert cli.main(["plan", str(RECIPE), "--gpus", "8", "--model", model, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs torch, not installed here" in line and "leave --dry-run out" in line
