"""Curate a corpus: filters, duplicates, personal data, by a YAML file.

A thin front of `cptron curate`.
"""

from __future__ import annotations

import sys

from cptron.cli import main

if __name__ == "__main__":
    sys.exit(main(["curate", *sys.argv[1:]]))
