"""Rows 1 to 3 and 8: text to token files, whole processes.

Place in the flow: rows of `run`. Invariant: both sides read the same file with the same flags, and a row is
only reported when their `.bin` and `.idx` are equal byte for byte.
"""

from __future__ import annotations

import filecmp
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data.get_peers import Megatron
from benchmarks.data.make_corpus import MEGABYTE, SEED_TEXTS, make_corpus
from benchmarks.data.make_natural import make_natural
from benchmarks.data.measure import ROOT, BenchmarkError, Rounds, Run, interleave, run_case, run_process
from benchmarks.data.results import Row

MOST_BYTES = 1_000_000_000
FLAT = 2.0
"""Peak memory at the largest input over that at the middle one; more is growth."""
START_UP_GOAL_S = 1.5


@dataclass(frozen=True)
class Settings:
    """Sizes of everything; the defaults are those of the published table."""

    megatron: Megatron
    tokenizer: Path
    work_dir: Path
    corpus: Path | None = None
    """Another directory of texts, for the rows on diverse text."""
    megabytes: float = 100.0
    large_megabytes: float = 2000.0
    encode_megabytes: float = 20.0
    workers: int = 2
    rounds: int = 3
    scale: float = 1.0
    """Of the sizes of the rows on indices; for trying out."""

    def natural(self) -> Path:
        """The text of the environment's packages, the seed texts among it."""
        return make_natural(self.work_dir / f"natural_mixed_{self.megabytes:g}mb.jsonl", self.megabytes)

    def text(self, megabytes: float, directory: Path = SEED_TEXTS) -> Path:
        """The corpus of a size, made where it is not there."""
        name = f"corpus_{directory.resolve().name}_{megabytes:g}mb.jsonl"
        return make_corpus(self.work_dir / name, megabytes, directory)


def ours(settings: Settings, text: Path) -> Run:
    """One run of `tools/preprocess_data.py`."""
    words = [
        sys.executable,
        ROOT / "tools" / "preprocess_data.py",
        *_flags(settings, text, "ours"),
        "--overwrite",
    ]
    return run_process([*words, "--workers", str(settings.workers)])


def peer(settings: Settings, text: Path) -> Run:
    """One run of Megatron's `tools/preprocess_data.py`."""
    words = [*settings.megatron.command("preprocess_data.py"), *_flags(settings, text, "peer")]
    return run_process([*words, "--workers", str(settings.workers)], settings.megatron.env)


def peer_fast(settings: Settings, text: Path) -> Run:
    """One run of Megatron's `tools/preprocess_data_fast.py`, which encodes the whole file by gigatoken at once."""
    words = [
        *settings.megatron.command("preprocess_data_fast.py"),
        *_flags(settings, text, "fast"),
        "--use-gigatoken",
    ]
    return run_process(words, settings.megatron.env)


def _flags(settings: Settings, text: Path, side: str) -> list[str | Path]:
    flags: list[str | Path] = ["--input", text, "--output-prefix", settings.work_dir / side]
    return [
        *flags,
        "--tokenizer-type",
        "HuggingFaceTokenizer",
        "--tokenizer-model",
        settings.tokenizer,
        "--append-eod",
    ]


def require_equal(settings: Settings, side: str) -> str:
    """Compare our files with those of `side`, byte for byte. Raises BenchmarkError when they differ."""
    for kind in ("bin", "idx"):
        mine, theirs = (settings.work_dir / f"{name}_text_document.{kind}" for name in ("ours", side))
        if not filecmp.cmp(mine, theirs, shallow=False):
            raise BenchmarkError(f"{mine} differs from {theirs}; the row is void until they are equal")
    return ".bin and .idx equal byte for byte"


def _require_megatron(settings: Settings) -> None:
    if settings.megatron.why_not:
        raise BenchmarkError(settings.megatron.why_not)


def _megabytes(text: Path) -> float:
    return text.stat().st_size / MEGABYTE


def _describe(text: Path) -> str:
    return f"{_megabytes(text):.1f} MB JSONL ({text.name}), Llama-3 tokenizer, --append-eod"


