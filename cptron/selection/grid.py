"""Interpolations of a checkpoint with its base (WiSE-FT), evaluated on the very windows of its run.

Place in the flow: `cptron select --wise-ft`: a candidate -> Hugging Face directories, one for each alpha -> points for
`rules`. Invariant: nothing is merged before the base's weights have given the losses that the run's base has on record;
memory is that of one model, whatever the number of alphas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.checkpoint.in_use import reading
from cptron.checkpoint.weights import load_weights
from cptron.config.load import load_values
from cptron.config.schema import Config
from cptron.convert.direct import fill, start_from
from cptron.convert.hf_export import export_hugging_face
from cptron.convert.safetensors_io import ModelReader
from cptron.data.windows import WindowSet
from cptron.errors import CheckpointError, ConfigError, DataError
from cptron.evaluate.perplexity import evaluate_set
from cptron.forgetting.evaluation import Evaluation, write_evaluation
from cptron.forgetting.sets import evaluated_sets
from cptron.model.architecture import Architecture
from cptron.model.build import build_model
from cptron.model.options import ModelOptions
from cptron.runtime.session import open_session
from cptron.selection.candidates import Candidate, Survey, point_of, suite_sets
from cptron.selection.rules import Point
from cptron.weights.combine import combine
from cptron.weights.recipes import wise_ft

TOLERANCE_NATS = {"fp32": 1e-3, "bf16": 1e-2}
"""How far a set's loss may be from the record: other devices and layouts add in another order."""


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One interpolation."""

    point: Point
    alpha: float
    path: Path
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Grid:
    """All of them."""

    of: Candidate
    base: Path
    """The base's weights: a checkpoint or a Hugging Face directory."""
    base_differs_nats: float
    """By how much the base's loss on a set differs from the record, at most."""
    points: list[GridPoint]
    notes: list[str]


def make_grid(of: Candidate, alphas: Sequence[float], output: Path, base: Path | None, found: Survey) -> Grid:
    """Write the models base + alpha (of - base) to `output`/alpha_ALPHA and evaluate each. `base`: where the base's
    weights are, if not where the checkpoint's manifest says. Raises a `CptronError`."""
    with reading(of.path):
        return _make_grid(of, alphas, output, base, found)


def _make_grid(
    of: Candidate, alphas: Sequence[float], output: Path, base: Path | None, found: Survey
) -> Grid:
    manifest = layout.read_manifest(of.path)
    config = load_values(manifest.config, f"the configuration of {of.path}").config
    sets = evaluated_sets(config, manifest.arch.vocab_size)
    _require_same_windows(sets, of)
    if output.exists():
        raise ConfigError(f"--output={output} already exists; name a new directory, or remove it")
    bases = [base] if base else _bases(manifest, config)
    with open_session(seed=config.run.seed) as session:
        options = ModelOptions(
            precision="bf16" if manifest.precision == "bf16" else "fp32",
            attention=config.attention,
            random_weights=False,
        )
        engine = _Engine(
            build_model(manifest.arch, options), sets, session.device.torch_device, of.evaluation
        )
        weights, differs = _proven_base(bases, engine, found, options.precision)
        output.mkdir(parents=True)
        recipe = wise_ft(
            _as_hugging_face(weights, output / "base", options.precision),
            _as_hugging_face(of.path, output / "tuned", options.precision),
            alphas,
            str(output / "alpha"),
        )
        notes = combine(recipe, dtype=options.precision, files_from=recipe.inputs[1])
        points = []
        for alpha, made in zip(alphas, recipe.outputs, strict=True):
            evaluation = engine.evaluate(made.directory)
            write_evaluation(made.directory.with_name(f"{made.directory.name}.losses"), evaluation.to_bytes())
            point = point_of(str(made.directory), evaluation, found.base, found.how)
            points.append(GridPoint(point, alpha, made.directory, evaluation))
    return Grid(of, weights, differs, points, notes)


