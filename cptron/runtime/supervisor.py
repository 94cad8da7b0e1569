"""Starts the ranks of this machine through torchrun's agent, and answers for them with one exit code.

Place in the flow: `cptron train` with `parallel.local_ranks` becomes this process; the ranks are its children. What it
adds to torchrun: signals go to the ranks, which have time to save; ranks that stopped by request or by a user's error
are not started again; their exit codes stay what they were. Invariant: when it returns, no rank is left.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from cptron.config.schema import RuntimeConfig
from cptron.errors import EXIT_CODE, FAILED_EXIT_CODE, HANG_EXIT_CODE, STOPPED_EXIT_CODE
from cptron.runtime.deadline import STARTED
from cptron.runtime.signals import STOP_SIGNALS

FINAL = (STOPPED_EXIT_CODE, EXIT_CODE)
"""Codes after which ranks are not started again."""
SETTLE_S = 10.0
"""Once a rank has ended, the others have so long to end by themselves, each with its own words."""
POLL_S = 0.1
_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def supervise(words: Sequence[str], num_ranks: int, runtime: RuntimeConfig) -> int:
    """Run `python *words` as `num_ranks` ranks here; returns the exit code for all of them."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the session sets threads per rank itself
    os.environ[STARTED] = str(time.monotonic())
    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # the ranks and this file say it better
    rendezvous = RendezvousParameters("c10d", "localhost:0", uuid.uuid4().hex, 1, 1, timeout=900)
    spec = WorkerSpec(
        role="rank",
        local_world_size=num_ranks,
        entrypoint=sys.executable,
        args=tuple(words),
        rdzv_handler=get_rendezvous_handler(rendezvous),
        max_restarts=runtime.max_restarts,
        monitor_interval=POLL_S,
    )
    agent = RankAgent(spec, runtime.stop_grace_s)
    try:
        agent.run()
    except SignalException as error:  # SIGQUIT, or a signal before there were ranks
        return 128 + int(error.sigval)
    finally:
        spec.rdzv_handler.shutdown()
    return agent.exit_code()


class RankAgent(LocalElasticAgent):
    """torchrun's agent for one machine, which knows what the exit codes of ranks mean."""

    def __init__(self, spec: WorkerSpec, stop_grace_s: int) -> None:
        super().__init__(spec, DefaultLogsSpecs())
        self._grace_s = stop_grace_s
        self._asked: signal.Signals | None = None
        self._asked_s = 0.0
        self._hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup leaves it
        self._told: set[int] = set()
        self._killed: set[int] = set()
        self._ended: dict[int, int] = {}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start the ranks. The base class takes some signals meanwhile; from here on all go to the ranks."""
        for known in (self._told, self._killed, self._ended):
            known.clear()  # of earlier ranks, whose process ids may come again
        self._listen()
        started: dict[int, Any] = super()._start_workers(worker_group)
        self._listen()
        return started

    def _listen(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if self._hangup_ignored else self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """A signal came to this process. Ranks know no SIGHUP."""
        name = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        if self._asked is None:
            self._asked, self._asked_s = name, time.monotonic()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """Look at the ranks, as the base class does; but pass the signal on, let ranks end by themselves before they
        are ended, and decide whether they may be started again. The base class waits for ranks that have ended, and
        forgets how: it is asked only when all have ended, or one has failed and that is judged."""
        self._pass_on()
        self._look()
        codes = self._codes()
        if any(codes.values()):
            self._name_the_killed()
            self._wait_for_the_rest()
            self._judge()
        elif len(codes) < len(self._pids()):
            return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _pass_on(self) -> None:
        """Send every rank the signal, once, and SIGKILL when their time is over."""
        if self._asked is None:
            return
        for pid in set(self._running()) - self._told:
            os.kill(pid, self._asked)
            self._told.add(pid)
        if time.monotonic() > self._asked_s + self._grace_s and (slow := set(self._running()) - self._killed):
            _say(
                f"{len(slow)} rank(s) did not stop within {self._grace_s} s of {self._asked.name}; killing them"
            )
            for pid in slow:
                os.kill(pid, signal.SIGKILL)
            self._killed |= slow

    def _wait_for_the_rest(self) -> None:
        """One rank has failed. The others know it, and have something to say or to save."""
        deadline_s = time.monotonic() + SETTLE_S
        while self._running() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
            self._pass_on()

    def _name_the_killed(self) -> None:
        """They could say nothing themselves."""
        for rank, code in sorted(self._codes().items()):
            if code < 0 and not self._asked:
                _say(f"rank {rank} was killed by {signal.Signals(-code).name}")

    def _judge(self) -> None:
        """Decide whether the ranks may be started again."""
        if self._asked or any(code in FINAL for code in self._codes().values()):
            self._remaining_restarts = 0
        elif self._remaining_restarts > 0:
            total = self._worker_group.spec.max_restarts
            _say(
                f"starting all ranks again, for the {total - self._remaining_restarts + 1}. of {total} times"
            )

    def _pids(self) -> dict[int, int]:
        """Rank -> process id; empty while none are started."""
        workers = self._worker_group.workers
        return {worker.global_rank: worker.id for worker in workers if isinstance(worker.id, int)}

    def _look(self) -> None:
        """Notice ranks that have ended. They stay there for the base class, which waits for them."""
        for pid in set(self._pids().values()) - self._ended.keys():
            try:
                found = os.waitid(os.P_PID, pid, _PEEK)
            except ChildProcessError:  # the base class has ended it
                self._ended[pid] = self._code_of_the_ended(pid)
                continue
            if found is not None:
                exited = found.si_code == os.CLD_EXITED
                self._ended[pid] = found.si_status if exited else -found.si_status

    def _code_of_the_ended(self, pid: int) -> int:
        """What the base class was told of a process that it has waited for."""
        assert isinstance(self._pcontext, SubprocessContext), "ranks are programs"
        for handler in self._pcontext.subprocess_handlers.values():
            if handler.proc.pid == pid and handler.proc.returncode is not None:
                return int(handler.proc.returncode)
        return -signal.SIGKILL  # it could not be waited for

    def _codes(self) -> dict[int, int]:
        """Exit codes of the ranks that have ended, negative for a signal."""
        return {rank: self._ended[pid] for rank, pid in self._pids().items() if pid in self._ended}

    def _running(self) -> list[int]:
        self._look()
        return [pid for pid in self._pids().values() if pid not in self._ended]

    def exit_code(self) -> int:
        """One code for all ranks, once they have ended."""
        self._look()
        codes = set(self._codes().values())
        before_the_first_step = {
            128 + signal.SIGINT,
            *(-number for number in STOP_SIGNALS),
        }  # nothing to save
        harmless = {STOPPED_EXIT_CODE, 0} | before_the_first_step
        if codes & before_the_first_step:
            harmless.add(FAILED_EXIT_CODE)  # of one that had come further, and lost contact with it
        if self._asked and any(codes) and codes <= harmless:
            if STOPPED_EXIT_CODE not in codes:
                _say(f"stopped by {self._asked.name} before the first step; start again to go on")
            return STOPPED_EXIT_CODE
        for code in (STOPPED_EXIT_CODE, EXIT_CODE, HANG_EXIT_CODE):
            if code in codes:
                return code
        return FAILED_EXIT_CODE if any(codes) else 0


def _say(text: str) -> None:
    print(f"cptron: {text}", file=sys.stderr, flush=True)
