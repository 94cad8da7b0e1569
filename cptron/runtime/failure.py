"""What a rank does when it, or another one, comes to a bad end.

Place in the flow: around everything the ranks do together. Invariant: whoever failed says so first and in full, every
other rank says in one line whom it lost, and all of them end within seconds with the same exit code, also those that
are stuck in a collective.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cptron.config.schema import RuntimeConfig
from cptron.errors import EXIT_CODE, FAILED_EXIT_CODE, HANG_EXIT_CODE, CptronError, RankEnded
from cptron.runtime.launcher import Ranks
from cptron.runtime.lifeline import Ending, Lifeline
from cptron.runtime.pace import Pace
from cptron.runtime.watchdog import STACKS, Watchdog, keep_stacks, stacks

HEAR_S = 3.0
"""A rank whose collective failed waits so long to learn why."""
GRACE_S = 5.0
"""A rank that learned of another's end has so long to end by itself, for instance by the same error."""
SHOW_S = 2.0
"""After a hang every rank has so long to show its stacks."""
TEARDOWN_S = 30.0
"""Longest time from a failure to the end of the process."""
_OF_COLLECTIVES = ("gloo", "NCCL", "nccl", "TCPStore", "onnection reset", "onnection closed", "roken pipe")


class CommonEnd:
    """One rank's part in ending together."""

    def __init__(self, ranks: Ranks, pace: Pace, runtime: RuntimeConfig, run_file: Path) -> None:
        """`run_file` is there once the run has begun."""
        self._ranks, self._pace, self._runtime, self._run_file = ranks, pace, runtime, run_file
        self._lifeline: Lifeline | None = None
        self._timer: threading.Timer | None = None
        self._setting_timer = threading.Lock()
        self._showing = threading.Lock()
        self._saying = threading.Lock()
        self._said: set[str] = set()
        self._shown = False
        self._leaving = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Meanwhile the ranks look after each other; collective. An exception that is no `CptronError` becomes
        `RankEnded`, once it is reported."""
        rank = self._ranks.rank
        watchdog = Watchdog(self._pace, self._runtime, self._hang)
        in_peace = False
        try:
            if self._ranks.world_size > 1:
                self._lifeline = Lifeline(self._ranks, self._other_ended)
            yield
            in_peace = True
        except CptronError as error:
            where = f" [rank {rank}]" if self._ranks.world_size > 1 else ""
            self._leave(EXIT_CODE, f"cptron: error{where}: {error}")
            self._tell(Ending(rank, EXIT_CODE, str(error)))
            raise
        except Exception as error:
            if self._lifeline is None:
                raise
            raise self._failed(error) from error
        finally:
            watchdog.close()
            if self._lifeline is not None:
                self._lifeline.close(in_peace=in_peace)

    def close(self) -> None:
        """This process has come through its teardown."""
        if self._timer is not None:
            self._timer.cancel()

    def _failed(self, error: Exception) -> RankEnded:
        """Report an exception of this rank: its own, or what it felt of another's end."""
        assert self._lifeline is not None
        ending = self._lifeline.wait(HEAR_S) if _of_a_collective(error) else None
        if ending is None:
            ending = Ending(self._ranks.rank, FAILED_EXIT_CODE, _in_short(error))
            self._say("".join(traceback.format_exception(error)), prefix=f"[rank {self._ranks.rank}] ")
            self._tell(ending)
        else:
            self._say_once(self._about(ending))
        self._leave(ending.code)
        return RankEnded(ending.code, self._about(ending))

    def _leave(self, code: int, line: str = "") -> None:
        """The main thread is on its way out, and knows why; `line` is what it has still to say."""
        self._leaving = True
        self._end_within(TEARDOWN_S, code, line)

    def _other_ended(self, ending: Ending) -> None:
        """In the lifeline's thread: show the stacks after a hang, and see to it that this process ends."""
        grace_s = GRACE_S
        if ending.code == HANG_EXIT_CODE:
            if not self._leaving:  # first: the disk that takes the stacks may be what hangs
                self._end_within(TEARDOWN_S, ending.code, self._about(ending))
            self._show_stacks(f"rank {ending.rank} hangs: {ending.text}")
            grace_s = SHOW_S
        if not self._leaving:
            self._end_within(grace_s, ending.code, self._about(ending))

    def _hang(self, what: str) -> None:
        """In the watchdog's thread: this rank does not come forward."""
        if self._lifeline is not None and self._lifeline.ending is not None:
            return  # it waits for one whose end is known
        self._end_within(TEARDOWN_S, HANG_EXIT_CODE)
        self._say(f"cptron: [rank {self._ranks.rank}] hangs: {what}")
        self._tell(Ending(self._ranks.rank, HANG_EXIT_CODE, what))
        self._show_stacks(what)
        time.sleep(SHOW_S)
        os._exit(HANG_EXIT_CODE)

    def _show_stacks(self, why: str) -> None:
        with self._showing:
            if self._shown:
                return
            self._shown, text = True, stacks()
            self._say(text, prefix=f"[rank {self._ranks.rank}] ")
            with contextlib.suppress(OSError):  # they are on stderr already
                keep_stacks(self._run_file, self._ranks.rank, why, text)

    def _about(self, ending: Ending) -> str:
        """One line on another rank's end."""
        this = f"cptron: [rank {self._ranks.rank}]"
        if ending.code == HANG_EXIT_CODE:
            return f"{this} stops because rank {ending.rank} hangs; the stacks are in {self._run_file.parent / STACKS}"
        if not ending.text:
            return f"{this} lost contact with rank {ending.rank}; it was probably killed"
        return f"{this} stops because rank {ending.rank} failed: {ending.text}"

    def _tell(self, ending: Ending) -> None:
        if self._lifeline is not None:
            self._lifeline.tell(ending)

    def _end_within(self, seconds: float, code: int, line: str = "") -> None:
        """End the process then, whatever its main thread waits for."""

        def end() -> None:
            if line:
                self._say_once(line)
            os._exit(code)

        with self._setting_timer:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(seconds, end)
            self._timer.daemon = True
            self._timer.start()

    def _say_once(self, line: str) -> None:
        """The main thread and the timer may both come to say it."""
        with self._saying:
            if line not in self._said:
                self._said.add(line)
                self._say(line)

    @staticmethod
    def _say(text: str, prefix: str = "") -> None:
        """Write in one piece, so that the ranks' lines do not mix."""
        lines = "".join(f"{prefix}{line}\n" for line in text.splitlines())
        sys.stderr.write(lines)
        sys.stderr.flush()


def _of_a_collective(error: BaseException) -> bool:
    """Whether this, or what it came from, is how a lost peer feels."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RuntimeError | OSError) and any(word in str(found) for word in _OF_COLLECTIVES):
            return True
        found = found.__cause__ or found.__context__
    return False


def _in_short(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}"[:500]
