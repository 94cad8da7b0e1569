"""A live checkpoint scores on lm-evaluation-harness what lm_eval's own `hf` model scores on its export.

Tasks are made here, of YAML and JSONL files; nothing is fetched.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import harness_calls
import pytest
import yaml
from tiny_world import ONE, SHORT, World, command

from cptron.errors import ConfigError
from cptron.evaluate.main import main as evaluate
from cptron.testing import run_ranks

WORDS = ["ledger", "vacuum", "größer", "été", "river", "bridge", "winter", "music", "commit", "planner"]
TASKS = ("tiny_choice", "tiny_rolling", "tiny_generate")


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on one rank."""
    return world.trained(tmp_path_factory.mktemp("harness") / "run", ONE, *SHORT)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model for transformers."""
    target = tmp_path_factory.mktemp("exported") / "hf"
    assert command("export", run, target).error == ""
    return target


@pytest.fixture(scope="module")
def asked() -> dict[str, list[tuple[Any, ...]]]:
    """Requests of all lengths; some contexts and texts are longer than the model's 128 positions."""
    draw = random.Random(5)

    def text(num_words: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(num_words))

    until = {"until": [" winter", "é"], "max_gen_toks": 24}
    pairs = [(text(draw.randint(0, 12)), " " + text(draw.randint(1, 4))) for _ in range(12)]
    return {
        "loglikelihood": [*pairs, (text(90), " " + text(3)), (text(2) + "  ", text(1)), ("<eos>", text(3))],
        "loglikelihood_rolling": [(text(draw.randint(1, 30)),) for _ in range(6)] + [(text(150),)],
        "generate_until": [(text(n), until) for n in range(1, 12)]
        + [(text(90), {"until": "\n", "max_gen_toks": 8}), (text(3), {"max_gen_toks": 40})],
    }


