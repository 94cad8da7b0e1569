"""Features of one shard on disk: band keys sorted for merging, and the sets for the exact comparison.

Place in the flow: the first pass writes one file a shard; `cluster` reads parts of many. Invariant: a file is a
function of the documents and the scheme; reading holds in memory no more than was asked for.

Layout: that of safetensors, whose header holds the scheme. Document i has the hashes set_starts[i] to
set_starts[i + 1]. The keys of a band are sorted, documents without a word are not among them; `band_starts` says where
each of the 256 values of the highest byte begins.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptron.corpus.dedup.scheme import Described, Scheme, describe
from cptron.corpus.document import Document
from cptron.errors import DataError
from cptron.json_text import parse_json

BATCH_BYTES = 4 << 20
"""Of text that is described at once."""
_DTYPES = {"U8": np.uint8, "U32": np.uint32, "U64": np.uint64}
_ARRAYS = {
    "set_starts": ("U64", 1), "set_hashes": ("U32", 1), "band_keys": ("U64", 2), "band_documents": ("U32", 2),
    "band_starts": ("U32", 2), "ranks": ("U8", 1), "lengths": ("U64", 1), "digests": ("U64", 1),
    "name_starts": ("U64", 1), "names": ("U8", 1),
}  # fmt: skip
"""Type and number of dimensions of each."""
_PREFIXES = np.arange(256, dtype=np.uint64) << np.uint64(56)
_MAX_HEADER_BYTES = 1 << 20


def write_features(
    documents: Iterable[Document], path: Path, scheme: Scheme, preferred: Sequence[str] = ()
) -> int:
    """Write the features of a shard; returns the number of documents without a word, which are alike to none.

    Sources named in `preferred` come first when it is decided what is kept, the earlier the better. Raises OSError.
    """
    ranks = {source: rank for rank, source in enumerate(preferred)}
    described: list[Described] = []
    rows: list[tuple[int, int, int]] = []
    names: list[bytes] = []
    for batch in _batches(documents):
        described.append(describe([document.text for document in batch], scheme))
        for document in batch:
            text = document.text.encode("utf-8", "surrogatepass")
            digest = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
            rows.append((min(ranks.get(document.source, len(ranks)), 255), len(document.text), digest))
            names.append(document.id.encode("utf-8", "backslashreplace"))
    write_described(described, rows, names, path, scheme)
    return sum(int((batch.num_words == 0).sum()) for batch in described)


def write_described(
    described: Sequence[Described],
    rows: Sequence[tuple[int, int, int]],
    names: Sequence[bytes],
    path: Path,
    scheme: Scheme,
) -> None:
    """The same from batches and, for each document, rank of its source, number of characters, digest, and name."""
    from safetensors.numpy import save_file

    sizes = _joined([np.diff(batch.starts) for batch in described], np.int64)
    keys = np.concatenate(
        [np.zeros((scheme.bands, 0), np.uint64), *(batch.keys for batch in described)], axis=1
    )
    table = np.array(rows, np.uint64).reshape(-1, 3)
    arrays = {
        "set_starts": _starts(sizes),
        "set_hashes": _joined([batch.sets for batch in described], np.uint32),
        **_sorted_bands(keys, sizes > 0),
        "ranks": table[:, 0].astype(np.uint8),
        "lengths": table[:, 1].copy(),
        "digests": table[:, 2].copy(),
        "name_starts": _starts(np.array([len(name) for name in names], np.int64)),
        "names": np.frombuffer(b"".join(names), np.uint8),
    }
    # one key: the order of several is not fixed
    save_file(arrays, path, {"cptron": json.dumps(scheme.record(), sort_keys=True)})


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _starts(sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
    starts = np.zeros(len(sizes) + 1, np.uint64)
    np.cumsum(sizes, out=starts[1:].view(np.int64))
    return starts


def _sorted_bands(keys: NDArray[np.uint64], has_words: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    documents = np.flatnonzero(has_words).astype(np.uint32)
    bands, shape = len(keys), (len(keys), len(documents))
    sorted_keys, sorted_documents = np.empty(shape, np.uint64), np.empty(shape, np.uint32)
    starts = np.empty((bands, 257), np.uint32)
    for band in range(bands):
        values = keys[band, documents]
        order = np.argsort(values, kind="stable")
        sorted_keys[band], sorted_documents[band] = values[order], documents[order]
        starts[band] = np.append(np.searchsorted(sorted_keys[band], _PREFIXES), len(documents))
    return {"band_keys": sorted_keys, "band_documents": sorted_documents, "band_starts": starts}


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: type
    shape: tuple[int, ...]
    begin: int
    end: int


def _place(entry: dict[str, Any], base: int, kind: str, dimensions: int) -> _Place:
    """An entry of the header. Raises ValueError, KeyError or TypeError for anything else."""
    begin, end = entry["data_offsets"]
    numbers = [*entry["shape"], begin, end]
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        raise ValueError("no sizes")
    if entry["dtype"] != kind or len(entry["shape"]) != dimensions:
        raise ValueError("another array")
    return _Place(_DTYPES[entry["dtype"]], tuple(entry["shape"]), base + begin, base + end)


class FeatureFile:
    """A file of features, open for reading. Nothing of it is mapped or kept."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where the file is missing, damaged, or no file of features."""
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); make the features again") from None
        try:
            self._places, self.scheme = self._header()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):  # a directory
                raise DataError(
                    f"{path} cannot be read ({error.strerror}); make the features again"
                ) from None
            raise
        self.num_documents = self._places["ranks"].shape[0]

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.descriptor)

    def array(self, name: str) -> NDArray[Any]:
        """All of an array."""
        place = self._places[name]
        return self._read(place, 0, math.prod(place.shape)).reshape(place.shape)

    def byte_of(self, name: str) -> int:
        """Where an array begins in the file."""
        return self._places[name].begin

    @property
    def num_hashes(self) -> int:
        """In the sets of all documents."""
        return self._places["set_hashes"].shape[0]

    def name_of(self, document: int) -> str:
        """The document's name."""
        begin, end = self._read(self._places["name_starts"], document, document + 2).tolist()
        return self._read(self._places["names"], begin, end).tobytes().decode("utf-8", "replace")

    @cached_property
    def num_keys(self) -> int:
        """Documents with a word."""
        return self._places["band_keys"].shape[1]

    def band(self, band: int, first: int, stop: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Keys of a band whose highest byte is in [first, stop), sorted, and their documents."""
        starts = self._read(self._places["band_starts"], 257 * band, 257 * (band + 1))
        edges = int(starts[first]), int(starts[stop])
        if not edges[0] <= edges[1] <= self.num_keys:
            raise self._damaged("has keys that are not where it says")
        begin, end = (band * self.num_keys + edge for edge in edges)
        keys = self._read(self._places["band_keys"], begin, end)
        documents = self._read(self._places["band_documents"], begin, end)
        if len(documents) and int(documents.max()) >= self.num_documents:
            raise self._damaged("has keys of documents that are not there")
        return keys, documents

    def _read(self, place: _Place, first: int, stop: int) -> NDArray[Any]:
        """Elements [first, stop) of an array."""
        if not 0 <= first <= stop <= math.prod(place.shape):
            raise self._damaged("has parts that are not where it says")
        width = np.dtype(place.dtype).itemsize
        num_bytes = (stop - first) * width
        data = bytearray()
        while len(data) < num_bytes:  # one read gives at most 2 GiB
            more = os.pread(self.descriptor, num_bytes - len(data), place.begin + first * width + len(data))
            if not more:
                raise self._damaged("ends too early")
            data = data + more if data else bytearray(more)
        return np.frombuffer(data, place.dtype)

    def _header(self) -> tuple[dict[str, _Place], dict[str, Any]]:
        size = int.from_bytes(os.pread(self.descriptor, 8, 0), "little")
        if not 2 <= size <= _MAX_HEADER_BYTES:
            raise self._damaged("has no header")
        try:
            header = parse_json(os.pread(self.descriptor, size, 8))
            scheme = parse_json(header["__metadata__"]["cptron"])
            places = {name: _place(header[name], 8 + size, *array) for name, array in _ARRAYS.items()}
            if places["band_keys"].shape[0] != scheme["bands"]:
                raise ValueError("other bands")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise self._damaged("has a header of something else") from None
        self._check(places)
        return places, scheme

    def _check(self, places: dict[str, _Place]) -> None:
        file_bytes = os.fstat(self.descriptor).st_size
        for place in places.values():
            size = math.prod(place.shape) * np.dtype(place.dtype).itemsize
            if place.begin + size != place.end or place.end > file_bytes:
                raise self._damaged("is cut off")
        (count,), (bands, keys) = places["ranks"].shape, places["band_keys"].shape
        shapes = {name: place.shape for name, place in places.items()}
        of_each = {"lengths": count, "digests": count, "set_starts": count + 1, "name_starts": count + 1}
        if shapes["band_documents"] != (bands, keys) or shapes["band_starts"] != (bands, 257) or keys > count:
            raise self._damaged("has bands that differ")
        if any(shapes[name] != (length,) for name, length in of_each.items()):
            raise self._damaged("has arrays that differ")

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path} {what}: no features of a shard, or damaged; make the features again")
