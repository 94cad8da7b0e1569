"""The process that writes a rank's blocks while the rank trains on.

Place in the flow: started by `background`, one for each rank; reads requests from its standard input and answers on its
standard output, a line of JSON each. Imports no torch. Invariant: it never outlives the rank that started it, so that
nobody writes into a directory that a restarted run has begun anew.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cptron.checkpoint.block_writer import BlockSpec, write_blocks

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Serve the rank `parent`, whose memory is in the file `descriptor`, until it closes the pipe."""
    die_with(parent)
    give_way()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the keyboard's signal is for the rank, which stops this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for line in sys.stdin:
        answer = json.dumps(serve(descriptor, json.loads(line)))
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def die_with(parent: int) -> None:
    """Be killed when the process `parent` ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def give_way() -> None:
    """Take little of a processor that training wants: ranks wait for the slowest, so what is taken from one is taken
    from all. While training waits for this process, at the next save or at the end, it has what it needs."""
    os.nice(19)


def serve(descriptor: int, request: dict[str, Any]) -> dict[str, Any]:
    """Write what is asked for; the answer is `Written`'s JSON form, or an `error`."""
    with mmap.mmap(descriptor, request["num_bytes"], prot=mmap.PROT_READ) as memory:
        whole = memoryview(memory)
        specs = [(_spec(values), start) for values, start in request["blocks"]]
        views = [(spec, whole[start : start + spec.num_bytes]) for spec, start in specs]
        try:
            return write_blocks(Path(request["directory"]), request["rank"], views).to_dict()
        except OSError as error:
            return {"error": str(error)}
        finally:
            for _, view in views:
                view.release()
            whole.release()


def _spec(values: dict[str, Any]) -> BlockSpec:
    tuples = {name: tuple(values[name]) for name in ("offsets", "sizes", "place", "matrix")}
    return BlockSpec(**{**values, **tuples})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