class _Engine:
    """One model in memory, filled with one set of weights after another."""

    def __init__(self, model: Any, sets: Sequence[WindowSet], device: Any, pattern: Evaluation) -> None:
        self._model, self._sets, self._device, self._pattern = model, sets, device, pattern
        self.arch: Architecture = model.arch

    def evaluate(self, weights: Path) -> Evaluation:
        """Losses by window of a checkpoint or of a Hugging Face directory."""
        if _is_checkpoint(weights):
            load_weights(weights, [self._model])
        else:
            fill([self._model], ModelReader(weights))
        sets = {}
        for found in self._sets:
            if found.name in self._pattern.sets:
                losses = evaluate_set([self._model], found, self._device)
                known = self._pattern.sets[found.name]
                sets[found.name] = replace(known, nats_W=losses.nats_W, tokens_W=losses.tokens_W)
        return replace(self._pattern, sets=sets)


def _require_same_windows(sets: Sequence[WindowSet], of: Candidate) -> None:
    facts = {found.name: found.facts.windows for found in sets}
    for name, known in suite_sets(of.evaluation).items():
        if facts.get(name) != known.facts.windows:
            raise DataError(
                f"set {name} has other tokens or windows than {of.path} was evaluated on; restore its token files"
            )


def _bases(manifest: layout.Manifest, config: Config) -> list[Path]:
    """Where the base may be, the most likely first. Raises `ConfigError` where nothing is left of it."""
    named = [Path(path) for path in manifest.lineage if _is_checkpoint(Path(path))]
    if config.start.hugging_face:
        named.append(Path(config.start.hugging_face))
    there = [path for path in named if path.is_dir()]
    if not there:
        started = ", ".join(manifest.lineage) or "random weights"
        raise ConfigError(
            f"the base's weights are not there (the run started from {started}); name them with --wise-ft-base"
        )
    return there


def _proven_base(bases: Sequence[Path], engine: _Engine, found: Survey, precision: str) -> tuple[Path, float]:
    """The first whose losses are those that the base has on record, and by how much they differ at most."""
    tried = []
    for path in bases:
        _require_same_shape(path, engine)
        differs, name = _difference(engine.evaluate(path), found.base)
        if differs <= TOLERANCE_NATS[precision]:
            return path, differs
        tried.append(f"{path} differs by {differs:.4f} nats per token on {name}")
    raise CheckpointError(
        f"no weights have the losses of {found.base_path}, which changes are counted from: {'; '.join(tried)} "
        f"(tolerance {TOLERANCE_NATS[precision]:g}); name the base's weights with --wise-ft-base"
    )


def _require_same_shape(path: Path, engine: _Engine) -> None:
    arch = layout.read_manifest(path).arch if _is_checkpoint(path) else start_from(path)[0]
    if arch != engine.arch:
        raise ConfigError(f"{path} is a model of another architecture than the checkpoint; name its base")


def _difference(now: Evaluation, base: Evaluation) -> tuple[float, str]:
    """The largest difference of a set's loss, and the set."""
    differences = []
    for name, found in suite_sets(now).items():
        recorded = base.sets[name]
        if recorded.facts.windows != found.facts.windows:
            raise ConfigError(
                f"the base was evaluated on set {name} under another tokenizer, so that its weights cannot be "
                "interpolated with those of the checkpoint; leave --wise-ft out"
            )
        differences.append((abs(found.loss_nats_per_token - recorded.loss_nats_per_token), name))
    return max(differences)


def _as_hugging_face(weights: Path, target: Path, precision: str) -> Path:
    """A checkpoint is exported; a Hugging Face directory is taken as it is."""
    if not _is_checkpoint(weights):
        return weights
    with reading(weights):
        export_hugging_face(weights, target, "bf16" if precision == "bf16" else "fp32")
    return target


def _is_checkpoint(path: Path) -> bool:
    return (path / layout.MANIFEST).is_file()
