"""Encode JSONL corpora into Megatron `.bin`/`.idx` token files; the flags are those of Megatron's tool."""

from __future__ import annotations

import sys

from cptron.tokens.preprocess import main

if __name__ == "__main__":
    sys.exit(main())
