"""`cptron advise` on real files: what it writes trains to its last step, and what it cannot advise on is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import records
from tiny_world import World, tokenize

from cptron.advise.main import main
from cptron.errors import CptronError
from cptron.testing import run_ranks

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def words(world: World, *more: str | Path) -> list[str]:
    """Base, new and old data of the tiny world."""
    return [
        str(word)
        for word in (
            "--base", world.base,
            "--new", f"domain={world.tokens('domain')}",
            "--replay", world.tokens("general"),
            "--valid-new", f"domain_valid={world.tokens('domain_valid')}",
            "--valid-old", f"general_valid={world.tokens('general_valid')}",
            *more,
        )
    ]  # fmt: skip


@pytest.mark.more
def test_what_is_written_trains_to_its_end(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until the limit of passes, which leaves no step out; losses measured by the engine are those of the run's own
    step 0."""
    import rank_calls

    written, run_dir = tmp_path / "run.yaml", tmp_path / "run"
    few = [
        "--new",
        f"few={world.tokens('domain_valid')}",
        "--max-epochs",
        "1.5",
        "--seq-length",
        "128",
        "--ranks",
        "4",
    ]
    arguments = words(world, "--tokens", "1B", *few, "--measure")
    call = ["advise", *arguments, "--run-dir", str(run_dir), "--output", str(written), "--json"]
    outcome = run_ranks(rank_calls.command, 1, call, timeout_s=240)[0]
    assert not outcome.error, outcome.error
    advice = json.loads(outcome.stdout)
    assert advice["shift"]["gap_nats"] is not None
    assert {source["name"] for source in advice["facts"]["replay"]} == {"general"}

    cpu = ["runtime.device=cpu", "runtime.threads_per_rank=1", "train.precision=fp32"]
    cpu += ["eval.every_steps=7", "checkpoint.every_steps=0"]
    (trained,) = run_ranks(rank_calls.train, 1, str(written), cpu, timeout_s=240)
    assert not trained.error and trained.code == 0, trained.error
    steps, evals = records(run_dir, "step"), records(run_dir, "eval")
    (chosen,) = [choice["sets"] for choice in advice["choices"] if "train.steps" in choice["sets"]]
    assert len(steps) == chosen["train.steps"] == steps[-1]["step"]
    assert 1.2 < steps[-1]["epochs/few"] <= 1.5
    first = evals[0]
    for loss in advice["facts"]["losses"]:
        assert first[f"valid/{loss['name']}/loss_nats_per_token"] == pytest.approx(
            loss["nats_per_token"], rel=1e-2
        )
    assert "forgetting/old/change_nats" in evals[-1]

    assert main([*arguments[:-1], "--output", str(tmp_path / "again.yaml")]) == 0  # without measuring
    assert "moderate shift" in capsys.readouterr().out
    with pytest.raises(CptronError, match="exists, and may have been edited"):
        main([*arguments[:-1], "--output", str(written)])


def test_a_base_is_read(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A Hugging Face directory with a template is an instruct model, unless that is denied; losses come from a file."""
    model = tmp_path / "model"
    model.mkdir()
    for path in world.hugging_face.iterdir():
        if path.suffix == ".json":
            (model / path.name).write_bytes(path.read_bytes())
    (model / "chat_template.jinja").write_text(CHAT)
    losses = tmp_path / "losses.jsonl"
    rows = [("domain_valid", 6.0, 3.0), (str(world.tokens("general_valid")), 4.0, 1.5)]
    fixed = {"perplexity": 9.0, "tokens": 7}
    with losses.open("w") as file:
        for name, nats, bits in rows:
            record = {"data": name, "loss_nats_per_token": nats, **fixed, "bits_per_byte": bits}
            file.write(json.dumps(record) + "\n")
    budget = ["--gpu-hours", "2", "--tokens-per-gpu-second", "5", "--losses", str(losses), "--json"]
    arguments = [*words(world, *budget)]
    arguments[arguments.index("--base") + 1] = str(model)
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shift"] | {"why": ""} == {"kind": "strong", "why": "", "gap_nats": 4.0, "unknown": ""}
    assert facts["facts"]["base"]["instruct"] and facts["facts"]["base"]["kind"] == "hugging_face"
    assert facts["facts"]["base"]["vocab_size"] == 300
    assert facts["facts"]["budget_tokens"] == 36_000
    assert main([*arguments, "--instruct", "no"]) == 0
    assert not json.loads(capsys.readouterr().out)["facts"]["base"]["instruct"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokens", "0"], "--tokens='0' must be a number of tokens from 1"),
        (["--tokens", "1M", "--gpu-hours", "1"], "two budgets"),
        (["--gpu-hours", "1"], "the budget is not known"),
        (["--gpu-hours", "-1", "--tokens-per-gpu-second", "5"], "must be more than 0"),
        (["--tokens", "1M", "--new", "x=absent"], "no prefix of token files"),
        (["--tokens", "1M", "--base", "absent"], "is no checkpoint"),
        (["--tokens", "1M", "--losses", "absent"], "cannot be read"),
    ],
)
def test_refusals(world: World, more: list[str], message: str) -> None:
    """One line each."""
    with pytest.raises(CptronError) as caught:
        main(words(world, *more))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_losses_and_tokenizers_are_refused(world: World, tmp_path: Path) -> None:
    """A record of a set that nobody named, damaged records, and token files of another tokenizer."""
    losses = tmp_path / "losses.jsonl"
    for line, message in (
        ('{"data": "other", "loss_nats_per_token": 2.0}', "no set that is named"),
        ('{"data": "domain_valid", "loss_nats_per_token": "2"}', "no record of"),
        ("[]", "no record of"),
        ('{"data": "domain_valid", "loss_nats_per_token": NaN}', "no record of"),
        ("", "holds no record"),
    ):
        losses.write_text(line + "\n")
        with pytest.raises(CptronError, match=message):
            main(words(world, "--tokens", "1M", "--losses", losses))
    other = tmp_path / "tokenizer"
    other.mkdir()
    from tokens_world import save_byte_tokenizer

    save_byte_tokenizer(other)
    corpus = tmp_path / "text.jsonl"
    corpus.write_text('{"text": "some words"}\n')
    prefix = tokenize(corpus, other)
    with pytest.raises(CptronError, match="was tokenized with"):
        main(words(world, "--tokens", "1M", "--new", f"text={prefix}"))
