"""Split Megatron token files by documents: `split_dataset.py --input-prefix P --output-prefix Q --fractions 0.9,0.1`.

A thin front of `cptron split`.
"""

from __future__ import annotations

import sys

from cptron.cli import main

if __name__ == "__main__":
    sys.exit(main(["split", *sys.argv[1:]]))
