"""Encode JSONL corpora into Megatron `.bin`/`.idx` token files; the flags are those of Megatron's tool.

A thin front of `cptron preprocess`.
"""

from __future__ import annotations

import sys

from cptron.cli import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))