def whole_process(settings: Settings) -> list[Row]:
    """Row 1: wall time of the whole command."""
    _require_megatron(settings)
    rows = [_whole_process(settings, "1a", settings.text(settings.megabytes), settings.rounds)]
    if settings.corpus:
        rows.append(_whole_process(settings, "1b", settings.text(settings.megabytes, settings.corpus), 1))
    return [*rows, _whole_process(settings, "1c", settings.natural(), settings.rounds)]


def _whole_process(settings: Settings, name: str, text: Path, rounds: int) -> Row:
    mine, theirs = interleave(rounds, lambda: ours(settings, text), lambda: peer(settings, text))
    note = require_equal(settings, "peer") + _cpu(mine, theirs)
    a, b = (Rounds(tuple(run.wall_s for run in runs)) for runs in (mine, theirs))
    ratio = b.median / a.median
    return Row(
        row=name,
        work="preprocess, whole process",
        peer="Megatron-LM tools/preprocess_data.py",
        unit="s",
        ours=a.median,
        peer_value=b.median,
        ratio=ratio,
        goal=">= 50x",
        met=ratio >= 50,
        input=f"{_describe(text)}, --workers {settings.workers}",
        rounds=rounds,
        spread={"ours": a.spread, "peer": b.spread},
        memory=_memory(mine, theirs),
        peer_versions={"Megatron-LM": settings.megatron.version},
        note=note,
    )


def _cpu(mine: list[Run], theirs: list[Run]) -> str:
    ours_s, theirs_s = (Rounds(tuple(run.cpu_s for run in runs)).median for runs in (mine, theirs))
    return f"; CPU seconds {ours_s:.1f} and {theirs_s:.1f} ({theirs_s / ours_s:.0f}x)"


def _memory(mine: list[Run], theirs: list[Run]) -> dict[str, int]:
    return {"ours": max(run.peak_bytes for run in mine), "peer": max(run.peak_bytes for run in theirs)}


def steady_state(settings: Settings) -> list[Row]:
    """Row 2: rate without start-up, and start-up."""
    texts = [("a", settings.text(settings.megabytes), settings.rounds)]
    if settings.corpus:
        texts.append(("b", settings.text(settings.megabytes, settings.corpus), 1))
    texts.append(("c", settings.natural(), settings.rounds))
    return [row for part, text, rounds in texts for row in _steady_state(settings, part, text, rounds)]


def _steady_state(settings: Settings, part: str, text: Path, rounds: int) -> list[Row]:
    tiny = settings.text(0.01)
    encode_bytes = int(min(settings.encode_megabytes, settings.megabytes) * MEGABYTE)
    arguments = {"tokenizer": str(settings.tokenizer), "corpus": str(text), "max_bytes": encode_bytes}
    large, small, theirs = interleave(
        rounds,
        lambda: ours(settings, text),
        lambda: ours(settings, tiny),
        lambda: run_case("peer_encode", arguments, {"TOKENIZERS_PARALLELISM": "true"}),
    )
    start_up = Rounds(tuple(run.wall_s for run in small))
    span = _megabytes(text) - _megabytes(tiny)
    work_s = [long.wall_s - short.wall_s for long, short in zip(large, small, strict=True)]
    if min(work_s) <= 0:
        raise BenchmarkError(f"{_describe(text)} took no longer than a few documents; use a larger --mb")
    a = Rounds(tuple(span / elapsed_s for elapsed_s in work_s))
    b = Rounds(tuple(answer["num_bytes"] / MEGABYTE / answer["elapsed_s"] for answer in theirs))
    ratio = a.median / b.median
    rate = Row(
        row=f"2{part}",
        work="preprocess, steady state, start-up apart",
        peer="tokenizers encode_batch_fast, all cores, encode only",
        unit="MB/s",
        ours=a.median,
        peer_value=b.median,
        ratio=ratio,
        goal=">= 20x",
        met=ratio >= 20,
        input=f"{_describe(text)}; the peer its first {encode_bytes / MEGABYTE:g} MB, texts in memory",
        rounds=rounds,
        spread={"ours": a.spread, "peer": b.spread},
        memory={"ours": max(r.peak_bytes for r in large), "peer": max(x["peak_bytes"] for x in theirs)},
        peer_versions={"tokenizers": version("tokenizers")},
        note="ours reads, parses, encodes and writes; the peer only encodes",
    )
    starting = Row(
        row=f"2{part}-start",
        work="preprocess, start-up",
        unit="s",
        ours=start_up.median,
        goal=f"< {START_UP_GOAL_S} s",
        met=start_up.median < START_UP_GOAL_S,
        input=f"{tiny.stat().st_size / 1000:.0f} kB of JSONL, whole process",
        rounds=rounds,
        spread={"ours": start_up.spread},
        memory={"ours": max(run.peak_bytes for run in small)},
    )
    return [rate, starting]


