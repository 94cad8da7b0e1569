"""Runs inputs through a target in a forked process and judges what comes of each.

Place in the flow: the short form in `make test` and the long one of `make fuzz` both call `run_target`. Invariant: a
crash, a hang or a lack of memory is a finding like any other; it ends the forked process, never the caller.

The verdict on an input: the reader raises a `CptronError` of one line, or returns a value that the target's own check
finds right; all within the time, the memory and the address space allowed, starting no program and writing no file
outside of the input's directory.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import pickle
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz_target import Seed, Target

from cptron.errors import CptronError

CPU_S = 10.0
"""Time of the processor that an input may take; far more than any needs."""
WALL_S = 120.0
"""Time on the clock, for a reader that waits; a loaded machine is no reason to fail."""
MOST_MESSAGE = 2000
"""Characters of an error; more is no line that people read."""
SHRINK_TRIES, SHRINK_S = 150, 3.0
MOST_FINDINGS = 40
FOUND = Path(__file__).parent / "found"
"""Inputs by target on which readers have failed before they were mended; read again in every run."""
_PROGRAMS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.fork")
_COUNTS = struct.Struct("<qqqqqd")


@dataclass(frozen=True, slots=True)
class Finding:
    """An input on which a reader failed."""

    target: str
    number: int
    kind: str
    """`exception`, `message`, `wrong value`, `memory`, `address space`, `program`, `crash`, `hang` or `accepted`."""
    where: str
    """Where it comes from; findings of one place are one finding."""
    what: str
    content: bytes
    file: str


@dataclass(slots=True)
class Outcome:
    """What came of the inputs of one target."""

    target: str
    inputs: int = 0
    refused: int = 0
    """Inputs that were an error of one line."""
    read: int = 0
    """Inputs that gave a value, which was right."""
    peak_bytes: int = 0
    """Most memory that reading one input added."""
    slowest_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)


def run_target(target: Target, root: Path, seed: int, count: int, planted: bool = True) -> Outcome:
    """`count` mutated inputs and the planted ones, in forked processes; `root` is an empty directory for the files."""
    directory = root / target.name
    directory.mkdir(parents=True)
    seeds, crafted = _made(target, directory)
    contents = [one.path.read_bytes() for one in seeds]
    every = (
        [(0, name, content) for name, content in crafted.items()] + _kept(target, seeds) if planted else []
    )
    plan = _Plan(target, directory, seeds, contents, every, seed, count)
    outcome = Outcome(target.name)
    first, total = 0, len(every) + count
    while first < total and len(outcome.findings) < MOST_FINDINGS:
        first = _in_fork(plan, first, total, outcome)
    return outcome


def _kept(target: Target, seeds: Sequence[Seed]) -> list[tuple[int, str, bytes]]:
    """What was once found, in the place of the file that `WHAT.FILE.input` names; of the first where it names none."""
    names = [Path(seed.file).name for seed in seeds]
    paths = sorted((FOUND / target.name).glob("*.input"))
    return [
        (
            next((at for at, name in enumerate(names) if path.stem.endswith(f".{name}")), 0),
            f"found {path.stem}",
            path.read_bytes(),
        )
        for path in paths
    ]


def _made(target: Target, directory: Path) -> tuple[list[Seed], dict[str, bytes]]:
    """Valid files and planted contents, by a process of its own: writers start threads, and no fork survives those."""
    path = directory.with_suffix(".made")
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            path.write_bytes(pickle.dumps((list(target.make(directory)), dict(target.planted(directory)))))
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"{target.name}: the valid files could not be made"
    made: tuple[list[Seed], dict[str, bytes]] = pickle.loads(path.read_bytes())
    path.unlink()
    return made


@dataclass(frozen=True, slots=True)
class _Plan:
    """All inputs of a target, by number."""

    target: Target
    root: Path
    seeds: Sequence[Seed]
    contents: Sequence[bytes]
    planted: Sequence[tuple[int, str, bytes]]
    """Position of the seed, name, content."""
    seed: int
    count: int

    def input(self, number: int) -> tuple[int, str, bytes]:
        """Position of the seed, name where it is planted, content."""
        if number < len(self.planted):
            return self.planted[number]
        draw = random.Random(f"{self.target.name} {self.seed} {number - len(self.planted)}")
        at = draw.randrange(len(self.seeds))
        others = [content for place, content in enumerate(self.contents) if place != at]
        if draw.random() < 0.01:
            return at, "", self.contents[at]
        return at, "", self.target.mutate(draw, self.contents[at], others)


def _in_fork(plan: _Plan, first: int, total: int, outcome: Outcome) -> int:
    """Inputs from `first` on until all are done or the process dies; returns the number to go on with."""
    counts = mmap.mmap(-1, _COUNTS.size)
    counts[:] = _COUNTS.pack(first, 0, 0, 0, 0, 0.0)
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(plan, first, total, counts, writer)
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    _, status = os.waitpid(pid, 0)
    number, inputs, refused, read, peak, slowest = _COUNTS.unpack(counts[:])
    outcome.inputs += inputs
    outcome.refused += refused
    outcome.read += read
    outcome.peak_bytes = max(outcome.peak_bytes, peak)
    outcome.slowest_s = max(outcome.slowest_s, slowest)
    for values in map(json.loads, lines):
        assert "failure" not in values, f"{plan.target.name}: the harness itself failed: {values['failure']}"
        outcome.findings.append(Finding(**{**values, "content": bytes.fromhex(values["content"])}))
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, f"{plan.target.name}: the harness itself failed"
        return total
    outcome.inputs += 1
    at, name, content = plan.input(number)
    fatal = signal.Signals(os.WTERMSIG(status))
    kind = "hang" if fatal in (signal.SIGPROF, signal.SIGALRM) else "crash"
    what = f"{name or 'mutated'} input: {fatal.name}"
    outcome.findings.append(
        Finding(plan.target.name, number, kind, fatal.name, what, content, plan.seeds[at].file)
    )
    plan.seeds[at].path.unlink(missing_ok=True)
    plan.seeds[at].path.write_bytes(plan.contents[at])
    return number + 1


def _child(plan: _Plan, first: int, total: int, counts: mmap.mmap, writer: int) -> None:
    """Never returns."""
    failed = os.dup(writer)
    code = 70
    try:
        with open(writer, "w", encoding="utf-8") as stream:
            _quiet()
            signal.setitimer(signal.ITIMER_REAL, WALL_S)
            judge = _Judge(plan)
            inputs = refused = read = 0
            known: set[str] = set()
            for number in range(first, total):
                counts[:] = _COUNTS.pack(number, inputs, refused, read, judge.peak_bytes, judge.slowest_s)
                at, name, content = plan.input(number)
                result, finding = judge.judge(number, at, name, content)
                inputs += 1
                refused += result == "refused"
                read += result == "read"
                if finding is not None and finding.where not in known and len(known) < MOST_FINDINGS:
                    known.add(finding.where)
                    finding = judge.shrunk(finding, at, name)
                    json.dump(asdict(finding) | {"content": finding.content.hex()}, stream)
                    stream.write("\n")
                    stream.flush()
            counts[:] = _COUNTS.pack(total, inputs, refused, read, judge.peak_bytes, judge.slowest_s)
        code = 0
    except BaseException:
        os.write(failed, (json.dumps({"failure": traceback.format_exc()}) + "\n").encode())
    finally:
        os._exit(code)


def _quiet() -> None:
    """What libraries print, and dumps of memory, are of no use here; threads of a forked process would hang."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    for fatal in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(fatal, signal.SIG_DFL)