def test_engine_answers_as_the_harness_own_model(
    run: Path, exported: Path, asked: dict[str, list[tuple[Any, ...]]]
) -> None:
    """Every score within 1e-4, every greedy flag and every generated text equal."""
    ((ours, theirs),) = run_ranks(harness_calls.answers, 1, str(run), str(exported), asked)
    for mine, other in zip(ours["loglikelihood"], theirs["loglikelihood"], strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]
    assert ours["loglikelihood_rolling"] == pytest.approx(theirs["loglikelihood_rolling"], rel=1e-6, abs=1e-3)
    assert ours["generate_until"] == theirs["generate_until"]
    lengths = {len(text) for text in ours["generate_until"]}
    assert len(lengths) > 3, "some must stop early, else stop strings are not tested"


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks with their data beside them, and one whose data is on the Hub."""
    root = tmp_path_factory.mktemp("tasks")
    draw = random.Random(1)
    lines: dict[str, list[dict[str, Any]]] = {"choice": [], "texts": []}
    for number in range(12):
        question = " ".join(draw.choice(WORDS) for _ in range(6))
        choices = [" ".join(draw.sample(WORDS, 2)) for _ in range(3)]
        lines["choice"].append({"question": question, "choices": choices, "answer": number % 3})
        lines["texts"].append({"text": " ".join(draw.choice(WORDS) for _ in range(5 + 8 * number))})
    for name, records in lines.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def task(name: str, data: str, **more: Any) -> None:
        files = {"data_files": {"test": f"{data}.jsonl"}, "cache_dir": str(root / "cache")}
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (root / f"{name}.yaml").write_text(yaml.safe_dump({**common, **more}))

    choice = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
    task("tiny_choice", "choice", output_type="multiple_choice", fewshot_split="test", **choice)
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    task("tiny_rolling", "texts", metric_list=[{"metric": name} for name in names], **rolling)
    generate = {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    task(
        "tiny_generate",
        "choice",
        generation_kwargs={"until": ["."], "max_gen_toks": 6},
        metric_list=[{"metric": "exact_match"}],
        **generate,
    )
    task("tiny_sampled", "choice", generation_kwargs={"do_sample": True, "temperature": 0.7}, **generate)
    task("tiny_remote", "choice", output_type="multiple_choice", **choice)
    remote = yaml.safe_load((root / "tiny_remote.yaml").read_text())
    remote |= {"dataset_path": "nobody/nothing", "dataset_kwargs": {}}
    (root / "tiny_remote.yaml").write_text(yaml.safe_dump(remote))
    return root


def test_scores_of_a_run_are_those_of_its_export(
    run: Path, exported: Path, tasks_dir: Path, tmp_path: Path
) -> None:
    """The same report by both kinds of model: scores, tasks, documents and few-shot examples."""
    words = ["--harness", ",".join(TASKS), "--tasks-dir", tasks_dir, "--num-fewshot", "2", "--limit", "10"]
    done = command("eval", "--checkpoint", run, *words)
    assert done.error == ""
    ours = json.loads(done.stdout)
    written = tmp_path / "scores.json"
    done = command("eval", "--hugging-face", exported, *words, "--output", written)
    assert done.error == ""
    theirs = json.loads(written.read_text())
    assert ours["results"].keys() == theirs["results"].keys() == set(TASKS)
    for task in TASKS:
        assert ours["results"][task].keys() == theirs["results"][task].keys()
        for score, value in theirs["results"][task].items():
            same = value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-4)
            assert ours["results"][task][score] == same, score
        assert ours["num_samples"][task] == {"original": 12, "effective": 10}
    assert ours["num_fewshot"] == dict.fromkeys(TASKS, 2)
    assert ours["results"]["tiny_choice"]["acc,none"] > 0
    assert ours["results"]["tiny_rolling"]["bits_per_byte,none"] > 1
    assert (ours["model"]["step"], ours["model"]["computed_by"]) == (6, "engine")
    assert ours["model"]["tokens_total"] > 0 and len(ours["model"]["weights_fingerprint"]) == 64
    assert len(theirs["model"]["weight_files_sha256"]) == 64
    assert {"lm_eval", "torch", "cptron"} <= ours["versions"].keys()
    table = done.stdout.splitlines()
    assert table[0].split() == ["task", "few-shot", "documents", "metric", "value", "stderr"]
    assert any(line.startswith("tiny_rolling") and "bits_per_byte" in line for line in table)


def test_tasks_that_cannot_be_run_are_named(run: Path, tasks_dir: Path) -> None:
    """Data on the Hub without --online, sampling on the engine: one line."""
    for task, told in (("tiny_remote", "--online"), ("tiny_sampled", "--hugging-face")):
        words = ("--harness", task, "--tasks-dir", tasks_dir)
        error = command("eval", "--checkpoint", run, *words).error
        assert error.startswith("ConfigError: ") and told in error and "\n" not in error
    assert (
        "task tiny_remote must fetch its data"
        in command("eval", "--checkpoint", run, "--harness", "tiny_remote", "--tasks-dir", tasks_dir).error
    )


def test_a_wrong_task_definition_is_one_line(run: Path, tmp_path: Path) -> None:
    """A data file that is not there."""
    files = {"data_files": {"test": "absent.jsonl"}}
    broken = {"task": "broken", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(broken))
    error = command("eval", "--checkpoint", run, "--harness", "broken", "--tasks-dir", tmp_path).error
    assert "task broken cannot be loaded" in error and "absent.jsonl" in error and "\n" not in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tasks-dir", "absent", "--harness", "a"), "--tasks-dir absent is no directory"),
        (("--harness", ","), "--harness names 0 tasks"),
        (("--harness", "a", "--output", "absent/scores.json"), "must be a file in a directory that exists"),
        (("--harness", "a", "--output", "."), "must be a file in a directory that exists"),
    ],
)
def test_what_cannot_be_done_is_refused(words: tuple[str, ...], told: str) -> None:
    """Before lm_eval is imported: no task, no place for the scores."""
    with pytest.raises(ConfigError, match=told):
        evaluate(["--checkpoint", "absent", *words])


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is opened."""
    monkeypatch.setattr("cptron.evaluate.harness.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lm_eval, not installed; pip install 'cptron\[eval\]'"):
        evaluate(["--checkpoint", "absent", "--harness", "tiny_choice"])
