"""Show what Megatron token files hold: `inspect_dataset.py PREFIX [--document N] [--tokenizer T] [--verify] [--json]`.

A thin front of `cptron inspect`.
"""

from __future__ import annotations

import sys

from cptron.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
