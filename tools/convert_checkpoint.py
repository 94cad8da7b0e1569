#!/usr/bin/env python3
"""Convert a Hugging Face model to a checkpoint, or back: `convert_checkpoint.py import|export SOURCE TARGET`.

A thin front of `cptron convert` and `cptron export`.
"""

from __future__ import annotations

import sys

from cptron.cli import main

if __name__ == "__main__":
    directions = {"import": "convert", "export": "export"}
    if len(sys.argv) < 2 or sys.argv[1] not in directions:
        print(f"usage: {sys.argv[0]} import|export SOURCE TARGET", file=sys.stderr)
        sys.exit(2)
    sys.exit(main([directions[sys.argv[1]], *sys.argv[2:]]))
