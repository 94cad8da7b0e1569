"""What was submitted, kept where it can be found again: beside the run, and in one list of the user's.

Place in the flow: written by `submit`, read by `status`, `logs` and `cancel`. Invariant: a job is one line of JSON; two
submissions at a time do not mix their lines, and a line that cannot be read is passed over, never a crash.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from cptron.durable import make_directory, whole_lines
from cptron.errors import LaunchError
from cptron.json_text import parse_json
from cptron.typed import require_types

JOBS = "jobs"
"""Folder of a run for what belongs to its jobs; of other jobs, below the working folder."""
FILE = "jobs.jsonl"
HISTORY = "history.log"
"""Written by the jobs themselves, beside `FILE`: each start and end."""
VARIABLE = "CPTRON_JOBS"
"""Environment variable with the path of the user's list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """One submitted job, or job array."""

    job_id: str
    verb: str
    name: str
    submitted_at: str
    """ISO 8601, UTC."""
    nodes: int
    ranks: int
    array: str
    """As sbatch was told; empty for a plain job."""
    log: str
    """Absolute path, in which %j, or %A and %a, stand for ids."""
    script: str
    jobs: str
    """Folder with record, script, log and history."""
    run_dir: str
    """Of a training job; else empty."""
    chain: str
    """Name of the chain that it is a link of; else empty."""
    link: int
    """From 1; of `links`."""
    links: int

    def log_of(self, task: str = "") -> Path:
        """The file; of an array, of this task."""
        names = {"%j": self.job_id, "%A": self.job_id, "%a": task, "%%": "%"}
        text, parts = self.log, []
        while "%" in text:
            before, _, rest = text.partition("%")
            parts += [before, names.get(f"%{rest[:1]}", f"%{rest[:1]}")]
            text = rest[1:]
        return Path("".join([*parts, text]))


def user_list() -> Path:
    """$CPTRON_JOBS, else ~/.local/state/cptron/jobs.jsonl."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "cptron" / FILE


def add_record(record: JobRecord) -> None:
    """Write the job down in both places. Raises OSError."""
    line = json.dumps(asdict(record), ensure_ascii=True).encode() + b"\n"
    for path in (Path(record.jobs) / FILE, user_list()):
        make_directory(path.parent)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def records_in(path: Path) -> list[JobRecord]:
    """All jobs of one list, in the order of submission; none where there is no file."""
    found = []
    try:
        lines = whole_lines(path)
    except OSError as error:
        raise LaunchError(f"{path} cannot be read ({error}); mend its rights, or give a job id") from None
    for line in lines:
        try:
            record = JobRecord(**parse_json(line))
            require_types(record)
        except (ValueError, TypeError):
            continue
        found.append(record)
    return found


def jobs_of(target: str) -> list[JobRecord]:
    """The jobs that `target` names: a job id (also of an array's task), a run directory, or a folder of jobs. Raises
    `LaunchError` where there are none."""
    number = target.partition("_")[0]
    if number.isdecimal() and not Path(target).is_dir():
        found = [record for record in records_in(user_list()) if record.job_id == number]
        if found:
            return found[-1:]  # SLURM begins its numbers again some day
        raise LaunchError(
            f"job {target} is not one of those submitted with `cptron submit` here ({user_list()}); give the run's "
            f"directory, or ask `scontrol show job {number}`"
        )
    folder = Path(target)
    for path in (folder / JOBS / FILE, folder / FILE):
        if found := records_in(path):
            return found
    raise LaunchError(
        f"{target} holds no jobs ({JOBS}/{FILE}); give a run directory that was submitted, or a job id"
    )
