"""Rows 4 and 5: which sample comes next, and where its tokens are.

Place in the flow: rows of `run`. Invariant: both sides get the same shares and the same document lengths.
"""

from __future__ import annotations

from importlib.metadata import version

from benchmarks.data.measure import Rounds, interleave, run_case
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
    a = Rounds(tuple(answer["elapsed_s"] / num_samples * 1e9 for answer in mine))
    b = Rounds(tuple(answer["elapsed_s"] / num_samples * 1e9 for answer in theirs))
    first = Rounds(tuple(answer["first_s"] * 1e3 for answer in lazy))
    far = Rounds(tuple(answer["far_s"] * 1e3 for answer in lazy))
    each = Rounds(tuple(answer["each_s"] * 1e6 for answer in lazy))
    alone = Rounds(tuple(answer["each_s"] * 1e6 for answer in single))
    deviation = max(answer["deviation"] for answer in mine)
    others = max(answer["deviation"] for answer in theirs)
    peaks = {"ours": max(x["peak_bytes"] for x in mine), "peer": max(x["peak_bytes"] for x in theirs)}
    lazy_peak = {"ours": max(answer["peak_bytes"] for answer in lazy)}
    peer, what = "megatron-core build_blending_indices", f"{NUM_SOURCES} sources of unequal shares"
    built = f"{what}; {num_samples:.0e} samples"
    return [
        Row(
            row="4a",
            work="blend, all samples at once",
            peer=peer,
            unit="ns/sample",
            ours=a.median,
            peer_value=b.median,
            ratio=b.median / a.median,
            goal=">= 5x",
            met=b.median / a.median >= 5,
            input=built,
            rounds=settings.rounds,
            spread={"ours": a.spread, "peer": b.spread},
            memory=peaks,
            peer_versions=_versions(),
            note="source and number in the source, in int16 and int64 as the peer's",
        ),
        Row(
            row="4b",
            work="blend, first sample, nothing built",
            peer="the peer must build all before",
            unit="ms",
            ours=first.median,
            peer_value=None,
            ratio=None,
            goal="< 1 ms",
            met=first.median < 1.0,
            input=what,
            rounds=settings.rounds,
            spread={"ours": first.spread},
            memory=lazy_peak,
            peer_versions=_versions(),
            note=f"at sample 1e11 of a resumed run: {far.median:.3f} ms",
        ),
        Row(
            row="4c",
            work=f"blend, each further sample, drawn {BATCH} at a time",
            peer=peer,
            unit="us/sample",
            ours=each.median,
            peer_value=b.median / 1e3,
            ratio=b.median / 1e3 / each.median,
            goal="< 2 us",
            met=each.median < 2.0,
            input=built,
            rounds=settings.rounds,
            spread={"ours": each.spread},
            memory=lazy_peak,
            peer_versions=_versions(),
            note=f"drawn one at a time, a Python call each: {alone.median:.2f} us",
        ),
        Row(
            row="4d",
            work="blend, largest distance from a share at any prefix",
            peer=peer,
            unit="samples",
            ours=deviation,
            peer_value=others,
            ratio=others / deviation,
            goal="< 1",
            met=deviation < 1.0,
            input=f"{what}; every prefix of the first million samples",
            rounds=settings.rounds,
            spread={},
            memory={},
            peer_versions=_versions(),
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
    a, b, c = (Rounds(tuple(x["elapsed_s"] for x in side)) for side in (mine, theirs, located))
    peaks = {"ours": max(x["peak_bytes"] for x in mine), "peer": max(x["peak_bytes"] for x in theirs)}
    memory_ratio = peaks["peer"] / max(1, peaks["ours"])
    num_samples = theirs[0]["num_samples"]
    what = (
        f"{num_documents:.0e} documents, {NUM_EPOCHS} epochs, sequence {SEQ_LENGTH}, {num_samples:,} samples"
    )
    peer = "GPTDataset's document, sample and shuffle index"
    return [
        Row(
            row="5a",
            work="sample index and shuffles",
            peer=peer,
            unit="s",
            ours=a.median,
            peer_value=b.median,
            ratio=b.median / a.median,
            goal=">= 5x",
            met=b.median >= 5 * a.median,
            input=what,
            rounds=settings.rounds,
            spread={"ours": a.spread, "peer": b.spread},
            memory=peaks,
            peer_versions=_versions(),
            note="ours sums windows of documents, on all cores, and finds samples when they are read; see 5c and 6",
        ),
        Row(
            row="5b",
            work="the same, memory added at the peak",
            peer=peer,
            unit="MB",
            ours=peaks["ours"] / 1e6,
            peer_value=peaks["peer"] / 1e6,
            ratio=memory_ratio,
            goal="<= 1/4",
            met=memory_ratio >= 4,
            input=what,
            rounds=settings.rounds,
            spread={},
            memory=peaks,
            peer_versions=_versions(),
            note="document lengths, an input of both, are not counted",
        ),
        Row(
            row="5c",
            work="the same, and every sample found once",
            peer=peer,
            unit="s",
            ours=c.median,
            peer_value=b.median,
            ratio=b.median / c.median,
            goal="none",
            met=None,
            input=what,
            rounds=settings.rounds,
            spread={"ours": c.spread, "peer": b.spread},
            memory={**peaks, "ours": max(x["peak_bytes"] for x in located)},
            peer_versions=_versions(),
            note="what ours puts off until reading, done at once on one core",
        ),
    ]
