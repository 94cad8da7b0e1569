"""Which files a corpus is made of, and how they are shared between several machines.

Place in the flow: `preprocess` expands what the user named; `read_blocks` reads the inputs one after the other.
Invariant: no file is left out without a word and none is read twice; the parts of a partition make up the whole.
"""

from __future__ import annotations

import glob
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from cptron.corpus.manifest import read_manifest
from cptron.errors import DataError
from cptron.json_text import is_file_name, parse_json

Kind = Literal["jsonl", "text", "parquet", "arrow", "zip"]
Compression = Literal["none", "gzip", "zstd"]

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".md": "text", ".parquet": "parquet",
    ".arrow": "arrow", ".zip": "zip",
}  # fmt: skip
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_ARCHIVES = {".bz2", ".xz", ".lz4", ".7z", ".tar", ".tgz"}
_COMPANIONS = (
    "readme*", "license*", "_success", "*.md5", "*.sha256", "*.crc", "md5sums*", "sha256sums*", "checksums*",
    "dataset_info.json", "dataset_infos.json", "state.json",
)  # fmt: skip
"""What lies beside data and is not data, in lower case."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file, or the part of a plain JSONL file whose lines start in [start_byte, stop_byte)."""

    path: Path
    kind: Kind
    compression: Compression = "none"
    start_byte: int = 0
    stop_byte: int | None = None
    """None: the end of the file."""
    member: str = ""
    """Name of the file inside of `path`, which is a ZIP archive; empty where `path` is the file itself."""
    member_bytes: int = 0
    """Of the member, compressed."""

    @property
    def shown(self) -> str:
        """Where the records are, for people."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def stored_bytes(self) -> int:
        """Size as stored, of the part if it is one."""
        if self.member:
            return self.member_bytes
        stop = self.path.stat().st_size if self.stop_byte is None else self.stop_byte
        return stop - self.start_byte

    @property
    def splits(self) -> bool:
        """Whether reading can start anywhere in it."""
        return self.kind == "jsonl" and self.compression == "none" and not self.member


def expand_inputs(patterns: Iterable[str], *, archives: bool = False) -> list[Input]:
    """Inputs that `patterns` name, in the order given: files, globs (sorted), directories (sorted by path, with all
    below them), curated corpora and directories of the Hugging Face `datasets` library; with `archives` also what is
    in ZIP files.

    A file that is named is read as JSONL if its suffix tells nothing. Raises DataError when a pattern finds nothing,
    a directory holds files of an unknown kind, or a file is named twice.
    """
    found = [source for pattern in patterns for source in _expand(pattern)]
    if archives:
        found = [part for source in found for part in _unpacked(source)]
    elif packed := [source for source in found if source.kind == "zip"]:
        raise DataError(f"{packed[0].path} is packed as .zip, must be plain, .gz or .zst; unpack it first")
    real = [(source.path.resolve(), source.member) for source in found]
    times = Counter(real)
    for source, place in zip(found, real, strict=True):
        if times[place] > 1:
            raise DataError(
                f"input {source.shown} is named {times[place]} times, must be once; narrow the inputs"
            )
    return found


def partition_inputs(inputs: Sequence[Input], index: int, count: int) -> list[Input]:
    """Part `index` of `count`: contiguous, equal in stored bytes as far as files that do not split allow.

    Plain JSONL is cut anywhere (a line belongs to the part where it starts), any other file goes to one part. The
    parts 0 ... count - 1 one after the other hold every record once, in order. Raises DataError for an impossible
    part.
    """
    if not 0 <= index < count:
        raise DataError(f"partition {index} of {count} does not exist, must be 0 ... {count - 1}; correct it")
    sizes = [source.stored_bytes for source in inputs]
    total = sum(sizes)
    begin, end = total * index // count, total * (index + 1) // count
    part: list[Input] = []
    before = 0
    for source, size in zip(inputs, sizes, strict=True):
        if source.splits:
            first, last = max(begin - before, 0), min(end - before, size)
            if (first, last) == (0, size):
                part += [source] if size else []
            elif first < last:
                origin = source.start_byte
                part.append(replace(source, start_byte=origin + first, stop_byte=origin + last))
        elif begin <= before < end or (before == total and index == count - 1):
            part.append(source)
        before += size
    return part


def _expand(pattern: str) -> list[Input]:
    if Path(pattern).exists():
        return _named(Path(pattern))
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in matches if path.is_file()]
    inside = {
        parent for path in files for parent in path.parents
    }  # `**` finds directories beside their files
    found: list[Input] = []
    for path in matches:
        if not files or not path.is_dir():
            found += _named(path)
        elif path not in inside:
            found += _below(path)  # perhaps nothing: an empty directory beside files is no mistake
    if not found:
        raise DataError(f"input {pattern} matches 0 files, at least 1 is needed; check the path")
    return found


def _named(path: Path) -> list[Input]:
    if not path.is_dir():
        return [_input(path) or Input(path, "jsonl", _compression(path))]
    found = list(_below(path))
    if not found:
        known = ", ".join(sorted(_KINDS))
        raise DataError(f"directory {path} holds 0 files with data ({known}), at least 1 is needed; check it")
    return found


def _below(directory: Path) -> Iterator[Input]:
    corpus = read_manifest(directory)
    if corpus is not None:  # a report and rejected records lie beside its files
        yield from (
            Input(directory / file.name, "jsonl", _compression(Path(file.name))) for file in corpus.files
        )
        return
    splits = directory / "dataset_dict.json"
    if splits.is_file():
        names = ", ".join(str(name) for name in _read_json(splits, "splits"))
        raise DataError(f"{directory} holds the splits {names}, must be one split; name {directory}/<split>")
    if (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file():
        yield from _hugging_face_dataset(directory)
        return
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            _require_end(path)
            yield from _below(path)
        elif not _lies_beside(path.name):
            source = _input(path)
            if source is None:
                raise DataError(
                    f"{path} is of an unknown kind, must be one of {', '.join(sorted(_KINDS))}; "
                    "name the files with a glob"
                )
            if not path.is_file():  # to open a pipe is to wait for a writer
                raise DataError(f"{path} is a pipe or a device, must be a file; remove it")
            yield source


def _require_end(directory: Path) -> None:
    """A link to a directory that it lies in has no end."""
    if directory.is_symlink() and directory.parent.resolve().is_relative_to(directory.resolve()):
        raise DataError(
            f"{directory} is a link to a directory around it, must not be; remove it or name the files with a glob"
        )


def _hugging_face_dataset(directory: Path) -> Iterator[Input]:
    """Arrow files in the order of the dataset's state: its cache files lie beside them."""
    state = directory / "state.json"
    if _read_json(state, "_indices_data_files", "_indices_files", default=[]):
        raise DataError(
            f"{directory} is a dataset with an index of rows, must be flat; save it after flatten_indices()"
        )
    for entry in _read_json(state, "_data_files"):
        name = entry.get("filename") if isinstance(entry, dict) else None
        path = directory / str(name)
        if not is_file_name(name) or not path.is_file():
            raise DataError(f"{state} names the data file {name!r}, must be a file beside it; save it again")
        yield Input(path, "arrow")


