"""Rows 4 and 5: which sample comes next, and where its tokens are.

Place in the flow: rows of `run`. Invariant: both sides get the same shares and the same document lengths.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

from benchmarks.data.measure import Rounds, interleave, peak_bytes, run_case
from benchmarks.data.results import Row
from benchmarks.data.rows_preprocess import Settings

NUM_SOURCES = 128
BATCH = 512
SEQ_LENGTH = 4096
NUM_EPOCHS = 10


def _versions() -> dict[str, str]:
    return {"megatron-core": version("megatron-core"), "numpy": version("numpy")}


def blend(settings: Settings) -> list[Row]:
    """Row 4: the blend of 128 sources."""
    num_samples = int(1e8 * settings.scale)
    sources = {"num_sources": NUM_SOURCES}
    mine, theirs, lazy, single = interleave(
        settings.rounds,
        lambda: run_case("ours_blend_eager", {**sources, "num_samples": num_samples}),
        lambda: run_case("peer_blend", {**sources, "num_samples": num_samples}),
        lambda: run_case("ours_blend_lazy", {**sources, "num_samples": num_samples, "batch": BATCH}),
        lambda: run_case("ours_blend_lazy", {**sources, "num_samples": 100_000, "batch": 1}),
    )
    a, b = (Rounds.of(side, "elapsed_s", 1e9 / num_samples) for side in (mine, theirs))
    first, far = (Rounds.of(lazy, key, 1e3) for key in ("first_s", "far_s"))
    each, alone = (Rounds.of(side, "each_s", 1e6) for side in (lazy, single))
    deviation, others = (max(answer["deviation"] for answer in side) for side in (mine, theirs))
    what = f"{NUM_SOURCES} sources of unequal shares"
    built = f"{what}; {num_samples:.0e} samples"
    row = partial(
        Row,
        peer="megatron-core build_blending_indices",
        rounds=settings.rounds,
        peer_versions=_versions(),
    )
    return [
        row(
            row="4a",
            work="blend, all samples at once",
            unit="ns/sample",
            ours=a.median,
            peer_value=b.median,
            ratio=b.median / a.median,
            goal=">= 5x",
            met=b.median / a.median >= 5,
            input=built,
            spread={"ours": a.spread, "peer": b.spread},
            memory=peak_bytes(ours=mine, peer=theirs),
            note="source and number in the source, in int16 and int64 as the peer's",
        ),
        row(
            row="4b",
            work="blend, first sample, nothing built",
            peer="the peer must build all before",
            unit="ms",
            ours=first.median,
            goal="< 1 ms",
            met=first.median < 1.0,
            input=what,
            spread={"ours": first.spread},
            memory={"ours": max(answer["first_peak_bytes"] for answer in lazy)},
            note=f"at sample 1e11 of a resumed run: {far.median:.3f} ms",
        ),
        row(
            row="4c",
            work=f"blend, each further sample, drawn {BATCH} at a time",
            unit="us/sample",
            ours=each.median,
            peer_value=b.median / 1e3,
            ratio=b.median / 1e3 / each.median,
            goal="< 2 us",
            met=each.median < 2.0,
            input=built,
            spread={"ours": each.spread},
            memory=peak_bytes(ours=lazy),
            note=f"drawn one at a time, a Python call each: {alone.median:.2f} us",
        ),
        row(
            row="4d",
            work="blend, largest distance from a share at any prefix",
            unit="samples",
            ours=deviation,
            peer_value=others,
            ratio=others / deviation,
            goal="< 1",
            met=deviation < 1.0,
            input=f"{what}; every prefix of the first million samples",
        ),
    ]


def sample_index(settings: Settings) -> list[Row]:
    """Row 5: orders of documents and samples."""
    num_documents = int(1e7 * settings.scale)
    arguments = {"num_documents": num_documents, "num_epochs": NUM_EPOCHS, "seq_length": SEQ_LENGTH}
    mine, theirs, located = interleave(
        settings.rounds,
        lambda: run_case("ours_index", {**arguments, "locate": False}),
        lambda: run_case("peer_index", arguments),
        lambda: run_case("ours_index", {**arguments, "locate": True}),
    )
    a, b, c = (Rounds.of(side, "elapsed_s") for side in (mine, theirs, located))
    peaks = peak_bytes(ours=mine, peer=theirs)
    memory_ratio = peaks["peer"] / max(1, peaks["ours"])
    row = partial(
        Row,
        peer="GPTDataset's document, sample and shuffle index",
        input=f"{num_documents:.0e} documents, {NUM_EPOCHS} epochs, sequence {SEQ_LENGTH}, "
        f"{theirs[0]['num_samples']:,} samples",
        rounds=settings.rounds,
        peer_versions=_versions(),
    )
    return [
        row(
            row="5a",
            work="sample index and shuffles",
            unit="s",
            ours=a.median,
            peer_value=b.median,
            ratio=b.median / a.median,
            goal=">= 5x",
            met=b.median >= 5 * a.median,
            spread={"ours": a.spread, "peer": b.spread},
            memory=peaks,
            note="ours sums windows of documents, on all cores, and finds samples when they are read; see 5c and 6",
        ),
        row(
            row="5b",
            work="the same, memory added at the peak",
            unit="MB",
            ours=peaks["ours"] / 1e6,
            peer_value=peaks["peer"] / 1e6,
            ratio=memory_ratio,
            goal="<= 1/4",
            met=memory_ratio >= 4,
            memory=peaks,
            note="document lengths, an input of both, are not counted",
        ),
        row(
            row="5c",
            work="the same, and every sample found once",
            unit="s",
            ours=c.median,
            peer_value=b.median,
            ratio=b.median / c.median,
            spread={"ours": c.spread, "peer": b.spread},
            memory=peak_bytes(ours=located, peer=theirs),
            note="what ours puts off until reading, done at once on one core",
        ),
    ]
