"""Installs SLURM and munge from the distribution where they are missing and this user can: as root, with apt-get.

Place in the flow: `make test` and `make test-slurm` run it before their tests; pytest by itself installs nothing.
Invariant: it is quiet, and says in one line why it could not; that is an error only with `--required`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from slurm_cluster import missing

PACKAGES = ("slurm-wlm", "munge")
INSTALL_S = 300
QUICKLY = ("-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")


def install() -> str:
    """What hinders it; empty when everything is there."""
    if not missing():
        return ""
    if not shutil.which("apt-get"):
        return "there is no apt-get"
    if os.geteuid():
        return "only root can install it"
    quiet = {
        **os.environ,
        "DEBIAN_FRONTEND": "noninteractive",
        "RUNLEVEL": "1",
    }  # at which services are not started
    for words in (("update",), ("install", "-y", "--no-install-recommends", *PACKAGES)):
        done = subprocess.run(
            ["apt-get", "-qq", *QUICKLY, *words],
            env=quiet,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_S,
        )
        if done.returncode:
            last = done.stdout.strip().splitlines()[-1:]
            return f"apt-get {words[0]} ended with {done.returncode}: {' '.join(last)}"
    return f"it lacks {', '.join(missing())}" if missing() else ""


def main(words: Sequence[str]) -> int:
    """Say why SLURM is not here, if so."""
    try:
        hindrance = install()
    except subprocess.TimeoutExpired as error:
        hindrance = f"apt-get took longer than {error.timeout:g} s"
    if hindrance:
        print(f"SLURM is not installed ({hindrance}): the tests against the real scheduler are not run")
    return 2 if hindrance and "--required" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