def _unpacked(source: Input) -> Iterator[Input]:
    """The members of a ZIP file, sorted by name; any other input as it is."""
    if source.kind != "zip":
        yield source
        return
    try:
        with zipfile.ZipFile(source.path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.filename)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{source.path} must be a sound ZIP file ({error}); copy it again") from None
    if members and not members[0].filename:
        raise DataError(f"{source.path} must be a sound ZIP file (a file in it has no name); copy it again")
    for member in members:
        name = PurePosixPath(member.filename)
        if member.is_dir() or name.name.startswith(".") or _lies_beside(name.name):
            continue
        shown = f"{source.path}/{name}"
        inner = _input(Path(member.filename))
        if inner is None or inner.kind not in ("jsonl", "text"):
            raise DataError(f"{shown} must be JSONL or text inside of a ZIP file; unpack the file first")
        if member.flag_bits & 1:
            raise DataError(f"{shown} is encrypted, must not be; unpack the file first")
        yield Input(
            source.path,
            inner.kind,
            inner.compression,
            member=member.filename,
            member_bytes=member.compress_size,
        )


def _lies_beside(name: str) -> bool:
    return any(fnmatch(name.lower(), companion) for companion in _COMPANIONS)


def _read_json(path: Path, *keys: str, default: list[object] | None = None) -> list[object]:
    """The list at the first of `keys` that is there."""
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} must be JSON ({error}); save the dataset again") from error
    present = [content[key] for key in keys if content.get(key)] if isinstance(content, dict) else []
    value = present[0] if present else default
    if not isinstance(value, list):
        raise DataError(f"{path} has no list {keys[0]!r}, must have it; save the dataset again")
    return value


def _input(path: Path) -> Input | None:
    """None for a suffix that tells nothing."""
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a link to nothing, must be a file; remove it or restore its target")
    compression = _compression(path)
    inner = path.with_suffix("") if compression != "none" else path
    suffix = inner.suffix.lower()
    if suffix in _ARCHIVES:
        raise DataError(f"{path} is packed as {suffix}, must be plain, .gz or .zst; unpack it first")
    kind = _KINDS.get(suffix)
    if kind in ("parquet", "arrow", "zip") and compression != "none":
        raise DataError(f"{path} is a {kind} file in {compression}, must be stored plainly; decompress it")
    return None if kind is None else Input(path, kind, compression)


def _compression(path: Path) -> Compression:
    return _COMPRESSIONS.get(path.suffix.lower(), "none")
