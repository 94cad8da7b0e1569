"""`cptron eval --harness`: scores on the tasks of lm-evaluation-harness, of a checkpoint or a Hugging Face model.

Place in the flow: any time; `harness_tasks` finds the tasks, `harness_engine` lets a checkpoint answer, and lm_eval
asks and scores. Invariant: both kinds of model get the same questions in the same tokens; stdout carries the JSON
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cptron.durable import replace_text
from cptron.errors import ConfigError, ConversionError
from cptron.report.console import table
from cptron.versions import installed_versions

BOOTSTRAP_DRAWS = 1000
"""For the standard error of scores that have no closed form."""


def run_harness(args: argparse.Namespace) -> None:
    """Evaluate and print. Raises `ConfigError` without lm_eval, for unknown tasks and for those that need a network."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            f"--harness={args.harness} needs the package lm_eval, not installed; pip install 'cptron[eval]'"
        )
    from cptron.evaluate.harness_tasks import load_tasks, stay_offline

    if not args.online:
        stay_offline()
    names = [name for name in args.harness.split(",") if name]
    with contextlib.redirect_stdout(sys.stderr):  # lm_eval also prints
        tasks = load_tasks(names, args.tasks_dir, args.num_fewshot, online=bool(args.online))
        with _model(args) as (model, facts):
            found = _evaluate(model, tasks, args.limit)
    report = {
        "model": facts,
        "results": found["results"],
        "groups": found.get("groups", {}),
        "task_versions": found["versions"],
        "num_fewshot": found["n-shot"],
        "num_samples": found["n-samples"],
        "limit": args.limit,
        "versions": {**installed_versions(), **{name: version(name) for name in ("lm_eval", "datasets")}},
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, default=float)
    if args.output:
        replace_text(args.output, text + "\n")
        print(_table(report))
    else:
        print(_table(report), file=sys.stderr)
        print(text, flush=True)


def _evaluate(model: Any, tasks: dict[str, Any], limit: int | None) -> Any:
    from lm_eval.evaluator import evaluate

    # this process holds the engine: lm_eval must not fork it to draw samples
    os.environ["DISABLE_MULTIPROC"] = "1"
    options = {"limit": limit, "bootstrap_iters": BOOTSTRAP_DRAWS, "log_samples": False}
    return evaluate(lm=model, task_dict=tasks, **options)


@contextlib.contextmanager
def _model(args: argparse.Namespace) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What answers, and what is reported of it."""
    if args.checkpoint:
        with _checkpoint(args) as opened:
            yield opened
    else:
        yield _hugging_face(args.hugging_face, args.micro_batch_size)


@contextlib.contextmanager
def _checkpoint(args: argparse.Namespace) -> Iterator[tuple[Any, dict[str, Any]]]:
    from cptron.checkpoint import layout
    from cptron.checkpoint.weights import open_model
    from cptron.evaluate.harness_engine import EngineLM
    from cptron.model.options import ModelOptions
    from cptron.runtime.session import open_session

    checkpoint = layout.resolve(args.checkpoint)
    manifest = layout.read_manifest(checkpoint)
    with open_session() as session:
        precision = "fp32" if session.device.kind == "cpu" else "bf16"
        model = open_model(checkpoint, ModelOptions(precision=precision), args.base)  # type: ignore[arg-type]
        facts = {
            "kind": "checkpoint",
            "path": str(checkpoint),
            "computed_by": "engine",
            "precision": precision,
            "device": session.device.kind,
            "weights_fingerprint": manifest.weights_fingerprint,
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
            "step": manifest.step,
            "tokens_total": manifest.tokens_total,
            "hugging_face_model": manifest.hugging_face_model,
        }
        directory = checkpoint / layout.HUGGING_FACE
        yield (
            EngineLM(model, manifest.arch, directory, args.micro_batch_size, session.device.torch_device),
            facts,
        )


def _hugging_face(directory: Path, batch_size: int) -> tuple[Any, dict[str, Any]]:
    """lm_eval's own `hf` model. Such a directory does not tell after which step it was exported."""
    import torch

    for pattern in ("config.json", "*.safetensors"):
        if not any(directory.glob(pattern)):
            raise ConversionError(
                f"{directory} has no {pattern}, must be a Hugging Face model of safetensors; check the path"
            )
    from lm_eval.models.huggingface import HFLM

    from cptron.evaluate.reference import load_model

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    # loaded here: HFLM itself would join the ranks of a launcher, and leave their group behind
    model, tokenizer = load_model(directory, dtype)
    facts = {
        "kind": "hugging_face",
        "path": str(directory),
        "computed_by": "transformers",
        "precision": "fp32" if device == "cpu" else "bf16",
        "device": device,
        "weight_files_sha256": _hash_of_weights(directory),
    }
    return HFLM(pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=batch_size), facts


def _hash_of_weights(directory: Path) -> str:
    """SHA-256 over the names and bytes of all weight files."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as stream:
            digest.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _table(report: dict[str, Any]) -> str:
    """One line a score."""
    rows = []
    for task, scores in report["results"].items():
        for key, value in scores.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = scores.get(f"{metric}_stderr,{name}")
            rows.append(
                [
                    task,
                    report["num_fewshot"].get(task, "-"),
                    report["num_samples"].get(task, {}).get("effective", "-"),
                    metric if name == "none" else f"{metric} ({name})",
                    _number(value),
                    _number(error),
                ]
            )
    return table(["task", "few-shot", "documents", "metric", "value", "stderr"], rows)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else "-"
