"""Join Megatron `.bin`/`.idx` token files: `merge_datasets.py --input DIR --output-prefix P`, or `--inputs PREFIX ...`.

A thin front of `cptron merge`.
"""

from __future__ import annotations

import sys

from cptron.cli import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
