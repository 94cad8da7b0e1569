"""What a merge is: every recipe is a linear combination of models, given by its weights.

Place in the flow: `cptron merge-weights` makes a recipe, `combine` computes it. Pure arithmetic, no torch. Invariant:
the weights of an average sum to one; those of a task vector or a residual sum to the one of its target.

| recipe | formula |
|---|---|
| average | mean of the models (LAWA; Kaddour 2022) |
| weighted | any weights that sum to one |
| wsm | weights that emulate the decay of a learning rate (Tian et al. 2025, arXiv 2507.17634) |
| wise-ft | (1 - alpha) base + alpha tuned (Wortsman et al. 2022) |
| task-vector | target + sum of scale (tuned - base) (Ilharco et al. 2023) |
| residual | target + scale (instruct - base), an instruct model (arXiv 2410.10739) |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from cptron.errors import ConversionError, either

SUM_TOLERANCE = 1e-5
"""How far from one the sum of given weights may be; they are written by hand, in decimals."""

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda r: 1 - r,
    "cosine": lambda r: 0.5 * (1 + math.cos(math.pi * r)),
    "1-sqrt": lambda r: 1 - math.sqrt(r),
}
"""Multiplier of the learning rate by the part `r` of the decay that is done: from one to zero."""


@dataclass(frozen=True, slots=True)
class Output:
    """One model to write: the sum of `weights` times the recipe's inputs, divided by `divisor`."""

    directory: Path
    weights: tuple[float, ...]
    divisor: float = 1.0
    """Apart, because a sum of whole multiples is exact where one of thirds is not."""

    @property
    def shares(self) -> tuple[float, ...]:
        """What each input counts."""
        return tuple(weight / self.divisor for weight in self.weights)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Inputs, each read once, and all that is made of them."""

    name: str
    inputs: tuple[Path, ...]
    outputs: tuple[Output, ...]
    settings: dict[str, object] = field(default_factory=dict)
    """What was asked for, for the record."""
    files_from: Path | None = None
    """The input whose config, tokenizer and chat template are carried, unless another is named; None: the first."""


def average(models: Sequence[Path], output: Path) -> Recipe:
    """The mean of checkpoints."""
    inputs = _distinct(models)
    return Recipe("average", inputs, (Output(output, (1.0,) * len(inputs), len(inputs)),))


def weighted(models: Sequence[tuple[Path, float]], output: Path, normalize: bool = False) -> Recipe:
    """Given weights, which must sum to one unless `normalize` makes them."""
    inputs = _distinct([path for path, _ in models])
    weights = [weight for _, weight in models]
    if not all(map(math.isfinite, weights)):
        raise ConversionError(f"weights {weights} must be finite numbers; correct them")
    total = math.fsum(weights)
    if normalize and total <= 0:
        raise ConversionError(f"weights sum to {total:g}, and --normalize needs a sum above 0; correct them")
    if not normalize and abs(total - 1) > SUM_TOLERANCE:
        raise ConversionError(
            f"weights sum to {total:g}, and must sum to 1, or the merged model is scaled; correct them, or add "
            "--normalize to divide by the sum"
        )
    return Recipe("weighted", inputs, (Output(output, tuple(weights), total),), {"normalize": normalize})


def wsm(models: Sequence[Path], decay: str, output: Path) -> Recipe:
    """Checkpoints of a constant learning rate, oldest first, merged as if it had decayed over them."""
    inputs = _distinct(models)
    return Recipe("wsm", inputs, (Output(output, wsm_weights(len(inputs), decay)),), {"decay": decay})


def wsm_weights(num_models: int, decay: str) -> tuple[float, ...]:
    """Weight of checkpoint j of N: what the decay falls from j/N to (j + 1)/N.

    The updates between checkpoints j - 1 and j are in all checkpoints from j on, so the sum of their weights,
    decay(j/N), is their multiplier. `linear` therefore gives equal weights.
    """
    if decay not in DECAYS:
        raise ConversionError(f"--decay {decay} is not known; use {either(list(DECAYS))}")
    multipliers = [DECAYS[decay](j / num_models) for j in range(num_models)] + [0.0]
    return tuple(before - after for before, after in pairwise(multipliers))


def wise_ft(base: Path, tuned: Path, alphas: Sequence[float], prefix: str) -> Recipe:
    """One interpolation for each alpha, in the directory PREFIX_ALPHA."""
    for alpha in alphas:
        if not 0 <= alpha <= 1:
            raise ConversionError(
                f"--alpha {alpha:g} is outside 0 to 1; to go beyond an end use the sub-command weighted"
            )
    if len(set(alphas)) != len(alphas) or not alphas:
        raise ConversionError(
            f"--alpha {','.join(f'{a:g}' for a in alphas)} must name each value once; correct it"
        )
    outputs = tuple(Output(Path(f"{prefix}_{alpha:g}"), (1 - alpha, alpha)) for alpha in alphas)
    return Recipe("wise-ft", _distinct([base, tuned]), outputs)


def task_vector(target: Path, additions: Sequence[tuple[Path, Path, float]], output: Path) -> Recipe:
    """`target` plus scale times (tuned - base) for each (tuned, base, scale); a model named twice is read once."""
    weights = {target.resolve(): 1.0}
    named = {target.resolve(): target}
    for tuned, base, scale in additions:
        if tuned.resolve() == base.resolve():
            raise ConversionError(f"--add {tuned}:{base} adds nothing; name a tuned model and its own base")
        if not math.isfinite(scale):
            raise ConversionError(f"--add {tuned}:{base}:{scale} must have a finite scale; correct it")
        for path, weight in ((tuned, scale), (base, -scale)):
            weights[path.resolve()] = weights.get(path.resolve(), 0.0) + weight
            named.setdefault(path.resolve(), path)
    added = [{"tuned": str(tuned), "base": str(base), "scale": scale} for tuned, base, scale in additions]
    return Recipe(
        "task-vector", tuple(named.values()), (Output(output, tuple(weights.values())),), {"add": added}
    )


def residual(target: Path, instruct: Path, base: Path, output: Path, scale: float = 1.0) -> Recipe:
    """`target`, trained on from `base`, made an instruct model by what made `instruct` of `base`; its config, tokenizer
    and chat template are those of `instruct`.

    The base is taken away first: where the target is the base, exactly nothing is left, and the sum is `instruct`.
    """
    if not math.isfinite(scale) or scale == 0:
        raise ConversionError(f"--scale {scale} must be a finite number other than 0; use 1")
    models = _distinct([target, base, instruct])
    added: dict[str, object] = {"instruct": str(instruct), "base": str(base), "scale": scale}
    return Recipe("residual", models, (Output(output, (1.0, -scale, scale)),), added, files_from=instruct)


def _distinct(models: Sequence[Path]) -> tuple[Path, ...]:
    """Two models or more, none of them twice."""
    if len(models) < 2:
        raise ConversionError(f"{len(models)} model(s) are given, and a merge needs at least 2; name more")
    seen: set[Path] = set()
    for path in models:
        if path.resolve() in seen:
            raise ConversionError(f"{path} is given twice; name each model once")
        seen.add(path.resolve())
    return tuple(models)
