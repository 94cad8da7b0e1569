"""Commands that are struck from within: a thread of theirs sees what they write and sends the signal.

Place in the flow: started by the tests of kills. Invariant: the thread stands still where its command does, so that the
command is struck in the middle of its work however long the test, or the machine, pauses.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

PROGRAM = """
import multiprocessing, os, signal, sys, threading, time
from pathlib import Path

def found():
    files = []
    for path in Path(folder).glob(pattern):
        try:
            status = path.stat()
        except OSError:
            continue
        files.append((str(path), status.st_ino, status.st_mtime_ns))
    return set(files)

def strike():
    while not found() - before:
        time.sleep(0.002)
    time.sleep(float(delay_s))
    if whom == "group":
        os.killpg(0, int(number))
    elif whom == "worker":
        os.kill(multiprocessing.active_children()[0].pid, int(number))
    else:
        os.kill(os.getpid(), int(number))

whom, number, delay_s, folder, pattern, setup, *words = sys.argv[1:]
before = found()
exec(setup)
from cptron.cli import main
threading.Thread(target=strike, daemon=True).start()
sys.exit(main(words))
"""


def struck(
    words: list[str | Path],
    number: signal.Signals,
    folder: Path,
    pattern: str,
    *,
    whom: str = "command",
    delay_s: float = 0.0,
    setup: str = "",
) -> list[str | Path]:
    """Words of `cptron *words` that sends `number` to itself, its process `group` or one `worker` of its own, so long
    after a file of `pattern` in `folder` is new or changed. `setup` is done first."""
    given = [whom, str(int(number)), str(delay_s), folder, pattern, setup]
    return [sys.executable, "-c", PROGRAM, *given, *words]