def memory(settings: Settings) -> list[Row]:
    """Row 3: peak memory, and whether it grows with the input."""
    _require_megatron(settings)
    small, middle, large = settings.megabytes / 5, settings.megabytes, settings.large_megabytes
    mine = {size: ours(settings, settings.text(size)) for size in (small, middle, large)}
    theirs = {size: peer(settings, settings.text(size)) for size in (small, middle)}
    rows = []
    for part, size in (("a", small), ("b", middle), ("c", large)):
        peak = mine[size].peak_bytes
        other = theirs[size].peak_bytes if size in theirs else None
        flat = size < large or peak <= FLAT * mine[middle].peak_bytes
        rows.append(
            Row(
                row=f"3{part}",
                work=f"preprocess, peak memory at {size:g} MB",
                peer="Megatron-LM tools/preprocess_data.py",
                unit="MB",
                ours=peak / 1e6,
                peer_value=None if other is None else other / 1e6,
                ratio=None if other is None else other / peak,
                goal="<= 1 GB, flat" if size == large else "<= 1 GB",
                met=peak <= MOST_BYTES and flat,
                input=f"{_describe(settings.text(size))}, --workers {settings.workers}",
                rounds=1,
                memory={"ours": peak} | ({} if other is None else {"peer": other}),
                peer_versions={"Megatron-LM": settings.megatron.version},
                note=f"{mine[size].wall_s:.1f} s, {size / mine[size].wall_s:.0f} MB/s whole process"
                + ("" if other else "; the peer would take the better part of an hour and is not measured"),
            )
        )
    return rows


def fast_peer(settings: Settings) -> list[Row]:
    """Row 8: Megatron's own fast tool, where the checkout has it; memory is where the two differ most."""
    _require_megatron(settings)
    if not (settings.megatron.directory / "tools" / "preprocess_data_fast.py").is_file():
        raise BenchmarkError(
            f"{settings.megatron.directory} has no tools/preprocess_data_fast.py; take a newer one"
        )
    text = settings.text(settings.megabytes)
    mine, theirs = interleave(
        settings.rounds, lambda: ours(settings, text), lambda: peer_fast(settings, text)
    )
    note = require_equal(settings, "fast") + _cpu(mine, theirs)
    a, b = (Rounds(tuple(run.wall_s for run in runs)) for runs in (mine, theirs))
    common: dict[str, Any] = {
        "peer": "Megatron-LM tools/preprocess_data_fast.py --use-gigatoken",
        "input": _describe(text),
        "rounds": settings.rounds,
        "memory": _memory(mine, theirs),
        "peer_versions": {"Megatron-LM": settings.megatron.version, "gigatoken": version("gigatoken")},
    }
    peaks = _memory(mine, theirs)
    return [
        Row(
            row="8a",
            work="preprocess, against Megatron's fast tool",
            unit="s",
            ours=a.median,
            peer_value=b.median,
            ratio=b.median / a.median,
            spread={"ours": a.spread, "peer": b.spread},
            note=note,
            **common,
        ),
        Row(
            row="8b",
            work="the same, peak memory",
            unit="MB",
            ours=peaks["ours"] / 1e6,
            peer_value=peaks["peer"] / 1e6,
            ratio=peaks["peer"] / peaks["ours"],
            note="the peer's grows with the input",
            **common,
        ),
    ]