class _Judge:
    """Reads inputs and says what is wrong with what comes of it."""

    def __init__(self, plan: _Plan) -> None:
        self._plan, self._target = plan, plan.target
        self.peak_bytes, self.slowest_s = 0, 0.0
        self._events: list[str] = []
        self._watching = False
        self._whole = [self._target.read(seed.directory) for seed in plan.seeds]
        again = [self._target.read(seed.directory) for seed in plan.seeds]
        assert again == self._whole, f"{self._target.name}: a valid file does not give the same value twice"
        self._root = os.fspath(plan.root)
        sys.addaudithook(self._audit)
        _, limit = resource.getrlimit(resource.RLIMIT_AS)
        allowed = _memory("VmSize") + self._target.address_bytes
        resource.setrlimit(resource.RLIMIT_AS, (allowed, limit))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event.startswith(_PROGRAMS):
            self._events.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.fspath(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
            name = os.fsdecode(path)
            if not name.startswith((self._root, "/dev/null", "/dev/shm")) and name:
                self._events.append(f"wrote {name}")

    def judge(self, number: int, at: int, name: str, content: bytes) -> tuple[str, Finding | None]:
        """`refused`, `read` or `failed`, and what failed."""
        seed = self._plan.seeds[at]
        seed.path.unlink(missing_ok=True)  # another inode: what is mapped of an older input stays as it was
        seed.path.write_bytes(content)
        size = sum(path.stat().st_size for path in seed.directory.rglob("*") if path.is_file())
        self._before_bytes, self._before_s = _reset_peak(), os.times()
        problem = self._read(seed, content, at, name)
        used_s, used_bytes = self._used_s, self._used_bytes
        seed.path.unlink(missing_ok=True)
        seed.path.write_bytes(self._plan.contents[at])
        self.slowest_s = max(self.slowest_s, used_s)
        result, kind, where, what = problem
        allowed = self._target.memory_bytes + self._target.memory_factor * size
        if not kind and used_bytes > allowed:
            result, kind, where = "failed", "memory", f"memory {result}"
            what = f"{used_bytes >> 20} MiB for {size} bytes of files"
        if not kind:
            self.peak_bytes = max(self.peak_bytes, used_bytes)
            return result, None
        label = f"planted {name}: " if name else ""
        return "failed", Finding(
            self._target.name, number, kind, f"{kind} {where}", label + what, content, seed.file
        )

    def _read(self, seed: Seed, content: bytes, at: int, name: str) -> tuple[str, str, str, str]:
        """Result, and kind, place and description of a failure."""
        self._events.clear()
        self._watching = True
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        try:
            value = self._target.read(seed.directory)
            result = "read"
        except CptronError as error:
            result, value = "refused", error
        except BaseException as error:
            self._watching = False
            return "failed", "exception", _place(error), "".join(traceback.format_exception(error)[-6:])
        finally:
            self._watching = False
            self._used_bytes = _memory("VmHWM") - self._before_bytes
            self._used_s = sum(os.times()[:2]) - sum(self._before_s[:2])
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self._events:
            return "failed", "program", self._events[0], self._events[0]
        if isinstance(value, CptronError):
            return _judged_error(value, content == self._plan.contents[at])
        if name in self._target.refused:
            return "failed", "accepted", name, f"{value!r:.200}"
        if content == self._plan.contents[at]:
            wrong = None if value == self._whole[at] else "unchanged files gave another value"
        else:
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(8000)  # a check may read what was read with a parser that goes less deep
            try:
                wrong = self._target.check(seed.directory, value)
            except Exception as error:
                wrong = f"the check cannot follow: {error!r:.200}"
            sys.setrecursionlimit(limit)
        if wrong:
            return "failed", "wrong value", wrong.split(":")[0], wrong
        return result, "", "", ""

    def shrunk(self, finding: Finding, at: int, name: str) -> Finding:
        """The smallest input found that fails in the same place; a planted one stays as it is."""
        if name or finding.kind == "memory":
            return finding
        tries, step = 0, max(1, len(finding.content) // 2)
        deadline = time.monotonic() + SHRINK_S
        while tries < SHRINK_TRIES and time.monotonic() < deadline:
            start, shorter = 0, False
            while start < len(finding.content) and tries < SHRINK_TRIES and time.monotonic() < deadline:
                content = finding.content[:start] + finding.content[start + step :]
                tries += 1
                found = self.judge(finding.number, at, name, content)[1]
                if found is not None and found.where == finding.where:
                    finding, shorter = found, True
                else:
                    start += step
            if step == 1 and not shorter:
                break
            step = max(1, step // 2)
        return finding


def _judged_error(error: CptronError, is_whole: bool) -> tuple[str, str, str, str]:
    text = str(error)
    if is_whole:
        return "failed", "wrong value", "unchanged files were refused", text
    if any(isinstance(cause, MemoryError) for cause in _causes(error)):
        return "failed", "address space", _place(error), text[:500]
    if len(text.splitlines()) != 1 or not text.strip() or len(text) > MOST_MESSAGE:
        return (
            "failed",
            "message",
            _place(error),
            f"{len(text)} characters, {len(text.splitlines())} lines: {text[:500]!r}",
        )
    return "refused", "", "", ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(error: BaseException) -> str:
    """Type, and the last line of the product that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame
        for frame in frames
        if "cptron" in frame.filename and "fuzz" not in Path(frame.filename).parts[-2]
    ]
    last = ours[-1] if ours else frames[-1]
    return f"{type(error).__name__} {Path(last.filename).name}:{last.name}"


def _reset_peak() -> int:
    """Resident bytes now; the peak counts from here."""
    gc.collect(0)
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")
    return _memory("VmHWM")


def _memory(field_name: str) -> int:
    with open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith(field_name):
                return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field_name}")
