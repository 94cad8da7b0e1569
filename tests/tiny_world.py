"""A tiny but complete world on disk, made once a session: texts, tokenizer, model, token files, checkpoint.

The end-to-end and fault tests train on it through the same files that a user has. Everything is deterministic.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rank_calls
from shared_directory import shared_directory

from cptron.testing import run_ranks
from cptron.tokens.preprocess import main as preprocess

SEQ_LENGTH = 32
STEPS = 20
CONFIG = """\
run: {{dir: {root}/unset}}
start: {{checkpoint: {root}/base}}
data:
  seq_length: 32
  sources:
    - {{name: domain, path: {root}/domain_text_document, token_share: 0.7}}
    - {{name: general, path: {root}/general_text_document, token_share: 0.3}}
  valid:
    - {{name: domain, path: {root}/domain_valid_text_document}}
    - {{name: general, path: {root}/general_valid_text_document, max_tokens: 500}}
train: {{steps: 20, global_batch_size: 8, micro_batch_size: 2, precision: fp32}}
optim: {{lr: 2.0e-3, lr_min: 1.0e-4, warmup_steps: 3, decay_steps: 20}}
eval: {{every_steps: 10}}
checkpoint: {{every_steps: 10}}
runtime: {{device: cpu, threads_per_rank: 1, timeout_s: 240}}
"""


SHORT = [
    "train.steps=6",
    "optim.warmup_steps=1",
    "eval.every_steps=3",
    "eval.micro_batch_size=4",
    "checkpoint.every_steps=3",
    "data.valid.domain.max_tokens=600",
    "data.valid.general.max_tokens=300",
]
"""Overrides for six steps, evaluated and saved after three and six."""


@dataclass(frozen=True)
class Layout:
    """How many ranks, and how they are cut."""

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    virtual_stages: int = 1
    sequence_parallel: bool = True
    """Where tp is more than 1."""

    @property
    def overrides(self) -> list[str]:
        """Configuration overrides that ask for it."""
        words = [f"parallel.tp={self.tp}", f"parallel.pp={self.pp}"]
        words += [f"parallel.cp={self.cp}"] if self.cp > 1 else []
        words += [] if self.sequence_parallel else ["parallel.sequence_parallel=false"]
        return words + ([f"parallel.virtual_stages={self.virtual_stages}"] if self.virtual_stages > 1 else [])

    def __str__(self) -> str:
        parts = [f"tp{self.tp}"] if self.sequence_parallel else [f"tp{self.tp}", "nosp"]
        parts += [f"cp{self.cp}"] if self.cp > 1 else []
        parts += [f"pp{self.pp}"]
        parts += [f"vp{self.virtual_stages}"] if self.virtual_stages > 1 else []
        return "_".join([*parts, f"dp{self.world_size // (self.tp * self.cp * self.pp)}"])


ONE = Layout(1)
LAYOUTS = [ONE, Layout(2, tp=2), Layout(2, pp=2), Layout(2), Layout(4, tp=2, pp=2)]


@dataclass(frozen=True)
class World:
    """Paths of everything, and how to train on it."""

    root: Path

    @property
    def config(self) -> Path:
        """YAML file; `run.dir` is set by an override."""
        return self.root / "run.yaml"

    @property
    def hugging_face(self) -> Path:
        """The base model with its tokenizer, as `transformers` saved it."""
        return self.root / "hf"

    @property
    def base(self) -> Path:
        """The base model, converted."""
        return self.root / "base"

    def corpus(self, name: str) -> Path:
        """JSONL file; `domain`, `general`, `domain_valid` or `general_valid`."""
        return self.root / f"{name}.jsonl"

    def tokens(self, name: str) -> Path:
        """Prefix of the token files of a corpus."""
        return self.root / f"{name}_text_document"

    def train(self, run_dir: Path, layout: Layout = ONE, *overrides: str) -> list[rank_calls.Outcome]:
        """`cptron train` on warm ranks; what it came to on every rank."""
        words = [f"run.dir={run_dir}", *layout.overrides, *overrides]
        return run_ranks(rank_calls.train, layout.world_size, str(self.config), words)

    def trained(self, run_dir: Path, layout: Layout = ONE, *overrides: str) -> Path:
        """`train` that must succeed on every rank; returns the run directory."""
        outcomes = self.train(run_dir, layout, *overrides)
        errors = [outcome.error for outcome in outcomes if outcome.error]
        assert not errors, errors[0]
        assert not any(outcome.code for outcome in outcomes), "stopped before its end"
        return run_dir


def interrupted(whole: Path, target: Path) -> Path:
    """Copy of a run that a crash before its last save left: later metrics, no later checkpoint."""
    shutil.copytree(whole, target)
    shutil.rmtree(max((target / "checkpoints").iterdir()))
    return target


def command(*arguments: str | Path) -> rank_calls.Outcome:
    """Any other `cptron` command on a warm rank."""
    return run_ranks(rank_calls.command, 1, [str(argument) for argument in arguments])[0]


def write_corpus(path: Path, topics: Sequence[str], num_documents: int, seed: int) -> Path:
    """JSONL of sentences over a few words, some not ASCII, with empty documents among them."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_documents):
            words = [draw.choice(topics) for _ in range(draw.randint(5, 60))]
            text = "" if number % 25 == 7 else " ".join(words).capitalize() + "."
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path


