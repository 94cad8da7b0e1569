"""The benchmark of the engine: cptron and its peers in turn, on the same model and tokens, in the same run.

Usage: python -m benchmarks.engine.run --device cpu|cuda [--cases WORDS] [--peers NAMES] [--rounds 3] [--show]

Place in the flow: `make bench-engine` and `make bench-gpu`. Invariant: peers of a case take turns, each measurement in
a process of its own; peers that began with the same weights and ended with other losses are an error, not a row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.data.measure import ROOT, BenchmarkError, interleave, run_process
from benchmarks.engine import results
from benchmarks.engine.cases import CASES, Case, layers_that_fit, with_layers
from benchmarks.engine.one import CEILING, PEERS, Order

LOSS_TOLERANCE_NATS = 1e-3
RECIPES_TRIED: tuple[Literal["none", "rowwise"], ...] = ("none", "rowwise")
"""When looking for the number of layers: rowwise keeps the most."""
MEMORY_SHARE = 0.95
"""Of a device's memory that the estimate of the layers may fill."""
OWN_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
ON_GPU = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""For every peer alike: torchtitan's own launcher sets it."""
PEERS_DIR = ROOT / ".cache" / "bench-engine-peers"
"""Where `make bench-gpu-peers` puts torchtitan; seen by torchtitan's processes only."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the engine against its peers.")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument(
        "--cases", default="", help="words of case names, e.g. 8b,fp8 (default: all of the device)"
    )
    parser.add_argument("--peers", default="", help=f"of {', '.join(PEERS)} (default: those of each case)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--warmup", type=int, default=0, help="steps before the clock (default: 1, on GPUs 6)"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="measured steps a round (default: 4, on GPUs 20)"
    )
    parser.add_argument("--layers", type=int, default=0, help="of the cases that take as many as fit")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="on the CPU, of each peer"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing, show all rows on record")
    parser.add_argument(
        "--work-dir", type=Path, default=ROOT / ".cache" / "bench-engine", help="initial weights"
    )
    parser.add_argument("--results", type=Path, help="JSON file to merge into")
    arguments = parser.parse_args(argv)
    on_gpu = arguments.device == "cuda"
    arguments.warmup = arguments.warmup or (6 if on_gpu else 1)
    arguments.steps = arguments.steps or (20 if on_gpu else 4)
    arguments.results = arguments.results or results.results_path(arguments.device)
    return arguments


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases of the device that have one of the words in their names."""
    words = [word for word in arguments.cases.split(",") if word]
    found = [case for case in CASES if case.device == arguments.device]
    return [case for case in found if not words or any(word in case.name for word in words)]


def chosen_peers(case: Case, arguments: argparse.Namespace) -> list[str]:
    """Who is measured in a case. torchtitan's ways to attend are peers of their own."""
    peers = [name for peer in case.peers for name in PEERS if name == peer or name == f"{peer}-varlen"]
    asked = [name for name in arguments.peers.split(",") if name]
    optional = [name for name in asked if name == "transformers-compiled" and "transformers" in case.peers]
    return [name for name in peers if not asked or name in asked] + optional


def measure_case(case: Case, arguments: argparse.Namespace) -> list[results.Row]:
    """All rows of a case. Raises BenchmarkError when the peers did not do the same, or none could be measured."""
    peers = chosen_peers(case, arguments)
    starts = _starts(case, arguments.work_dir)
    failed: dict[str, str] = {}
    sides: list[Callable[[], dict[str, Any]]] = [
        partial(_attempt, case, peer, starts, arguments, failed) for peer in peers
    ]
    answers = interleave(arguments.rounds, partial(_one, case, CEILING, starts, arguments), *sides)
    ceiling = max(answer["tflops"] for answer in answers[0])
    counts = {"rounds": arguments.rounds, "warmup_steps": arguments.warmup, "steps": arguments.steps}
    counts["threads"] = arguments.threads
    told = {peer: answer for peer, answer in zip(peers, answers[1:], strict=True) if peer not in failed}
    if case.same_start:
        require_equal_losses(case, told)
    for peer, reason in failed.items():
        print(f"  {case.name}: {peer} was not measured: {reason}", file=sys.stderr, flush=True)
    return [results.row_of(case, peer, answer, ceiling, counts) for peer, answer in told.items()]


