"""The benchmark of curation: ours and the peers in turn, on the same documents, in the same run.

Usage: python -m benchmarks.curate.run [--rows dedup] [--rounds 3] [--show]

Place in the flow: `make bench-curate`. Invariant: rows not asked for keep their results; a row that cannot be measured
is named with the reason, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import curate_tokenizer
from benchmarks.curate import (
    rows_dedup,
    rows_focus,
    rows_planted,
    rows_promise,
    rows_scale,
    rows_select,
    texts,
    whole,
)
from benchmarks.curate.rows_dedup import Settings
from benchmarks.data.measure import ROOT, BenchmarkError, run_process
from benchmarks.data.results import Row, merge, read, table

RESULTS = ROOT / "benchmarks" / "results" / "curate.json"


def _select(settings: Settings) -> list[Row]:
    mix = rows_select.mix_of(settings.domains)
    found = rows_select.dsir(settings.domains, mix) + rows_select.classifier(settings.domains, mix)
    return found + rows_select.perplexity(settings.model, mix, settings.domains, settings.rounds)


def _promise(settings: Settings) -> list[Row]:
    return rows_promise.rows(settings.domains, settings.command)


def _tokenizer(settings: Settings) -> list[Row]:
    return curate_tokenizer.rows(_of_tokenizer(settings))


def _focus(settings: Settings) -> list[Row]:
    return rows_focus.rows(_of_tokenizer(settings))


def _of_tokenizer(settings: Settings) -> curate_tokenizer.Settings:
    directory = settings.work_dir / "tokenizer"
    directory.mkdir(exist_ok=True)
    return curate_tokenizer.Settings(settings.work_dir, settings.model, directory, settings.command)


ROWS: dict[str, Callable[[Settings], list[Row]]] = {
    "dedup-peers": rows_dedup.all_peers,
    "dedup-large": rows_dedup.large,
    "dedup-index": rows_scale.index,
    "planted": rows_planted.planted,
    "whole": whole.whole,
    "select": _select,
    "promise": _promise,
    "tokenizer": _tokenizer,
    "focus": _focus,
}
_READ_CORPUS = {"dedup-peers", "dedup-large", "whole"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure curation against its peers.")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated (default: all): %(default)s")
    parser.add_argument("--show", action="store_true", help="measure nothing, show all rows on record")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--corpus", type=Path, help="JSONL with text and id, instead of the one that is made")
    parser.add_argument("--documents", type=int, default=100_000, help="of dedup-large")
    parser.add_argument("--few-documents", type=int, default=10_000, help="of dedup-peers")
    parser.add_argument("--scale-documents", type=int, default=10_000_000, help="of dedup-index")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / ".cache" / "bench-curate-peers", help="the peers' packages"
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=ROOT / ".cache" / "smollm2-135m",
        help="whose tokenizer whole and tokenizer take, and whose losses select: `make demo` fetches it",
    )
    parser.add_argument(
        "--domains", type=Path, default=rows_select.DOMAINS, help="of select: NAME.{train,valid}.jsonl.gz"
    )
    parser.add_argument("--work-dir", type=Path, default=texts.CACHE, help="inputs and outputs, up to 6 GB")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to merge into")
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace, chosen: Sequence[str], words: Sequence[str]) -> Settings:
    """What the rows need, the corpus made where one reads it. Raises BenchmarkError."""
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    corpus = arguments.corpus or arguments.work_dir / f"real_{arguments.documents}.jsonl"
    if not corpus.is_file() and _READ_CORPUS.intersection(chosen):
        words_of = ["--documents", str(arguments.documents), "--cache", arguments.work_dir]
        run_process([sys.executable, "-m", "benchmarks.curate.texts", corpus.absolute(), *words_of])
    shown = [f"[...]/{Path(word).name}" if Path(word).is_absolute() else word for word in words]
    return Settings(
        work_dir=arguments.work_dir.resolve(),
        peers=arguments.peers.resolve(),
        corpus=corpus.resolve(),
        model=arguments.model.resolve(),
        domains=arguments.domains.resolve(),
        rounds=arguments.rounds,
        documents=arguments.documents,
        few_documents=arguments.few_documents,
        scale_documents=arguments.scale_documents,
        command=" ".join(["python -m benchmarks.curate.run", *shown]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 when a row could not be measured."""
    arguments = parse(argv)
    chosen = [name.strip() for name in arguments.rows.split(",")]
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        print(f"error: --rows {', '.join(unknown)} must be of {', '.join(ROWS)}; correct it", file=sys.stderr)
        return 2
    if arguments.show:
        print(table(read(arguments.results)))
        return 0
    failed: list[str] = []
    try:
        settings = settings_of(arguments, chosen, sys.argv[1:] if argv is None else argv)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        try:
            merge(ROWS[name](settings), arguments.results)
        except BenchmarkError as error:
            failed.append(f"{name} was not measured: {error}")
    print(table(read(arguments.results)))
    for line in failed:
        print(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
