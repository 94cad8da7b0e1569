"""The benchmark of the data path: ours and the peer in turn, on the same input, in the same run.

Usage: python -m benchmarks.data.run [--rows 1,2,3,4,5,6,7,8] [--rounds 3] [--corpus DIR]

Place in the flow: `make bench-data`. Invariant: rows not asked for keep their results; a row that cannot be
measured is named with the reason, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.data import rows_index, rows_preprocess, rows_read
from benchmarks.data.get_peers import MEGATRON_DIR, Megatron
from benchmarks.data.get_tokenizers import DEFAULT_DIR, TokenizerFetchError, fetch
from benchmarks.data.measure import ROOT, BenchmarkError
from benchmarks.data.results import RESULTS, Row, merge, read, table
from benchmarks.data.rows_preprocess import Settings

ROWS: dict[int, tuple[str, Callable[[Settings], Sequence[Row]]]] = {
    1: ("preprocess, whole process", rows_preprocess.whole_process),
    2: ("preprocess, steady state and start-up", rows_preprocess.steady_state),
    3: ("preprocess, memory", rows_preprocess.memory),
    4: ("blend", rows_index.blend),
    5: ("sample index and shuffles", rows_index.sample_index),
    6: ("random reads", rows_read.random_reads),
    7: ("loader and first batch", rows_read.loader),
    8: ("preprocess, Megatron's fast tool", rows_preprocess.fast_peer),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the data path against its peers.")
    parser.add_argument(
        "--rows", default=",".join(str(number) for number in ROWS), help="e.g. 4,5 (default: all)"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing, show all rows on record")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of both sides in rows 1, 3 and 8")
    parser.add_argument("--mb", type=float, default=100.0, help="megabytes of text in rows 1 to 3, 6 and 8")
    parser.add_argument("--large-mb", type=float, default=2000.0, help="megabytes of text in row 3c")
    parser.add_argument("--encode-mb", type=float, default=20.0, help="megabytes that row 2's peer encodes")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the sizes in rows 4 to 7, for trying out"
    )
    parser.add_argument(
        "--corpus", type=Path, help="directory of *.jsonl.gz: rows 1 and 2 once more, on its text"
    )
    parser.add_argument("--megatron-lm", type=Path, default=MEGATRON_DIR, help="a checkout of Megatron-LM")
    parser.add_argument("--tokenizers", type=Path, default=DEFAULT_DIR, help="where get_tokenizers puts them")
    parser.add_argument(
        "--work-dir", type=Path, default=ROOT / ".cache" / "bench-data", help="inputs and outputs"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to merge into")
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What the rows need, the tokenizer fetched. Raises TokenizerFetchError."""
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    return Settings(
        megatron=Megatron(arguments.megatron_lm.resolve()),
        tokenizer=fetch("llama3", arguments.tokenizers.resolve()),
        work_dir=arguments.work_dir.resolve(),
        corpus=arguments.corpus,
        megabytes=arguments.mb,
        large_megabytes=arguments.large_mb,
        encode_megabytes=arguments.encode_mb,
        workers=arguments.workers,
        rounds=arguments.rounds,
        scale=arguments.scale,
    )


def measure_rows(numbers: Sequence[int], settings: Settings, results: Path) -> tuple[list[str], list[str]]:
    """Measure rows and put them on record; returns the names of those measured, and a line for each that failed."""
    measured: list[str] = []
    failed: list[str] = []
    for number in numbers:
        title, measure = ROWS[number]
        print(f"row {number}: {title}", file=sys.stderr, flush=True)
        try:
            rows = measure(settings)
        except BenchmarkError as error:
            failed.append(f"row {number} was not measured: {error}")
            print(f"  {failed[-1]}", file=sys.stderr, flush=True)
            continue
        measured += [row.row for row in rows]
        merge(rows, results)  # at once: a later row that is interrupted costs only itself
    return measured, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 1 when a row could not be measured."""
    arguments = parse(argv)
    numbers = [int(number) for number in arguments.rows.split(",") if number.isdecimal()]
    if not numbers or set(numbers) - set(ROWS) or len(numbers) != len(arguments.rows.split(",")):
        print(
            f"error: --rows {arguments.rows} must be numbers of {sorted(ROWS)}; correct it", file=sys.stderr
        )
        return 2
    if arguments.show:
        print(table(read(arguments.results)))
        return 0
    try:
        settings = settings_of(arguments)
    except TokenizerFetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    measured, failed = measure_rows(numbers, settings, arguments.results)
    print(table([row for row in read(arguments.results) if row["row"] in measured]))
    for line in failed:
        print(line)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