def save_tokenizer(directory: Path, corpora: Sequence[Path], vocab_size: int) -> None:
    """Train a byte-level BPE and save it as a Hugging Face fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(corpus) for corpus in corpora], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(directory)


def save_model(directory: Path, seed: int) -> None:
    """A random Llama; larger weights than usual make differences show."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 300,  # no multiple of 128: padding columns must not matter
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
        "bos_token_id": None,
    }
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(directory)


def tokenize(corpus: Path, tokenizer: Path, *flags: str) -> Path:
    """`cptron preprocess` beside the corpus; returns the prefix."""
    prefix = corpus.with_suffix("")
    arguments = ["--input", str(corpus), "--tokenizer-model", str(tokenizer), "--output-prefix", str(prefix)]
    assert preprocess([*arguments, "--workers", "1", *flags]) == 0
    return prefix.with_name(f"{prefix.name}_text_document")


def make_world(root: Path) -> World:
    """Everything, in the empty directory `root`."""
    world = World(root)
    domain = ["ledger", "vacuum", "tuple", "index", "query", "planner", "größer", "rollback", "commit"]
    general = ["river", "bridge", "winter", "music", "garden", "été", "letter", "winter", "stone", "bird"]
    for name, topics, num_documents, seed in (
        ("domain", domain, 150, 1),
        ("general", general, 120, 2),
        ("domain_valid", domain, 30, 3),
        ("general_valid", general, 30, 4),
    ):
        write_corpus(world.corpus(name), topics, num_documents, seed)
    save_model(world.hugging_face, seed=0)
    save_tokenizer(world.hugging_face, [world.corpus("domain"), world.corpus("general")], vocab_size=280)
    for name in ("domain", "general", "domain_valid", "general_valid"):
        tokenize(world.corpus(name), world.hugging_face, "--append-eod")
    made = run_ranks(rank_calls.command, 1, ["convert", str(world.hugging_face), str(world.base)])[0]
    assert not made.error, made.error
    world.config.write_text(CONFIG.format(root=world.root))
    return world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny world. Nobody changes it: tests that damage something copy it first."""
    return World(shared_directory(tmp_path_factory, "world", make_world))


class WholeRuns(dict[Layout, Path]):
    """Each is trained when it is asked for."""

    def __init__(self, world: World, factory: pytest.TempPathFactory) -> None:
        self._world, self._factory = world, factory

    def __missing__(self, layout: Layout) -> Path:
        def train(directory: Path) -> None:
            self._world.trained(directory / "run", layout)

        self[layout] = shared_directory(self._factory, f"whole_{layout}", train) / "run"
        return self[layout]


@pytest.fixture(scope="session")
def whole_runs(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """Uninterrupted runs of 20 steps by layout, with checkpoints and evaluations at steps 10 and 20. Nobody changes
    them."""
    return WholeRuns(world, tmp_path_factory)