def require_equal_losses(case: Case, answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Every step of every round of every peer has the loss of the first one's. Raises BenchmarkError."""
    told = [
        (peer, answer["losses"])
        for peer, rounds in answers.items()
        for answer in rounds
        if "losses" in answer
    ]
    for peer, losses in told:
        far = max(abs(ours - theirs) for ours, theirs in zip(losses, told[0][1], strict=True))
        if far > LOSS_TOLERANCE_NATS:
            raise BenchmarkError(
                f"{case.name}: losses of {told[0][0]} and {peer} differ by {far:.2g} nats, more than "
                f"{LOSS_TOLERANCE_NATS}: they did not do the same work"
            )


def fitted(case: Case, arguments: argparse.Namespace) -> list[Case]:
    """Candidates with fewer and fewer layers, where the case takes as many as fit; else the case itself."""
    if not case.fit_layers:
        return [case]
    if arguments.layers:
        return [with_layers(case, arguments.layers)]
    import torch

    memory_bytes = int(MEMORY_SHARE * torch.cuda.get_device_properties(0).total_memory)
    most = layers_that_fit(case, memory_bytes)
    return [with_layers(case, layers) for layers in range(most, 0, -2)]


def measure(cases: Sequence[Case], arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Measure and put on record; returns the names of the rows measured, and a line for each case that failed."""
    measured: list[str] = []
    failed: list[str] = []
    for case in cases:
        print(case.name, file=sys.stderr, flush=True)
        try:
            rows = _fit_and_measure(case, arguments)
        except BenchmarkError as error:
            failed.append(f"{case.name} was not measured: {error}")
            print(f"  {failed[-1]}", file=sys.stderr, flush=True)
            continue
        measured += [row.row for row in rows]
        results.merge(rows, arguments.results)  # at once: a later case that is interrupted costs only itself
    return measured, failed


def _fit_and_measure(case: Case, arguments: argparse.Namespace) -> list[results.Row]:
    candidates = fitted(case, arguments)
    for candidate in candidates:
        if case.fit_layers and not arguments.layers and not _fits(candidate, arguments):
            continue
        arguments.layers = candidate.arch.num_layers if case.fit_layers else arguments.layers
        return measure_case(candidate, arguments)
    raise BenchmarkError("not even one layer fits in the device's memory")


def _fits(case: Case, arguments: argparse.Namespace) -> bool:
    """Whether cptron and torchtitan can take two steps, in bf16 and in FP8: all cases have the same layers."""
    quick = argparse.Namespace(**{**vars(arguments), "warmup": 1, "steps": 1})
    for peer in ("cptron", "torchtitan"):
        for recipe in RECIPES_TRIED:
            if "out_of_memory" in _attempt(replace(case, fp8=recipe), peer, {}, quick, {}):
                print(f"  {case.arch.num_layers} layers do not fit", file=sys.stderr, flush=True)
                return False
    return True


def _attempt(
    case: Case, peer: str, starts: Mapping[str, Path], arguments: argparse.Namespace, failed: dict[str, str]
) -> dict[str, Any]:
    """A measurement; a peer that cannot run is noted, and not tried again. cptron must run."""
    if peer in failed:
        return {}
    try:
        return _one(case, peer, starts, arguments)
    except BenchmarkError as error:
        if peer == "cptron" or case.same_start:
            raise
        failed[peer] = str(error)
        return {}


def _one(case: Case, peer: str, starts: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    order = Order(
        peer=peer,
        case=case.to_dict(),
        start=str(starts.get(peer, "")),
        threads=arguments.threads,
        warmup=arguments.warmup,
        steps=arguments.steps,
        block=5 if case.device == "cuda" else 1,
    )
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine.one", json.dumps(asdict(order))]
    answer: dict[str, Any] = json.loads(run_process(words, _environment(case, peer)).stdout.splitlines()[-1])
    return answer


def _environment(case: Case, peer: str = "") -> dict[str, str]:
    own = {**OWN_ENVIRONMENT, **({"CUDA_VISIBLE_DEVICES": ""} if case.device == "cpu" else ON_GPU)}
    if peer.startswith("torchtitan"):
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PEERS_DIR), os.environ.get("PYTHONPATH", "")]))
    return own


def _starts(case: Case, work_dir: Path) -> dict[str, Path]:
    """Where each peer finds its first weights; nothing where they are random."""
    if not case.same_start:
        return {}
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine.start_weights"]
    words += [json.dumps(case.arch.to_dict()), str(work_dir.resolve())]
    model_dir, checkpoint = run_process(words, _environment(case)).stdout.splitlines()[-2:]
    return {peer: Path(checkpoint if peer == "cptron" else model_dir) for peer in case.peers}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 when a case could not be measured."""
    arguments = parse(argv)
    if arguments.show:
        print(results.table(results.read(arguments.results)))
        return 0
    cases = chosen_cases(arguments)
    if not cases:
        print(f"error: --cases {arguments.cases} fits no case; correct it", file=sys.stderr)
        return 2
    measured, failed = measure(cases, arguments)
    print(results.table([row for row in results.read(arguments.results) if row["row"] in measured]))
    for line in failed:
        print(line)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
