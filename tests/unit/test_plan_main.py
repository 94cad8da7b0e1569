"""`cptron plan` from the command line: what it prints, that the trainer takes it, and how it refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from corpus_world import config_of, lines_of, run
from plan_cases import HUGGING_FACE_8B, LLAMA3_8B, RECIPE, ROOT

from cptron import cli
from cptron.config.check import check_config
from cptron.config.check_engine import check_shape
from cptron.config.load import load_config
from cptron.plan.shown import plan_lines
from cptron.tokens.curated import write_corpora

HEADINGS = (
    "model ",
    "cluster ",
    "speed ",
    "as written",
    "predicted fastest",
    "the run with",
    "checkpoints",
    "source ",
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A config.json."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(HUGGING_FACE_8B))
    return str(path)


def test_json_and_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both of the same record; the overrides of every layout are accepted by the trainer for that many ranks."""
    arguments = ["plan", str(RECIPE), "--gpus", "16", "--gpu", "h100", "--tokens", "50e9", "--model", model]
    assert cli.main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["predicted"] is True and record["as_written"]["fits"] is True
    assert record["model"]["parameters"] == 8_030_261_248
    assert len(record["layouts"]) == 5 < record["layouts_that_fit"]
    for layout in record["layouts"]:
        config = load_config(RECIPE, layout["overrides"]).config
        check_config(config, 16)
        check_shape(LLAMA3_8B, config)
        assert layout["memory"]["left_bytes"] > 0
        assert layout["tokens"] >= 50e9 > layout["tokens"] - 256 * 8192
        assert layout["mfu_causal"]["expected"] < layout["mfu_full"]["expected"]
    assert [source["share"] for source in record["corpus"]] == [0.7, 0.3]
    assert record["corpus"][0]["epochs"] is None
    each = record["checkpoints"]["bytes_each"]
    assert each == pytest.approx(14 * 8_030_261_248, rel=0.001)
    text = "\n".join(plan_lines(record))
    assert all(heading in text for heading in HEADINGS)
    assert record["layouts"][0]["layout"] in text and "a prediction, nothing of it measured" in text
    assert max(map(len, text.splitlines())) < 320


def test_too_small_is_refused_with_what_would_do(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line."""
    assert cli.main(["plan", str(RECIPE), "--gpus", "1", "--gpu", "h100", "--model", model]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--gpus 1 --gpu h100: no layout that fits: the leanest needs" in line
    assert "GiB more than h100 has" in line and "the smallest that fits is --gpus 2" in line
    assert "or on 1 GPUs: " in line and "adapter.kind=lora" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0"], "must be at least 1"),
        (["--gpus", "12"], "whole nodes"),
        (["--tokens", "many"], "--tokens many"),
        (["--price", "4-2"], "--price 4-2"),
        (["--interconnect", "fast"], "--interconnect fast"),
        (["--gpu", "h101"], "did you mean h100"),
        (["--calibrate", "absent/metrics.jsonl"], "does not exist"),
        (["--fit", "absent.json"], "cannot be read"),
        (["--model", "absent"], "--model=absent is not on this machine"),
        (
            ["--gpus", "64", "data.seq_length=8191", "train.global_batch_size=1"],
            "no layout that the trainer accepts",
        ),
        (["--gpu-file", "absent.yaml"], "absent.yaml"),
        (
            ["--gpu", "a100", "fp8.recipe=tensorwise"],
            "--gpu a100 has no FP8 matrix products; set fp8.recipe=none",
        ),
        (["model.backend=te", "fp8.recipe=rowwise"], "fp8.recipe=rowwise is not offered by model.backend=te"),
        (["data.seq_length=262144"], "is more than the model's max_position_embeddings=131072"),
    ],
)
def test_bad_arguments(
    arguments: list[str], said: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each."""
    usual = ["--gpus", "8", "--gpu", "h100", "--model", model]
    assert cli.main(["plan", str(RECIPE), *usual, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_models_shape_has_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe's checkpoint is on the cluster, not here, and nothing declares its shape."""
    undeclared = [str(RECIPE), "model.architecture=", "--gpus", "8", "--gpu", "h100"]
    assert cli.main(["plan", *undeclared]) == 2
    assert "start.checkpoint=checkpoints/llama-3.1-8b is not on this machine" in capsys.readouterr().err


def test_corpus_of_token_files(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens and epochs of the files that are here; a limit that is exceeded is said."""
    from data_world import write_tokens

    prefix = tmp_path / "law"
    write_tokens(prefix, [3000] * 10)
    (tmp_path / "raw.jsonl").write_bytes(lines_of(["a river", "two stones"]))
    curated = run(config_of(tmp_path / "out", {"code": [str(tmp_path / "raw.jsonl")]}, []))
    write_corpora(prefix, [curated])
    overrides = [
        f"data.sources.domain.path={prefix}",
        "data.sources.domain.max_epochs=2",
        "optim.warmup_steps=0",
    ]
    arguments = ["plan", str(RECIPE), *overrides, "--gpus", "2", "--gpu", "h200", "--model", model]
    assert cli.main([*arguments, "--tokens", "2097152"]) == 0
    shown = capsys.readouterr().out
    assert "domain: the run asks for more epochs than max_epochs allows" in shown
    assert (
        f"domain was made of curated corpus {curated.fingerprint[:12]}: code 2 documents, 1.7e-05 MB\n"
        in shown + "\n"
    )
    assert cli.main([*arguments, "--tokens", "2097152", "--json"]) == 0
    source = json.loads(capsys.readouterr().out)["corpus"][0]
    assert source["tokens"] == 30_000
    (part,) = source["curated"]
    assert part == {
        "corpus": curated.fingerprint,
        "source": "code",
        "documents": 2,
        "text_bytes": 17,
        "tokens": None,
    }
    assert source["epochs"] == pytest.approx(0.7 * 2097152 / 30_000) and source["is_exhausted"] is True


def test_a_70b_on_one_node_is_refused_with_what_would_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped recipe: one line with what is missing, the smallest number of nodes, and a change that would do. Both
    are true: they plan."""
    monkeypatch.chdir(ROOT)
    asked = ["plan", "examples/recipes/llama3_70b_h100.yaml", "--gpu", "h100", "--top", "1", "--gpus"]
    assert cli.main([*asked, "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cptron: error: --gpus 8 --gpu h100: no layout that fits: the leanest needs ")
    smallest = re.search(r"the smallest that fits is --gpus (\d+); or on 8 GPUs: (.*)", line)
    assert smallest and int(smallest[1]) % 8 == 0
    changes = smallest[2].split(", or ")
    assert "adapter.kind=lora (which trains other weights)" in changes
    assert cli.main([*asked, smallest[1]]) == 0
    for change in (change.split(" (")[0] for change in changes):
        assert cli.main([*asked, "8", *shlex.split(change)]) == 0, change
