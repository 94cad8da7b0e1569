"""`cptron merge-weights`: new models as linear combinations of others. See `recipes` and `combine`.

Place in the flow: after training, before an evaluation chooses. Invariant: the weights used are printed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cptron.errors import ConversionError
from cptron.weights import recipes
from cptron.weights.recipes import Recipe

MERGEKIT = """\
TIES, DARE and SLERP: mergekit does them (pip install mergekit), on the same directories:

  mergekit-yaml ties.yaml models/merged

  # ties.yaml
  merge_method: ties            # or dare_ties, slerp
  base_model: models/base
  models:
    - {model: models/law, parameters: {weight: 0.5, density: 0.2}}
    - {model: models/medicine, parameters: {weight: 0.5, density: 0.2}}
  dtype: bfloat16
"""


def main(argv: Sequence[str]) -> int:
    """Run `cptron merge-weights RECIPE ...`."""
    args = _parser().parse_args(argv)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
    recipe = _recipe(args)

    from cptron.weights.combine import combine

    for output in recipe.outputs:
        for path, weight in zip(recipe.inputs, output.shares, strict=True):
            print(f"{output.directory}: {weight:+.6f} {path}", flush=True)
    notes = combine(
        recipe,
        dtype=args.dtype,
        files_from=args.files_from,
        different_tokenizers=args.allow_different_tokenizers,
        different_configs=args.allow_different_configs,
    )
    for note in notes:
        print(f"note: {note}")
    for output in recipe.outputs:
        print(f"{output.directory}: {recipe.name} of {len(recipe.inputs)} models")
    return 0


def _recipe(args: argparse.Namespace) -> Recipe:
    if args.recipe == "average":
        return recipes.average(args.models, args.output)
    if args.recipe == "weighted":
        return recipes.weighted([_model_weight(text) for text in args.models], args.output, args.normalize)
    if args.recipe == "wsm":
        return recipes.wsm(args.models, args.decay, args.output)
    if args.recipe == "wise-ft":
        return recipes.wise_ft(args.base, args.tuned, _alphas(args.alpha), args.output_prefix)
    if args.recipe == "residual":
        return recipes.residual(args.target, args.instruct, args.base, args.output, args.scale)
    return recipes.task_vector(args.target, [_addition(text) for text in args.add], args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron merge-weights",
        description="Hugging Face models -> a linear combination of them, streamed, on the CPU.",
        epilog=MERGEKIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    average = verbs.add_parser("average", help="mean of checkpoints")
    weighted = verbs.add_parser("weighted", help="given weights")
    wsm = verbs.add_parser("wsm", help="checkpoints merged as if the learning rate had decayed over them")
    wise = verbs.add_parser("wise-ft", help="(1 - alpha) base + alpha tuned, for several alpha")
    task = verbs.add_parser("task-vector", help="target + scale (tuned - base)")
    residual = verbs.add_parser("residual", help="an instruct model: target + scale (instruct - base)")
    for verb in (average, wsm):
        verb.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="directory; oldest first")
    weighted.add_argument("models", nargs="+", metavar="MODEL=WEIGHT", help="directory and its weight")
    weighted.add_argument("--normalize", action="store_true", help="divide the weights by their sum")
    wsm.add_argument("--decay", choices=tuple(recipes.DECAYS), default="1-sqrt", help="default: 1-sqrt")
    wise.add_argument("base", type=Path)
    wise.add_argument("tuned", type=Path)
    wise.add_argument("--alpha", required=True, metavar="A,A,...", help="parts of tuned, such as 0.3,0.5,0.7")
    wise.add_argument("--output-prefix", required=True, help="new directories PREFIX_ALPHA")
    task.add_argument("target", type=Path)
    task.add_argument("--add", action="append", required=True, metavar="TUNED:BASE[:SCALE]")
    residual.add_argument("target", type=Path, help="trained on from BASE")
    residual.add_argument(
        "--instruct", type=Path, required=True, help="gives config, tokenizer and chat template too"
    )
    residual.add_argument("--base", type=Path, required=True, help="what both were made of")
    residual.add_argument("--scale", type=float, default=1.0, help="default: 1")
    for verb in (average, weighted, wsm, task, residual):
        verb.add_argument("--output", type=Path, required=True, help="new directory")
    for verb in (average, weighted, wsm, wise, task, residual):
        _add_common(verb)
    return parser


def _add_common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--dtype",
        choices=("stored", "bf16", "fp16", "fp32"),
        default="stored",
        help="default: as the first model stores each tensor",
    )
    verb.add_argument(
        "--files-from",
        type=Path,
        metavar="MODEL",
        help="which of the models gives config, tokenizer and chat template (default: the first; residual: INSTRUCT)",
    )
    verb.add_argument(
        "--allow-different-tokenizers", action="store_true", help="merge although ids mean different tokens"
    )
    verb.add_argument(
        "--allow-different-configs", action="store_true", help="merge although config.json differs"
    )


def _model_weight(text: str) -> tuple[Path, float]:
    path, _, weight = text.rpartition("=")
    if not path:
        raise ConversionError(f"{text!r} must be MODEL=WEIGHT; add the weight")
    return Path(path), _number(weight, text)


def _addition(text: str) -> tuple[Path, Path, float]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise ConversionError(f"--add {text!r} must be TUNED:BASE or TUNED:BASE:SCALE; correct it")
    return Path(parts[0]), Path(parts[1]), _number(parts[2], text) if len(parts) == 3 else 1.0


def _alphas(text: str) -> list[float]:
    return [_number(part, text) for part in text.split(",")]


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConversionError(f"{text!r} in {whole!r} must be a number; correct it") from None
