"""Real documents for the benchmark: documentation packages of Debian, and the Python files of the environment.

Usage: python -m benchmarks.curate.texts OUTPUT.jsonl [--documents 100000]

Place in the flow: `run` makes its input here once. Invariant: the same packages and environment give the same documents
in the same order; none of them is kept in the repository.

A document is a stretch of a file that ends at the first empty line after `CUT_CHARACTERS`. Nothing is added or changed,
so the near-duplicates in it are those of the real world: versions of a library, members of a class family, licences.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.data.measure import ROOT, BenchmarkError

PACKAGES = ("linux-doc-6.1", "openjdk-17-doc", "manpages-de", "manpages-fr", "manpages-es")
CACHE = ROOT / ".cache" / "bench-curate"
CUT_CHARACTERS = 3800
LEAST_CHARACTERS = 400
LARGEST_SHARE = 0.5
"""Of documents that one kind of file may have."""

_HIDDEN = re.compile(r"<(script|style|nav|header|footer)\b.*?</\1>|<!--.*?-->", re.S | re.I)
_BLOCK = re.compile(r"</?(p|div|li|tr|h[1-6]|pre|dt|dd|table|section|br)\b[^>]*>", re.I)
_TAG = re.compile(r"<[^>]*>")
_MARGIN = re.compile(r"[ \t]*\n[ \t]*(\n[ \t]*)+")


def fetch(cache: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """Download and unpack the packages, unless they are there. Raises BenchmarkError."""
    unpacked = cache / "packages"
    unpacked.mkdir(parents=True, exist_ok=True)  # dpkg-deb makes the last folder alone
    for package in packages:
        if (unpacked / package).is_dir():
            continue
        downloads = cache / "downloads" / package
        downloads.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", package], cwd=downloads, check=True, capture_output=True)
            (archive,) = downloads.glob("*.deb")
            part = downloads / "unpacked"
            subprocess.run(["dpkg-deb", "-x", archive, part], check=True, capture_output=True)
            part.rename(unpacked / package)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            why = said.decode(errors="replace").strip().splitlines()[-1]
            raise BenchmarkError(
                f"package {package} cannot be fetched ({why}); needs apt-get and dpkg-deb"
            ) from None
    return unpacked


def text_of(path: Path) -> str:
    """Text of a file; of HTML what is shown."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode("utf-8", "replace")
    if path.suffix == ".html":
        text = html.unescape(_TAG.sub("", _BLOCK.sub("\n", _HIDDEN.sub(" ", text))))
        text = _MARGIN.sub("\n\n", text)
    return text


def pieces(text: str) -> Iterator[str]:
    """Documents of a file."""
    begin = 0
    while begin < len(text):
        end = text.find("\n\n", begin + CUT_CHARACTERS)
        end = len(text) if end < 0 else end + 2
        piece = text[begin:end].strip()
        if len(piece) >= LEAST_CHARACTERS:
            yield piece
        begin = end


def files_of(unpacked: Path) -> dict[str, list[tuple[str, Path]]]:
    """Kind -> names and paths."""
    found: dict[str, list[tuple[str, Path]]] = {package: [] for package in PACKAGES}
    for package in PACKAGES:
        for path in sorted((unpacked / package).rglob("*")):
            if path.suffix in {".html", ".gz", ".txt", ".rst"} and path.is_file() and not path.is_symlink():
                found[package].append((f"{package}/{path.relative_to(unpacked / package)}", path))
    libraries = [Path(folder) for folder in sys.path if folder.endswith("site-packages")]
    found["python"] = [
        (f"python/{number}/{path.relative_to(top)}", path)
        for number, top in enumerate((*libraries, *sorted((ROOT / ".cache").glob("megatron-core-*"))))
        for path in sorted(top.rglob("*.py"))
    ]
    return found


def write(output: Path, count: int, cache: Path = CACHE) -> int:
    """Write `count` documents, or as many as there are; returns their number. Raises BenchmarkError."""
    chosen: list[tuple[bytes, str, str]] = []
    for kind, files in files_of(fetch(cache)).items():
        mine = sorted(
            (hashlib.blake2b(f"{name}#{number}".encode(), digest_size=8).digest(), f"{name}#{number}", piece)
            for name, path in files
            for number, piece in enumerate(pieces(text_of(path)))
        )
        print(f"  {kind}: {len(mine)} documents", file=sys.stderr, flush=True)
        chosen += mine[: int(count * LARGEST_SHARE)]
    chosen.sort()
    unfinished = output.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as stream:
        for _, name, text in chosen[:count]:
            line = json.dumps({"text": text, "id": name, "source": name.split("/")[0]}, ensure_ascii=False)
            stream.write(line.encode("utf-8", "replace").decode() + "\n")
    unfinished.replace(output)
    return min(count, len(chosen))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write real documents as JSONL.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--cache", type=Path, default=CACHE)
    args = parser.parse_args(argv)
    try:
        print(write(args.output, args.documents, args.cache))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
