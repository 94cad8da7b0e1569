"""The process that traces: a request as JSON on its standard input, a line of JSON for each rank on its output.

Place in the flow: started by `cptron plan --dry-run`, so that fake ranks and tensors are in no process that does
anything else. Invariant: what it cannot trace is said in one line on its error output, with exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from dataclasses import asdict
from typing import Any

from cptron.config.load import load_values
from cptron.errors import EXIT_CODE, CptronError, LaunchError
from cptron.model.architecture import Architecture


def main() -> int:
    """Answer one request; returns the exit code."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that is here has nothing to do with the ranks traced
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    request = json.load(sys.stdin)
    try:
        for rank in request["ranks"]:
            print(json.dumps(_answer(request, rank)), flush=True)
    except CptronError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    return 0


def _answer(request: dict[str, Any], rank: int) -> dict[str, Any]:
    from torch._subclasses.fake_tensor import UnsupportedOperatorException

    from cptron.train.dry_run import trace_rank

    config = load_values(request["config"], "the recipe").config
    arch = Architecture.from_dict(request["architecture"])
    start_s = time.process_time()
    try:
        traced = trace_rank(config, arch, request["world_size"], rank, on_gpu=request["on_gpu"])
    except (UnsupportedOperatorException, NotImplementedError) as error:
        raise LaunchError(
            f"rank {rank} uses an operation that cannot be traced without its device ({error!s:.200}); "
            "leave out --dry-run: the planner's formulas know this recipe"
        ) from error
    return {"rank": rank, "cpu_s": time.process_time() - start_s, **asdict(traced)}


if __name__ == "__main__":
    sys.exit(main())
