"""How much room a run's checkpoints will take, found out before it starts.

Place in the flow: `preflight` asks; imports no torch. Invariant: a pure function of configuration, architecture and
what is on the disk; it counts what a save writes, so it is within a few percent of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cptron.checkpoint import layout
from cptron.checkpoint.marks import read_marks
from cptron.checkpoint.retention import Rules, Saved, kept
from cptron.config.schema import AdapterConfig, Config
from cptron.durable import free_bytes
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.families import family_of
from cptron.model.families.family import size_of
from cptron.model.vocab import padded_vocab_size

WEIGHT_BYTES = {"fp32": 4, "bf16": 2}
MASTER_BYTES = 4
MOMENT_BYTES = {"fp32": 4, "bf16": 2}
MOMENTS = {"adamw": 2, "sgd": 1, "muon": 2}
"""Tensors of state of a parameter, at most; with Muon a matrix has one of them."""
BLOCK_OVERHEAD_BYTES = 1024
"""Of what a tensor parallel rank stores of a tensor: its header, and its lines in the indices and the manifest."""
SMALL_FILES_BYTES = 16 << 10
"""Manifest, state and others of which there is one each."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A stored parameter; those of all layers by one name each."""

    name: str
    elements: int


def checkpoint_bytes(config: Config, arch: Architecture, base: Path | None = None) -> int:
    """Size of one checkpoint of the run. `base`: the checkpoint whose small files each of them carries on."""
    optim = config.optim
    if config.adapter.kind == "none":
        tensors = _parameters(arch, config.parallel.tp)
        trained = [
            tensor
            for tensor in tensors
            if not any(fnmatchcase(tensor.name, pattern) for pattern in optim.frozen)
        ]
    else:
        tensors = trained = _adapters(arch, config.adapter)
    moments = MOMENTS[optim.name]
    moment = MOMENT_BYTES[optim.moments if optim.name == "adamw" else "fp32"]
    of_weights = WEIGHT_BYTES[config.train.precision] * sum(tensor.elements for tensor in tensors)
    of_state = (MASTER_BYTES + moments * moment) * sum(tensor.elements for tensor in trained)
    blocks = config.parallel.tp * (len(tensors) + (1 + moments) * len(trained))
    return of_weights + of_state + BLOCK_OVERHEAD_BYTES * blocks + SMALL_FILES_BYTES + _carried(base)


def _parameters(arch: Architecture, tp: int) -> list[_Tensor]:
    """Every parameter of the model, with the rows that pad its vocabulary."""
    padded = padded_vocab_size(arch.vocab_size, tp)
    found = []
    for rule in family_of(arch.family).rules_for(arch):
        elements = sum(
            math.prod(padded if dim == "vocab" else size_of(dim, arch) for dim in shape)
            for shape in rule.shapes
        )
        layers = range(arch.num_layers) if "{layer}" in rule.megatron else range(1)
        found += [_Tensor(rule.megatron.format(layer=layer), elements) for layer in layers]
    return found


def _adapters(arch: Architecture, adapter: AdapterConfig) -> list[_Tensor]:
    """Every parameter of the adapters."""
    hidden, ffn = arch.hidden_size, arch.ffn_hidden_size
    query, key_value = size_of("query", arch), size_of("key_value", arch)
    shapes = {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key_value),
        "v_proj": (hidden, key_value),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, ffn),
        "up_proj": (hidden, ffn),
        "down_proj": (ffn, hidden),
    }
    found = []
    for target in adapter.targets:
        inputs, outputs = shapes[target]
        sizes = {"lora_A": adapter.rank * inputs, "lora_B": adapter.rank * outputs}
        sizes |= {"magnitude": outputs} if adapter.kind == "dora" else {}
        found += [
            _Tensor(f"decoder.layers.{layer}.{target}.{name}", size)
            for layer in range(arch.num_layers)
            for name, size in sizes.items()
        ]
    return found


def _carried(base: Path | None) -> int:
    """Size of the small files that a checkpoint of the base model holds."""
    directory = base / layout.HUGGING_FACE if base is not None else None
    if directory is None or not directory.is_dir():
        return 0
    return sum(path.stat().st_size for path in directory.iterdir())


def most_kept(config: Config, existing: list[int], marks: Mapping[int, tuple[str, ...]] | None = None) -> int:
    """How many checkpoints the run will keep at once, at most, given the steps and marks of those that it has."""
    unit = config.train.global_batch_size * config.data.seq_length
    steps = sorted({*existing, *_saves(config, max(existing, default=0))})
    rules = Rules.of(config.checkpoint)
    marks = marks or {}
    stay = kept([Saved(step, step * unit, marks=marks.get(step, ())) for step in steps], rules)
    return min(len(steps), len(stay) + rules.keep_best)


def _saves(config: Config, after: int) -> list[int]:
    """Steps at which the run will save."""
    last, every = config.train.steps, config.checkpoint.every_steps
    regular = range((after // every + 1) * every, last + 1, every) if every else range(0)
    return sorted({*regular, *([last] if last > after else [])})


def check_space(config: Config, arch: Architecture, base: Path | None) -> tuple[str, ...]:
    """A note where the disk will not hold all that the run keeps. Raises `ConfigError` where it has no room for a
    checkpoint that is written beside one that is kept, and `CheckpointError` where marks cannot be read that the run
    would ask for."""
    run = Path(config.run.dir)
    existing = [step for step, _ in layout.list_checkpoints(run / "checkpoints")]
    to_come = len(_saves(config, max(existing, default=0)))
    if not to_come:
        return ()
    size, free = checkpoint_bytes(config, arch, base), free_bytes(run)
    now = 1 if existing else min(2, to_come)
    deletes = Rules.of(config.checkpoint).delete
    marks = read_marks(run / "checkpoints") if deletes else {}
    at_once = most_kept(config, existing, marks) + (1 if deletes else 0)
    more = max(at_once - len(existing), 1)
    if free < max(now, more) * size:
        free += _left_over(run / "checkpoints")
    if free < now * size:
        beside = "two must fit, one that is written beside one that is kept" if now == 2 else "one must fit"
        raise ConfigError(
            f"run.dir={run} has {_gb(free)} free, but a checkpoint takes about {_gb(size)} and {beside}; make room or "
            "choose another run.dir"
        )
    if free < more * size:
        return (
            f"run.dir={run} has {_gb(free)} free, but checkpoints take about {_gb(size)} each, and {at_once} will be "
            f"there at once ({_gb(more * size)} more): make room, or keep fewer by checkpoint.keep_last",
        )
    return ()


def _left_over(checkpoints: Path) -> int:
    """Bytes of what a killed run was writing or deleting: the start removes it before anything is written.
    Counted where room is short, since every rank would count it."""
    found = 0
    for pattern in (".writing_*", ".removing_*"):
        for path in (path for left in checkpoints.glob(pattern) for path in left.rglob("*")):
            with suppress(OSError):  # it is gone
                found += path.lstat().st_size if path.is_file() else 0
    return found


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.2f} MB"
