"""`cptron split`: the documents of one pair of token files go to several, or some of them to one.

Place in the flow: after `preprocess` or `merge`, to hold out validation data or to make files of a handy size.
Invariant: a document stays whole and in order, and goes to at most one output, exactly one unless `--documents`
leaves it out.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cptron.errors import ConfigError, DataError
from cptron.tokens.curated import read_corpora, write_corpora
from cptron.tokens.index_layout import Int64Array, bin_path, idx_path
from cptron.tokens.indexed import TokenArray
from cptron.tokens.manifest import PARTITION_OF, FileRecord, Manifest, hash_file, write_manifest
from cptron.tokens.publish import refuse_existing
from cptron.tokens.sequence_writer import SequenceWriter
from cptron.tokens.split_plan import LEFT_OUT, Plan, by_fractions, by_max_tokens, by_range
from cptron.tokens.token_files import Piece, TokenFiles

BLOCK_TOKENS = 1 << 22
"""Tokens read at once."""
_NAMES = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Output:
    """One output."""

    prefix: str
    """Path without `.bin` or `.idx`."""
    documents: int
    """Documents in Megatron's index, empty ones included."""
    tokens: int
    """Tokens of all documents."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive documents of at most BLOCK_TOKENS, or a part of one that is longer."""

    tokens: TokenArray
    mask: npt.NDArray[np.uint8] | None
    outputs: Int64Array
    """Output of each document."""
    lengths: Int64Array
    """Tokens of each document, as far as they are in the block."""


def split(files: TokenFiles, output_prefix: str, plan: Plan, *, overwrite: bool = False) -> list[Output]:
    """Write the outputs of `plan`, each with a manifest when the input has one.

    Raises DataError, and publishes nothing, when the input is damaged, an output would have no tokens, or is
    there already without `overwrite`.
    """
    prefixes = [f"{output_prefix}{name}" for name in plan.names]
    if bin_path(files.prefix).resolve() in [bin_path(prefix).resolve() for prefix in prefixes]:
        raise DataError(f"{files.prefix} is the input and must not be replaced; use another --output-prefix")
    if not overwrite:
        refuse_existing(prefixes)
    _raise_open_files_limit()
    try:
        Path(output_prefix).parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    SequenceWriter(prefix, files.dtype, with_mask=files.mask_path is not None)
                )
                for prefix in prefixes
            ]
            _distribute(files, plan, writers)
            records = [writer.finish() for writer in writers]
            for writer in writers:
                writer.publish()
            corpora = read_corpora(files.prefix) if files.manifest else []
            for writer in writers:
                write_corpora(writer.prefix, corpora)
            if files.manifest:
                for number, (writer, record) in enumerate(zip(writers, records, strict=True)):
                    name = Path(files.prefix).name
                    write_manifest(
                        writer.prefix, _manifest(files.manifest, name, plan.describe(number), writer, record)
                    )
    except OSError as error:
        where = error.filename or output_prefix
        raise DataError(f"{where} cannot be used ({error.strerror}); fix that and run again") from error
    return [Output(writer.prefix, writer.num_documents, writer.num_tokens) for writer in writers]


