"""The `cptron` command.

Place in the flow: the front door; each verb is a thin front of one room, imported when it is used.
Invariant: an error a user can act on is one line on stderr and exit code 2, on every rank.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence

from cptron import __version__
from cptron.errors import EXIT_CODE, CptronError, RankEnded
from cptron.runtime.host_isa import leave_amx_alone

VERBS = {
    "curate": ("cptron.corpus.main", "raw documents -> a clean corpus, by a YAML of steps; all counted"),
    "preprocess": ("cptron.tokens.preprocess", "JSONL documents -> token files (.bin/.idx)"),
    "interleave": ("cptron.tokens.interleave", "JSONL documents, each behind the questions about it"),
    "merge": ("cptron.tokens.merge", "several pairs of token files -> one"),
    "split": ("cptron.tokens.split", "one pair of token files -> several, by documents"),
    "convert": ("cptron.convert.main", "Hugging Face model -> checkpoint"),
    "safetensors": (
        "cptron.convert.pickled",
        "a model in pickled files (.bin) -> safetensors, without running code",
    ),
    "data": ("cptron.data.main", "prepare a run's index files; prove from a run's log what it has seen"),
    "advise": ("cptron.advise.main", "corpora, base, budget -> a commented configuration, with its evidence"),
    "plan": ("cptron.plan.main", "whether a run fits a cluster, how long it takes, what it costs"),
    "submit": ("cptron.launch.submit", "a recipe or another command -> a job of SLURM's"),
    "status": ("cptron.launch.status", "submitted jobs: waiting, running or ended, and how far the run is"),
    "logs": ("cptron.launch.logs", "what a submitted job has printed"),
    "cancel": ("cptron.launch.cancel", "end submitted jobs; training saves first"),
    "train": ("cptron.train.main", "continue pretraining, on one rank or many"),
    "anneal": ("cptron.train.anneal", "branch a run from its constant phase and decay the learning rate"),
    "schedule": ("cptron.report.rates", "the learning rates of a run, before it is trained"),
    "doremi": ("cptron.train.doremi_main", "shares of the sources, found by a small proxy model"),
    "checkpoint": ("cptron.checkpoint.main", "list, prove, delete and keep the checkpoints of a run"),
    "eval": ("cptron.evaluate.main", "loss of a checkpoint or a Hugging Face model on validation data"),
    "mixlaw": ("cptron.mixture.main", "laws of the loss by mixture: fit them to runs, predict from them"),
    "merge-weights": (
        "cptron.weights.merge_main",
        "Hugging Face models -> averages, interpolations, task vectors",
    ),
    "health": (
        "cptron.weights.health_main",
        "dead embedding rows and bad values of a Hugging Face model; repair",
    ),
    "fisher": (
        "cptron.regularise.fisher_main",
        "how much each weight of a checkpoint matters to old data (for EWC)",
    ),
    "teach": (
        "cptron.regularise.teach",
        "a model's most likely next tokens, beside token files (for distillation)",
    ),
    "report": ("cptron.report.main", "a run, or several beside each other, as one HTML file"),
    "select": ("cptron.selection.main", "which checkpoint to keep, by old and new data; why is written down"),
    "export": ("cptron.convert.export_main", "checkpoint -> Hugging Face model"),
    "verify": ("cptron.convert.verify_main", "prove that a checkpoint and a Hugging Face model are the same"),
    "inspect": ("cptron.inspect", "what a token file, a checkpoint or a run holds"),
    "watch": (
        "cptron.report.watch",
        "how a run stands now: progress, time left, losses, speed, what is slow",
    ),
    "doctor": ("cptron.doctor", "device, versions, optional accelerators, and what is used for what"),
}
"""Verb -> module whose `main(argv)` does it, and what it is for."""


def usage() -> str:
    """The help text."""
    lines = [f"  {verb:<15}{purpose}" for verb, (_, purpose) in VERBS.items()]
    return "\n".join(
        [
            f"cptron {__version__}: continued pretraining on Megatron-Core",
            "",
            "usage: cptron VERB [arguments]; cptron VERB --help explains a verb",
            "",
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"cptron: error: unknown verb {verb!r}; use one of {', '.join(VERBS)}", file=sys.stderr)
        return EXIT_CODE
    leave_amx_alone()
    try:
        code = int(importlib.import_module(VERBS[verb][0]).main(arguments[1:]))
        sys.stdout.flush()
        return code
    except CptronError as error:
        rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
        where = f" [rank {rank}]" if rank else ""
        print(f"cptron: error{where}: {error}", file=sys.stderr, flush=True)
        return EXIT_CODE
    except RankEnded as ended:
        return ended.code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the exit
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130


def _nobody_reads() -> bool:
    """Whether it is our standard output that is closed at its other end, as `head` does, and no pipe within."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
