"""Rows 6 and 7: reading samples, the loader, and the time to the first batch.

Place in the flow: rows of `run`. Invariant: both sides read the same token files, and the page cache is warm.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.data.measure import Rounds, interleave, peak_bytes, run_case
from benchmarks.data.results import Row
from benchmarks.data.rows_preprocess import Settings, ours
from cptron import __version__
from cptron.tokens.index_layout import CODE_OF_DTYPE, HEADER, MAGIC, VERSION
from cptron.tokens.manifest import FORMAT_VERSION, FileRecord, Manifest, TokenizerRecord, write_manifest

SEQ_LENGTH = 8192
NUM_READS = 3_000
BATCH = 64
TOKENS_PER_CORE_GOAL = 20 * 15_000
FIRST_BATCH_GOAL_S = 10.0
NUM_FILES, FILE_TOKENS, FILE_DOCUMENTS = 1_000, 1_000_000_000, 100_000


def _token_files(settings: Settings) -> str:
    """Prefix of the token files of the corpus, made by our own preprocessing."""
    text = settings.text(settings.megabytes)
    prefix = str(settings.work_dir / f"read_{settings.megabytes:g}mb")
    if not Path(f"{prefix}.idx").is_file():
        ours(settings, text)
        for kind in ("bin", "idx"):  # the index last: files are there when it is
            copied = Path(f"{prefix}.{kind}.partial")
            shutil.copyfile(settings.work_dir / f"ours_text_document.{kind}", copied)
            copied.replace(f"{prefix}.{kind}")
    return prefix


def random_reads(settings: Settings) -> list[Row]:
    """Row 6: one random sample after the other."""
    prefix, num_reads = _token_files(settings), max(100, int(NUM_READS * settings.scale))
    arguments = {"prefix": prefix, "seq_length": SEQ_LENGTH, "num_reads": num_reads}
    cache = str(settings.work_dir / "megatron_index_cache")
    mine, theirs, again = interleave(
        settings.rounds,
        lambda: run_case("ours_read", arguments),
        lambda: run_case("peer_read", {**arguments, "cache": cache}),
        lambda: run_case("ours_read_batch", arguments),
    )
    a, b, kept = (Rounds.of(side, "samples_per_s") for side in (mine, theirs, again))
    work, also = f"read a random sample, sequence {SEQ_LENGTH}", "ours also computes where the sample is"
    row = partial(
        Row,
        peer="megatron-core GPTDataset.__getitem__, create_attention_mask=False",
        unit="samples/s",
        peer_value=b.median,
        input=f"token files of {settings.megabytes:g} MB of text, {num_reads:,} reads, page cache warm",
        rounds=settings.rounds,
        peer_versions={"megatron-core": version("megatron-core"), "torch": version("torch")},
    )
    return [
        row(
            row="6a",
            work=work,
            ours=a.median,
            ratio=a.median / b.median,
            goal=">= 2x",
            met=a.median >= 2 * b.median,
            spread={"ours": a.spread, "peer": b.spread},
            memory=peak_bytes(ours=mine, peer=theirs),
            note=f"both make new arrays for each sample; {also}",
        ),
        row(
            row="6b",
            work=f"{work}, arrays kept",
            ours=kept.median,
            ratio=kept.median / b.median,
            spread={"ours": kept.spread, "peer": b.spread},
            memory=peak_bytes(ours=again, peer=theirs),
            note=f"ours into arrays that are used again, as a loader with page-locked memory does; {also}",
        ),
    ]


def loader(settings: Settings) -> list[Row]:
    """Row 7: batches as a run gets them."""
    prefix = _token_files(settings)
    steps = max(2, int(100 * settings.scale))
    prefixes = _synthetic(settings)
    num_files = len(prefixes)
    batches = {"seq_length": SEQ_LENGTH, "batch": BATCH}
    fed, first = interleave(
        settings.rounds,
        lambda: run_case("ours_loader", {**batches, "prefix": prefix, "num_steps": steps}),
        lambda: run_case("ours_first_batch", {**batches, "prefixes": prefixes}),
    )
    a, b = Rounds.of(fed, "tokens_per_s"), Rounds.of(first, "elapsed_s")
    return [
        Row(
            row="7a",
            work="loader, one core, sequence 8192",
            peer="20 GPUs of 15,000 tokens/s each",
            unit="tokens/s",
            ours=a.median,
            peer_value=TOKENS_PER_CORE_GOAL,
            ratio=a.median / TOKENS_PER_CORE_GOAL,
            goal=f">= {TOKENS_PER_CORE_GOAL:,}",
            met=a.median >= TOKENS_PER_CORE_GOAL,
            input=f"token files of {settings.megabytes:g} MB of text, {steps} steps of {BATCH} samples",
            rounds=settings.rounds,
            spread={"ours": a.spread},
            memory=peak_bytes(ours=fed),
        ),
        Row(
            row="7b",
            work="time to the first batch",
            unit="s",
            ours=b.median,
            goal=f"< {FIRST_BATCH_GOAL_S:g} s",
            met=b.median < FIRST_BATCH_GOAL_S,
            input=f"{num_files:,} files, {num_files * FILE_TOKENS:.0e} tokens in documents of "
            f"{FILE_TOKENS // FILE_DOCUMENTS:,} on average (real .idx, sparse .bin), batch of {BATCH} samples",
            rounds=settings.rounds,
            spread={"ours": b.spread},
            memory=peak_bytes(ours=first),
            note="no index in a cache; imports included",
        ),
    ]


def _synthetic(settings: Settings) -> list[str]:
    """Prefixes of token files with real indices over empty, sparse tokens."""
    directory = settings.work_dir / "synthetic"
    directory.mkdir(parents=True, exist_ok=True)
    prefixes = [
        str(directory / f"file{number:04d}") for number in range(max(4, int(NUM_FILES * settings.scale)))
    ]
    for number, prefix in enumerate(prefixes):
        if not Path(f"{prefix}.manifest.json").is_file():
            _write_synthetic(prefix, number)
    return prefixes


def _write_synthetic(prefix: str, seed: int) -> None:
    dtype = np.dtype(np.int32)
    random = np.random.default_rng(seed)
    sizes = random.dirichlet(np.ones(FILE_DOCUMENTS))
    lengths = (1 + random.multinomial(FILE_TOKENS - FILE_DOCUMENTS, sizes)).astype("<i4")
    starts = np.cumsum(lengths, dtype="<i8") - lengths
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, CODE_OF_DTYPE[dtype.name], FILE_DOCUMENTS, FILE_DOCUMENTS + 1))
        file.write(lengths.tobytes() + (starts * dtype.itemsize).tobytes())
        file.write(np.arange(FILE_DOCUMENTS + 1, dtype="<i8").tobytes())
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(FILE_TOKENS * dtype.itemsize)
    name = hashlib.sha256(
        f"synthetic {seed}".encode()
    ).hexdigest()  # hashing sparse terabytes would say no more
    stored = {kind: Path(f"{prefix}.{kind}").stat().st_size for kind in ("bin", "idx")}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        documents=FILE_DOCUMENTS,
        tokens=FILE_TOKENS,
        dtype=dtype.name,
        files={kind: FileRecord(bytes=size, sha256=name) for kind, size in stored.items()},
        tokenizer=TokenizerRecord(
            name="none", fingerprint=name, vocab_size=128_256, eos_id=None, bos_id=None
        ),
        append_eod=False,
        prepend_bos=False,
        key="text",
        sources=(),
        records_read=FILE_DOCUMENTS,
        documents_empty_skipped=0,
        documents_rejected={},
        engine="none",
        partition="",
        options={},
        cptron_version=__version__,
    )
    write_manifest(prefix, manifest)
