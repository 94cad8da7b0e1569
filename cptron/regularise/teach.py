"""`cptron teach CHECKPOINT --data PREFIX`: asks a model about token files once, for runs that learn from the answers.

Place in the flow: before a run with `regularise.distill.teacher: cached`, on one rank or many. Invariant: every token
of the files is asked about once, in a window that begins at the same token under any number of ranks; documents do not
see each other.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from cptron.data.batch import MicroBatch
from cptron.data.content import Content, open_content
from cptron.data.source import check_ids, named
from cptron.errors import ConfigError, DataError
from cptron.regularise.cut_options import add_cut_options, layout_of
from cptron.regularise.taught_file import (
    TaughtRecord,
    bin_file,
    record_file,
    row_type,
    starts_of,
    write_record,
)

if TYPE_CHECKING:
    from cptron.runtime.session import Session

T = TypeVar("T")

AT_ONCE = 8
"""Micro-batches handed to the schedule together, to keep a pipeline full."""


def main(argv: Sequence[str]) -> int:
    """Run `cptron teach`; prints JSON."""
    args = _parser().parse_args(argv)
    cut = layout_of(args, ("top_k", "seq_length", "micro_batch_size"))

    from cptron.runtime.launcher import launched_ranks
    from cptron.runtime.session import SINGLE, open_session

    ranks = launched_ranks() or SINGLE
    with open_session(ranks, cut, device=args.device) as session:
        record = teach(
            Path(args.checkpoint),
            args.data,
            session,
            top_k=args.top_k,
            seq_length=args.seq_length,
            micro_batch_size=args.micro_batch_size,
            precision=args.precision,
        )
    if ranks.is_main:
        said = {"file": str(bin_file(args.data)), "tokens": record.tokens, "bytes": record.bytes}
        print(
            json.dumps(said | {"top_k": record.top_k, "weights": record.weights_fingerprint[:12]}), flush=True
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron teach",
        description="Write, beside token files, what a model takes for the most likely next tokens at each place: "
        "6 bytes for each, so 192 a token with --top-k 32.",
        epilog="on many ranks: start it with torchrun or srun; all of them must see the same files",
    )
    add = parser.add_argument
    add("checkpoint", help="checkpoint or run directory: what the run that is to learn from it starts from")
    add("--data", metavar="PREFIX", required=True, help="token files of a replay source")
    add("--top-k", type=int, default=32, help="answers for each token (default: 32)")
    add("--seq-length", type=int, default=1024, help="tokens that the model sees at a time (default: 1024)")
    add("--micro-batch-size", type=int, default=4, help="windows in one forward pass (default: 4)")
    add_cut_options(parser)
    return parser


def teach(
    checkpoint: Path,
    prefix: str,
    session: Session,
    *,
    top_k: int,
    seq_length: int,
    micro_batch_size: int,
    precision: Literal["fp32", "bf16"],
) -> TaughtRecord:
    """Write the file and its record; collective. Raises a `CptronError` on every rank."""
    from cptron.checkpoint import layout
    from cptron.checkpoint.hashing import hash_file
    from cptron.model.options import ModelOptions
    from cptron.model.segments import local_tokens
    from cptron.regularise.open_teacher import frozen_model
    from cptron.runtime.dist import agree, from_main
    from cptron.runtime.groups import is_last_stage
    from cptron.runtime.pipeline import top_tokens_of
    from cptron.versions import installed_versions

    found = agree(lambda: layout.resolve(str(checkpoint)))
    manifest = agree(lambda: layout.read_manifest(found))
    windows = agree(lambda: Windows(prefix, seq_length, manifest.arch.vocab_size, top_k))
    chunks = frozen_model(found, session, ModelOptions(precision=precision), top_k)
    from_main(lambda: windows.make_file(top_k))
    rows = agree(lambda: windows.open_file(top_k))
    topology, rank = session.topology, session.ranks.rank
    writes = is_last_stage() and topology.tp_rank(rank) == 0
    here_S = local_tokens(seq_length, topology.layout.cp, topology.cp_rank(rank))
    firsts = range(session.dp_rank * micro_batch_size, windows.count, topology.dp * micro_batch_size)

    def ask() -> None:
        for at in range(0, len(firsts), AT_ONCE):
            batches = [windows.batch(first, micro_batch_size) for first in firsts[at : at + AT_ONCE]]
            answers = top_tokens_of(chunks, batches, session.device.torch_device)
            for first, answer in zip(firsts[at : at + AT_ONCE], answers, strict=True) if writes else ():
                ids_BSK, probabilities_BSK = (part.cpu().numpy() for part in answer)
                windows.write(rows, first, here_S, ids_BSK, probabilities_BSK)
        on_disk(prefix, rows.flush)

    agree(ask)  # tokens that are damaged are met by one copy of the model, and the others wait for it

    def complete() -> TaughtRecord:
        file = hash_file(bin_file(prefix))
        record = TaughtRecord(
            top_k=top_k,
            tokens=windows.num_tokens,
            seq_length=seq_length,
            checkpoint=str(found.resolve()),
            weights_fingerprint=manifest.weights_fingerprint,
            data=windows.content.identity,
            bytes=file.size,
            sha256=file.sha256,
            versions=installed_versions(),
        )
        write_record(prefix, record)
        return record

    return from_main(lambda: on_disk(prefix, complete))


class Windows:
    """All tokens of the files in windows, in the order of the index."""

    def __init__(self, prefix: str, seq_length: int, vocab_size: int, top_k: int) -> None:
        """Raises `DataError` where the files are damaged, `ConfigError` where so many answers cannot be given."""
        if top_k > vocab_size:
            raise ConfigError(f"--top-k={top_k} is more than the model's {vocab_size} tokens; lower it")
        self.prefix = prefix
        self.content: Content = open_content(prefix)
        self._seq_length, self._vocab_size = seq_length, vocab_size
        self._starts = starts_of(self.content.tokens)
        self.num_tokens = int(self.content.tokens.num_tokens)
        self.count = -(-self.num_tokens // seq_length)
        if not self.num_tokens:
            raise DataError(f"{prefix} has 0 tokens, nothing to ask about; give a source's token files")

    def make_file(self, top_k: int) -> None:
        """An empty file of its size, in the place of an old one, whose record goes first. Raises `DataError`."""

        def make() -> None:
            record_file(self.prefix).unlink(missing_ok=True)
            with bin_file(self.prefix).open("wb") as stream:
                # with its place on the disk: a write to a map that finds the disk full would kill the process
                os.posix_fallocate(stream.fileno(), 0, self.num_tokens * row_type(top_k).itemsize)

        on_disk(self.prefix, make)

    def open_file(self, top_k: int) -> Any:
        """The file's rows, to be written to."""
        return on_disk(
            self.prefix,
            lambda: np.memmap(bin_file(self.prefix), row_type(top_k), "r+", shape=(self.num_tokens,)),
        )

    def batch(self, first: int, rows: int) -> MicroBatch:
        """Windows `first` to `first + rows`; places beyond the last token are zeros of a document of their own."""
        shape = (rows, self._seq_length)
        tokens_BS, documents_BS = np.zeros(shape, np.int64), np.zeros(shape, np.int32)
        for row in range(rows):
            start = (first + row) * self._seq_length
            stop = min(start + self._seq_length, self.num_tokens)
            if start < stop:
                ids, documents = self._read(start, stop)
                tokens_BS[row, : stop - start], documents_BS[row, : stop - start] = ids, documents
                documents_BS[row, stop - start :] = documents[-1] + 1
        return MicroBatch(
            tokens_BS,
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
            np.zeros(rows, np.int64),
            documents_BS,
        )

    def write(
        self, rows: Any, first: int, here_S: np.ndarray, ids_BSK: np.ndarray, chances_BSK: np.ndarray
    ) -> None:
        """Enter what was answered at the places `here_S` of the windows from `first` on."""
        places_BS = (first + np.arange(len(ids_BSK)))[:, None] * self._seq_length + here_S
        real_BS = places_BS < self.num_tokens
        rows["ids"][places_BS[real_BS]] = ids_BSK[real_BS]
        rows["logs"][places_BS[real_BS]] = np.log(np.maximum(chances_BSK[real_BS], 1e-20))

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the tokens `start` to `stop`, and the document of each, counted from the first."""
        tokens, parts, lengths = self.content.tokens, [], []
        document = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            offset = start - int(self._starts[document])
            count = min(stop - start, int(tokens.lengths_tokens[document]) - offset)
            if count > 0:
                parts.append(tokens.read(document, offset, count))
                lengths.append(count)
            start, document = start + max(count, 0), document + 1
        ids = np.concatenate(parts).astype(np.int64)
        with named(self.prefix):
            check_ids(ids, self._vocab_size)
        return ids, np.repeat(np.arange(len(lengths)), lengths)


def on_disk(prefix: str, action: Callable[[], T]) -> T:
    """What `action` returns; a full disk becomes an error that all ranks hear of."""
    try:
        return action()
    except OSError as error:
        raise DataError(
            f"{bin_file(prefix)} cannot be written ({error}); free space, or make it writable"
        ) from None
