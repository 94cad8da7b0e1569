"""Whether the trainer would take a recipe on so many ranks, asked before the job waits in a queue for its answer.

Place in the flow: `submit` calls it before anything is written. Imports no torch. Invariant: the trainer's own rules
decide; what cannot be checked here is said, not passed over.
"""

from __future__ import annotations

from pathlib import Path

from cptron.checkpoint.layout import read_manifest
from cptron.checkpoint.space import check_space
from cptron.config.check import check_config
from cptron.config.schema import Config
from cptron.data.content import open_content
from cptron.data.made_with import check_data, tokenizer_of_data
from cptron.errors import ConfigError, CptronError
from cptron.model.architecture import Architecture
from cptron.plan.cluster import Cluster, network_of
from cptron.plan.efficiency import assumed
from cptron.plan.gpus import gpu_named
from cptron.plan.layouts import require_accepted
from cptron.plan.search import estimated
from cptron.plan.shape import base_of, model_of

GIB = 1 << 30
MEMORY_ERROR = 1.05
"""The formula is within 5 % of what was measured: what is above by more is refused."""
DAY_S = 86400.0


def check_recipe(
    config: Config, *, nodes: int, ranks_per_node: int, model: Path | None, gpu: str, waits: bool
) -> list[str]:
    """Notes on what was found. `waits`: the job starts after others, which may still make its model and data, or it is
    only shown. Raises a `CptronError` where the trainer would."""
    ranks = nodes * ranks_per_node
    try:
        check_config(config, ranks)
    except ConfigError as error:
        raise ConfigError(f"on {size(nodes, ranks_per_node)}: {error}") from None
    notes = [f"{size(nodes, ranks_per_node)}: the trainer's rules accept the recipe"]
    if config.parallel.tp > ranks_per_node:
        notes.append(
            f"parallel.tp={config.parallel.tp} is more than a node's {ranks_per_node} ranks: that is slow"
        )
    if absent := _absent_start(config) if model is None else "":
        if not waits:
            raise ConfigError(
                f"{absent} is not here; make it (`cptron convert`), or name its job with --after"
            )
        notes.append(f"{absent} is not here, and not checked")
    try:
        arch = model_of(config, model)
        missing = ""
    except CptronError as error:
        if not waits:
            raise
        missing = str(error)
    if missing:
        notes.append(f"the model's shape is not checked: {missing}")
    else:
        require_accepted(config, arch, ranks)
        notes += _memory_notes(config, arch, ranks, ranks_per_node, gpu) if gpu else []
    if waits:
        return [*notes, *_data_notes(config)]
    return [*notes, *_check_files(config, arch)]


def _absent_start(config: Config) -> str:
    """Key and value of what a new run starts from, where that is not on this machine."""
    key = "hugging_face" if config.start.hugging_face else "checkpoint"
    path = config.start.hugging_face or config.start.checkpoint
    begun = (Path(config.run.dir) / "run.json").exists()
    return "" if begun or config.start.mode == "random" or Path(path).exists() else f"start.{key}={path}"


def size(nodes: int, ranks_per_node: int) -> str:
    """As people say it."""
    return f"{nodes} node{'s' * (nodes > 1)} x {ranks_per_node} rank{'s' * (ranks_per_node > 1)}"


def _check_files(config: Config, arch: Architecture) -> tuple[str, ...]:
    """Token files are whole and of the model's tokenizer, and there is room for checkpoints."""
    base = base_of(config)
    tokenizer = read_manifest(base).tokenizer_fingerprint if base is not None else ""
    notes, _ = check_data(config, arch.vocab_size, tokenizer_of_data(config, tokenizer))
    return (*notes, *check_space(config, arch, base))


def _data_notes(config: Config) -> list[str]:
    """Token files that are not there, or not whole in size, yet."""
    notes = []
    named = [(item.name, item.path) for item in config.data.sources]
    for name, path in [*named, *((item.name, item.path) for item in config.data.valid)]:
        try:
            open_content(path)
        except CptronError as error:
            notes.append(f"{name} is not checked: {error}")
    return notes


def _memory_notes(
    config: Config, arch: Architecture, ranks: int, ranks_per_node: int, name: str
) -> list[str]:
    gpu = gpu_named(name)
    cluster = Cluster(
        gpu=gpu,
        num_gpus=ranks,
        gpus_per_node=ranks_per_node,
        network_gb_per_s=network_of("ndr400", ranks_per_node),
    )
    estimate = estimated(config, arch, cluster, assumed(fp8=config.fp8.recipe != "none"))
    needed, has = estimate.memory.total / GIB, gpu.memory_bytes / GIB
    if needed > MEMORY_ERROR * has:
        raise ConfigError(
            f"on {ranks} x {name} a rank needs {needed:.1f} GiB by the formula, {name} has {has:.1f}; `cptron plan "
            f"RECIPE --gpus {ranks} --gpu {name}` shows layouts that fit"
        )
    days = config.train.steps * estimate.time.total / DAY_S
    return [
        f"predicted: {needed:.1f} of {has:.1f} GiB a GPU, {estimate.time.total:.3g} s a step, {days:.3g} days of "
        "steps in all (`cptron plan` has the ranges)"
    ]