def _raise_open_files_limit() -> None:
    """Each output holds several files open, and there may be hundreds of outputs."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _distribute(files: TokenFiles, plan: Plan, writers: Sequence[SequenceWriter]) -> None:
    sha256 = {"bin": hashlib.sha256(), "loss_mask": hashlib.sha256()}
    everything, first_token = True, 0
    with tqdm(total=files.num_tokens, unit="tokens", unit_scale=True, disable=None) as bar:
        for piece in files.pieces():
            outputs = plan.assign(np.arange(piece.first, piece.first + len(piece.lengths)))
            _add_documents(piece, outputs, writers)
            num_tokens = int(piece.lengths.sum())
            if (outputs == LEFT_OUT).all():
                everything = False
            else:
                for block in _blocks(files, piece, outputs, first_token):
                    sha256["bin"].update(block.tokens.data)
                    if block.mask is not None:
                        sha256["loss_mask"].update(block.mask.data)
                    _add_tokens(block, writers)
            first_token += num_tokens
            bar.update(num_tokens)
    if files.manifest:
        # Damaged input must not get new manifests; where only a part was read, `inspect --verify` can tell.
        found = {kind: digest.hexdigest() for kind, digest in sha256.items()} if everything else {}
        _require_hashes(files, files.manifest, found | {"idx": hash_file(idx_path(files.prefix)).sha256})


def _add_documents(piece: Piece, outputs: Int64Array, writers: Sequence[SequenceWriter]) -> None:
    of_sequence = np.repeat(outputs, piece.sequence_counts)
    for number in np.unique(outputs[outputs != LEFT_OUT]).tolist():
        writers[number].add_documents(
            piece.sequence_lengths[of_sequence == number], piece.sequence_counts[outputs == number]
        )


def _blocks(files: TokenFiles, piece: Piece, outputs: Int64Array, first_token: int) -> Iterator[_Block]:
    """The tokens of `piece`, in order, in blocks of bounded size."""
    ends = np.cumsum(piece.lengths)
    start, begin = 0, 0
    while start < len(ends):
        stop = max(int(np.searchsorted(ends, begin + BLOCK_TOKENS, side="right")), start + 1)
        end = int(ends[stop - 1])
        # More than one step only for a single document that is longer than a block.
        for part in range(begin, end, BLOCK_TOKENS):
            part_end = min(part + BLOCK_TOKENS, end)
            lengths = piece.lengths[start:stop] if stop > start + 1 else np.array([part_end - part])
            span = (first_token + part, first_token + part_end)
            yield _Block(files.tokens(*span), files.mask(*span), outputs[start:stop], lengths)
        start, begin = stop, end


def _add_tokens(block: _Block, writers: Sequence[SequenceWriter]) -> None:
    numbers = np.unique(block.outputs)
    of_token = np.repeat(block.outputs, block.lengths) if len(numbers) > 1 else None
    for number in numbers[numbers != LEFT_OUT].tolist():
        chosen = slice(None) if of_token is None else of_token == number
        writers[number].add_tokens(block.tokens[chosen].data)
        if block.mask is not None:
            writers[number].add_mask(block.mask[chosen].data)


def _require_hashes(files: TokenFiles, manifest: Manifest, found: Mapping[str, str]) -> None:
    for kind, record in manifest.files.items():
        if found.get(kind, record.sha256) != record.sha256:
            raise DataError(
                f"{kind} of {files.prefix} has SHA-256 {found[kind][:12]}, its manifest requires "
                f"{record.sha256[:12]}; copy that file again or preprocess again"
            )


def _manifest(
    origin: Manifest, name: str, holds: str, writer: SequenceWriter, files: Mapping[str, FileRecord]
) -> Manifest:
    """What is known of a part of the files that `origin` describes: records that gave no document are in none."""
    partition = f", partition {origin.partition}" if origin.partition else ""
    lineage = {"split_from": f"{name} {origin.files['bin'].sha256}{partition}", "split_by": holds}
    return replace(
        origin,
        documents=writer.num_documents,
        tokens=writer.num_tokens,
        files=files,
        records_read=writer.num_documents,
        documents_empty_skipped=0,
        documents_rejected={},
        partition="",
        options={**{k: v for k, v in origin.options.items() if k != PARTITION_OF}, **lineage},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cptron split`; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.fractions is None and (args.shuffle_seed is not None or args.names):
        raise ConfigError(
            f"--shuffle-seed {args.shuffle_seed} and --names {args.names} must come with --fractions; add it"
        )
    files = TokenFiles(args.input_prefix)
    outputs = split(files, args.output_prefix, _plan(args, files), overwrite=args.overwrite)
    if files.manifest is None:
        print(f"note: {files.prefix} has no manifest, so the outputs have none", file=sys.stderr)
    for output in outputs:
        print(f"{output.documents:,} documents  {output.tokens:,} tokens  {output.prefix}")
    return 0


def _plan(args: argparse.Namespace, files: TokenFiles) -> Plan:
    if args.documents is not None:
        return by_range(args.documents, files.num_documents)
    if args.max_tokens is not None:
        return by_max_tokens(files, args.max_tokens)
    try:
        fractions = [Fraction(text) for text in args.fractions.split(",")]
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"--fractions {args.fractions} must be numbers such as 0.98,0.02; correct them"
        ) from None
    names = args.names.split(",") if args.names else _NAMES[: len(fractions)]
    return by_fractions(fractions, names, args.shuffle_seed, files.num_documents)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron split", description="Split Megatron .bin/.idx token files by documents."
    )
    parser.add_argument("--input-prefix", required=True, help="files are PREFIX.bin and PREFIX.idx")
    parser.add_argument("--output-prefix", required=True, help="PREFIX, PREFIX_NAME or PREFIX_00000-of-00002")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--documents", metavar="FIRST:STOP", help="one output with these, numbered from 0")
    how.add_argument(
        "--fractions", metavar="F,F,...", help="one output for each share of the documents; sum 1"
    )
    how.add_argument("--max-tokens", type=int, help="as few outputs as hold at most this many tokens each")
    parser.add_argument("--names", metavar="N,N,...", help="for --fractions (default: train,valid,test)")
    parser.add_argument(
        "--shuffle-seed",
        type=int,
        help="for --fractions: by hash of the document's number, not in file order",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser
