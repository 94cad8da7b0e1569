"""`cptron merge`: several pairs of token files become one, byte for byte as Megatron's tool joins them.

Place in the flow: after `preprocess`, or on files that Megatron made; also behind `tools/merge_datasets.py`.
Invariant: input that its manifest describes is hashed while it is copied, so damage cannot get a new manifest.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from cptron.errors import ConfigError, DataError
from cptron.tokens.curated import read_corpora, write_corpora
from cptron.tokens.index_layout import bin_path, idx_path
from cptron.tokens.manifest import Manifest, hash_file, write_manifest
from cptron.tokens.merge_manifest import merge_manifests, require_same_ids
from cptron.tokens.publish import refuse_existing
from cptron.tokens.sequence_writer import SequenceWriter
from cptron.tokens.token_files import TokenFiles

COPY_BYTES = 1 << 23
"""Copied at once."""
_REMEDY = "copy that file again or preprocess again"


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written."""

    documents: int
    """Documents in Megatron's index, empty ones included."""
    tokens: int
    """Tokens of all documents."""
    manifest: Manifest | None
    """None when an input had none."""
    notes: tuple[str, ...]
    """For people: what was not as it usually is."""


def prefixes_in(directory: str) -> list[str]:
    """Prefixes of all token files in `directory`, sorted as Megatron's tool sorts them.

    Raises DataError when there are none, or half of a pair is missing.
    """
    if not Path(directory).is_dir():
        raise DataError(f"--input {directory} must be a directory of token files; give it or use --inputs")
    names = [path.name for path in Path(directory).iterdir() if path.is_file()]
    halves = {
        suffix: {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
        for suffix in (".bin", ".idx", ".loss_mask.bin")
    }
    pairs = halves[".idx"]
    masks = {f"{name}.loss_mask" for name in halves[".loss_mask.bin"]}
    for alone, missing in ((halves[".bin"] - masks - pairs, ".idx"), (pairs - halves[".bin"], ".bin")):
        if alone:
            raise DataError(
                f"{directory}/{min(alone)}{missing} does not exist, .bin and .idx are both needed; "
                "remove the other half or make the files again"
            )
    if not pairs:
        raise DataError(f"{directory} holds 0 pairs of .bin and .idx, at least 1 is needed; check the path")
    return [str(Path(directory, name)) for name in sorted(pairs)]


def merge(
    prefixes: Sequence[str], output_prefix: str, *, overwrite: bool = False, require_manifest: bool = False
) -> Merged:
    """Join the token files of `prefixes`, in this order, to those of `output_prefix`.

    Raises DataError, and publishes nothing, when the inputs do not belong together (dtype, tokenizer, EOS,
    partitions), one is damaged, or output is there already without `overwrite`.
    """
    real = [Path(bin_path(prefix)).resolve() for prefix in prefixes]
    if bin_path(output_prefix).resolve() in real:
        raise DataError(f"{output_prefix} is an input and must not be replaced; use another --output-prefix")
    if not overwrite:
        refuse_existing([output_prefix])
    try:
        parts = [TokenFiles(prefix) for prefix in prefixes]
        notes = _check(parts, require_manifest)
        planned = _plan(parts)
        Path(output_prefix).parent.mkdir(parents=True, exist_ok=True)
        return _write(parts, output_prefix, planned, notes)
    except OSError as error:
        where = error.filename or output_prefix
        raise DataError(f"{where} cannot be used ({error.strerror}); fix that and run again") from error


def _plan(parts: Sequence[TokenFiles]) -> Manifest | None:
    """The manifest to come, without files; None when an input has none."""
    known = [(part.prefix, part.manifest) for part in parts if part.manifest]
    if not known:
        return None
    prefixes, manifests = zip(*known, strict=True)
    require_same_ids(prefixes, manifests)
    return merge_manifests(prefixes, manifests) if len(known) == len(parts) else None


def _check(parts: Sequence[TokenFiles], require_manifest: bool) -> list[str]:
    """Refuse what cannot be joined; returns notes on what can."""
    first = parts[0]
    for part in parts:
        if part.dtype != first.dtype:
            raise DataError(
                f"{part.prefix} holds {part.dtype.name}, {first.prefix} {first.dtype.name}, must be the same; "
                "preprocess one of them again"
            )
    notes = []
    unknown = [part.prefix for part in parts if part.manifest is None]
    if unknown and require_manifest:
        raise DataError(
            f"{unknown[0]} has no manifest, {len(unknown)} of {len(parts)} inputs have none; "
            "preprocess them again or leave --require-manifest out"
        )
    if unknown:
        notes.append(
            f"{len(unknown)} of {len(parts)} inputs have no manifest ({unknown[0]}), so the result has none"
        )
    masks = [part.mask_path for part in parts]
    if any(masks) and not all(masks) and not unknown:
        notes.append(
            f"{masks.count(None)} of {len(parts)} inputs have no loss mask: all their tokens are learned"
        )
    if any(masks) and unknown:
        notes.append("loss masks are left out, as only a manifest can say that they belong to the files")
    return notes


def _write(
    parts: Sequence[TokenFiles], output_prefix: str, planned: Manifest | None, notes: Sequence[str]
) -> Merged:
    with_mask = planned is not None and any(part.mask_path for part in parts)
    num_bytes = sum(part.num_tokens * part.dtype.itemsize for part in parts)
    with (
        SequenceWriter(output_prefix, parts[0].dtype, with_mask=with_mask) as writer,
        tqdm(total=num_bytes, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for part in parts:
            for piece in part.pieces():
                writer.add_documents(piece.sequence_lengths, piece.sequence_counts)
            _copy(part, "bin", bin_path(part.prefix), writer.add_tokens, bar)
            if with_mask:
                _copy_mask(part, writer)
            if part.manifest:
                _require_hash(part, "idx", idx_path(part.prefix), hash_file(idx_path(part.prefix)).sha256)
        files = writer.finish()
        writer.publish()
    manifest = replace(planned, files=files) if planned else None
    if manifest:
        corpora = {one.fingerprint: one for part in parts for one in read_corpora(part.prefix)}
        write_corpora(output_prefix, list(corpora.values()))
        write_manifest(output_prefix, manifest)
    return Merged(writer.num_documents, writer.num_tokens, manifest, tuple(notes))


def _copy(
    part: TokenFiles, kind: str, path: Path, write: Callable[[memoryview], None], bar: tqdm | None = None
) -> None:
    """Append all of `path`, and prove by its hash that it is what the manifest says."""
    sha256 = hashlib.sha256()
    # The input's hash is computed beside the output's, which `write` does: hashing is what takes the time.
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1) as beside:
        buffer = memoryview(bytearray(COPY_BYTES))
        while num_bytes := stream.readinto(buffer):
            hashed = beside.submit(sha256.update, buffer[:num_bytes]) if part.manifest else None
            write(buffer[:num_bytes])
            if hashed:
                hashed.result()
            if bar is not None:
                bar.update(num_bytes)
    if part.manifest:
        _require_hash(part, kind, path, sha256.hexdigest())


def _copy_mask(part: TokenFiles, writer: SequenceWriter) -> None:
    """Append the mask of `part`; where it has none, all its tokens are learned."""
    if part.mask_path:
        _copy(part, "loss_mask", part.mask_path, writer.add_mask)
        return
    for start in range(0, part.num_tokens, COPY_BYTES):
        writer.add_mask(memoryview(b"\1" * min(COPY_BYTES, part.num_tokens - start)))


def _require_hash(part: TokenFiles, kind: str, path: Path, actual: str) -> None:
    expected = part.manifest.files[kind].sha256 if part.manifest else actual
    if actual != expected:
        raise DataError(f"{path} has SHA-256 {actual[:12]}, its manifest requires {expected[:12]}; {_REMEDY}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cptron merge`; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.multimodal:
        raise ConfigError("--multimodal must be left out, token files hold text only; remove it")
    prefixes = prefixes_in(args.input) if args.input else _prefixes(args.inputs)
    merged = merge(
        prefixes, args.output_prefix, overwrite=args.overwrite, require_manifest=args.require_manifest
    )
    for note in merged.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{len(prefixes):,} inputs  {merged.documents:,} documents  {merged.tokens:,} tokens  {args.output_prefix}"
    )
    return 0


def _prefixes(names: Sequence[str]) -> list[str]:
    """Prefixes, also where a name is a glob, or that of an `.idx` or `.bin`. Those of one glob are sorted.

    A job that waits for the parts is submitted before they exist: no shell can expand the glob for it.
    """
    found: list[str] = []
    for name in names:
        prefix = name.removesuffix(".idx").removesuffix(".bin")
        matches = [prefix] if idx_path(prefix).exists() else sorted(glob.glob(f"{prefix}.idx"))
        if not matches and glob.has_magic(prefix):
            raise DataError(
                f"--inputs {name} matches 0 token files, at least 1 is needed; correct the pattern"
            )
        found += [match.removesuffix(".idx") for match in matches] or [prefix]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron merge", description="Join Megatron .bin/.idx token files, in the order given."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", metavar="DIR", help="all token files of a directory, sorted by name")
    what.add_argument(
        "--inputs", nargs="+", metavar="PREFIX", help="token files or globs, joined in this order"
    )
    parser.add_argument("--output-prefix", required=True, help="files are PREFIX.bin and PREFIX.idx")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument(
        "--require-manifest", action="store_true", help="refuse inputs without a manifest, such as Megatron's"
    )
    parser.add_argument("--multimodal", action="store_true", help="refused: token files hold text only")
    return parser
