"""Bring Megatron-LM, the peer of the preprocessing rows, to this machine.

Usage: python -m benchmarks.data.get_peers      (needs git, pip and a network; nothing is installed into .venv)

Place in the flow: before `run`; its folders are git-ignored. Invariant: Megatron-LM's files are as they were
cloned.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MEGATRON_DIR = ROOT / ".cache" / "megatron-lm"
PACKAGES_DIR = ROOT / ".cache" / "bench-peers"
REPOSITORY = "https://github.com/NVIDIA/Megatron-LM"


@dataclass(frozen=True)
class Megatron:
    """A checkout of Megatron-LM that can run."""

    directory: Path = MEGATRON_DIR

    @property
    def why_not(self) -> str | None:
        """Why it cannot run, and what to do; None when it can."""
        if not (self.directory / "tools" / "preprocess_data.py").is_file():
            return f"{self.directory} has no Megatron-LM; `make bench-peers` clones it, or name one with --megatron-lm"
        if not PACKAGES_DIR.is_dir():
            return f"{PACKAGES_DIR} is not there; `make bench-peers` fills it"
        return None

    @property
    def version(self) -> str:
        """Version and commit."""
        numbers = {}
        for line in (self.directory / "megatron" / "core" / "package_info.py").read_text().splitlines():
            name, _, value = line.partition(" = ")
            if name in ("MAJOR", "MINOR", "PATCH"):
                numbers[name] = value.strip()
        return f"{'.'.join(numbers[name] for name in ('MAJOR', 'MINOR', 'PATCH'))} ({self._commit()[:12]})"

    def _commit(self) -> str:
        noted = self.directory / "COMMIT"
        if noted.is_file():
            return noted.read_text().strip()
        asked = subprocess.run(
            ["git", "-C", str(self.directory), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.stdout.strip() or "unknown commit"

    def command(self, tool: str) -> list[str]:
        """How one of its tools is started."""
        return [sys.executable, "-W", "ignore", str(self.directory / "tools" / tool)]

    @property
    def env(self) -> dict[str, str]:
        """Variables for its processes: its own megatron.core, no GPU, no network."""
        path = ":".join(str(folder) for folder in (self.directory, PACKAGES_DIR, HERE / "peer_site"))
        return {
            "PYTHONPATH": path,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "NO_VCS_VERSION": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }


def _made(target: Path, words: list[str]) -> bool:
    """Let a command, its last argument the folder, fill `target`; one that is killed leaves no half of it."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if subprocess.run([*words, str(partial)], check=False).returncode != 0:
        return False
    partial.rename(target)
    return True


def main() -> int:
    """Clone and install what is not there yet."""
    clone = ["git", "clone", "--quiet", "--depth", "1", REPOSITORY]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    wanted = ["--no-deps", "-r", str(HERE / "requirements-peers.txt"), "--target"]
    for target, words in ((MEGATRON_DIR, clone), (PACKAGES_DIR, [*pip, *wanted])):
        if not target.is_dir() and not _made(target, words):
            print(
                f"error: {' '.join(words)} did not fill {target}; check the network and run again",
                file=sys.stderr,
            )
            return 2
    reason = Megatron().why_not
    print(f"error: {reason}" if reason else f"peers: Megatron-LM {Megatron().version}")
    return 2 if reason else 0


if __name__ == "__main__":
    raise SystemExit(main())
