"""The quickstart: continue the pretraining of a real model on real text, on this machine, in one go.

Usage: python examples/quickstart/run.py     (from the repository root; `make demo` fetches the model first)

Every stage is a `cptron` command that is printed before it runs. The result is judged by `transformers`
alone: the exported model must predict held-out pages of the new domain better by 0.15 nats per token, and
general text no worse than by 0.05.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.config.load import load_config
from cptron.report.console import table
from cptron.report.html import write_report
from cptron.report.sinks import read_records

CONFIG = Path("examples/quickstart/quickstart.yaml")
DATA = Path("examples/quickstart/data")
MODEL = Path(".cache/smollm2-135m")
RUN = Path("runs/quickstart")
WORK = Path("runs/quickstart.work")
EXPORTED = WORK / "exported"
CORPORA = {"postgresql": "postgresql_docs_en", "wikipedia": "wikipedia_vital_en"}
DOMAIN, GENERAL = "postgresql", "wikipedia"
MIN_DOMAIN_GAIN_NATS = 0.15
MAX_GENERAL_LOSS_NATS = 0.05


def cptron(*arguments: str | Path, capture: bool = False) -> str:
    """Run one `cptron` command; ends the demo when it fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ cptron {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "cptron.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def valid_file(corpus: str) -> Path:
    """Held-out documents of a corpus."""
    return DATA / f"{CORPORA[corpus]}.valid.jsonl.gz"


def stage(number: int, title: str) -> None:
    """Announce a stage."""
    print(f"\n[{number}/7] {title}", flush=True)


def preprocess() -> None:
    """Tokenize all four files with the model's tokenizer."""
    for corpus, stem in CORPORA.items():
        for split in ("train", "valid"):
            cptron(
                *("preprocess", "--input", DATA / f"{stem}.{split}.jsonl.gz", "--append-eod"),
                *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", MODEL),
                *("--output-prefix", WORK / f"{corpus}_{split}", "--workers", "2"),
            )


def transformers_losses(model: Path, seq_length: int, max_tokens: int) -> dict[str, float]:
    """Held-out loss of a Hugging Face model by corpus, measured by `transformers` without the engine."""
    output = cptron(
        *("eval", "--hugging-face", model, "--data", *(valid_file(corpus) for corpus in CORPORA)),
        *("--seq-length", str(seq_length), "--max-tokens", str(max_tokens)),
        capture=True,
    )
    records = [json.loads(line) for line in output.splitlines()]
    return {corpus: record["loss_nats_per_token"] for corpus, record in zip(CORPORA, records, strict=True)}


def trainer_losses() -> tuple[dict[str, float], dict[str, float]]:
    """The trainer's own validation losses at step 0 and at the end."""
    evals = [record for record in read_records(RUN / "metrics.jsonl") if record["kind"] == "eval"]
    first, last = evals[0], evals[-1]
    assert first["step"] == 0
    pick = {corpus: f"valid/{corpus}/loss_nats_per_token" for corpus in CORPORA}
    return {c: first[key] for c, key in pick.items()}, {c: last[key] for c, key in pick.items()}


def summarize(
    before: dict[str, float], after: dict[str, float], logit_difference: float, wall_s: float
) -> dict[str, Any]:
    """Everything worth keeping of this demo, for `summary.json`."""
    checkpoint = layout.resolve(str(RUN))
    manifest = layout.read_manifest(checkpoint)
    ledger = json.loads((checkpoint / layout.STATE).read_text())["ledger"]["entries"]
    start, end = trainer_losses()
    return {
        "base_model": str(MODEL),
        "exported_model": str(EXPORTED),
        "checkpoint": str(checkpoint),
        "valid_files": {corpus: str(valid_file(corpus)) for corpus in CORPORA},
        "loss_nats_per_token": {
            corpus: {
                "trainer": {"step_0": start[corpus], "end": end[corpus]},
                "transformers": {"step_0": before[corpus], "end": after[corpus]},
            }
            for corpus in CORPORA
        },
        "max_abs_logit_difference": logit_difference,
        "tokens_by_source": {name: entry["tokens"] for name, entry in ledger.items()},
        "ranks": load_config(CONFIG).config.parallel.local_ranks,
        "layout": manifest.layout,
        "wall_s": round(wall_s, 1),
        "versions": manifest.versions,
    }


def show(summary: dict[str, Any], report: Path) -> None:
    """The closing table."""
    rows = []
    for corpus, losses in summary["loss_nats_per_token"].items():
        theirs = losses["transformers"]
        role = "domain" if corpus == DOMAIN else "general"
        change = theirs["end"] - theirs["step_0"]
        rows.append(
            [f"{role}: {corpus}", f"{theirs['step_0']:.4f}", f"{theirs['end']:.4f}", f"{change:+.4f}"]
        )
        ours = losses["trainer"]
        own_change = ours["end"] - ours["step_0"]
        rows.append(["  by the trainer", f"{ours['step_0']:.4f}", f"{ours['end']:.4f}", f"{own_change:+.4f}"])
    print("\nheld-out loss, nats per token, measured by transformers on the exported model:\n")
    print(table(["validation set", "before", "after", "change"], rows))
    tokens = ", ".join(f"{name} {count:,}" for name, count in summary["tokens_by_source"].items())
    print(f"\ntokens seen    {tokens}")
    print(f"layout         {summary['ranks']} ranks, {summary['layout']}; {summary['wall_s']:.0f} s in all")
    print(f"logits         exported model = checkpoint within {summary['max_abs_logit_difference']:.1e}")
    for name, path in (("checkpoint", summary["checkpoint"]), ("exported", EXPORTED), ("report", report)):
        print(f"{name:<15}{path}")


def judge(summary: dict[str, Any]) -> int:
    """0 when the demo did what it claims, by the independent numbers; else 1."""
    losses = {corpus: values["transformers"] for corpus, values in summary["loss_nats_per_token"].items()}
    gain = losses[DOMAIN]["step_0"] - losses[DOMAIN]["end"]
    forgotten = losses[GENERAL]["end"] - losses[GENERAL]["step_0"]
    if gain < MIN_DOMAIN_GAIN_NATS or forgotten > MAX_GENERAL_LOSS_NATS:
        print(f"error: domain gain {gain:.3f} nats, general loss rose by {forgotten:.3f}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run all stages."""
    begin_s = time.monotonic()
    for directory in (RUN, WORK):  # both belong to this demo alone
        shutil.rmtree(directory, ignore_errors=True)
    WORK.mkdir(parents=True)
    config = load_config(CONFIG).config
    seq_length, max_tokens = config.data.seq_length, config.data.valid[0].max_tokens
    stage(1, "tokenize domain and general text")
    preprocess()
    stage(2, "convert the base model, and compare every bit with its source")
    cptron("convert", "--verify", MODEL, WORK / "base")
    stage(3, "measure the base model with transformers")
    before = transformers_losses(MODEL, seq_length, max_tokens)
    stage(4, "continue pretraining")
    cptron("train", CONFIG)
    stage(5, "export to Hugging Face format")
    cptron("export", RUN, EXPORTED)
    stage(6, "prove the export: logits of transformers against the checkpoint's")
    output = cptron("verify", layout.resolve(str(RUN)), EXPORTED, capture=True)
    logit_difference = float(json.loads(output)["max_abs_logit_difference"])
    stage(7, "measure the exported model with transformers")
    after = transformers_losses(EXPORTED, seq_length, max_tokens)
    summary = summarize(before, after, logit_difference, time.monotonic() - begin_s)
    layout.write_json(RUN / "summary.json", summary)
    show(summary, write_report(RUN))
    return judge(summary)


if __name__ == "__main__":
    sys.exit(main())
