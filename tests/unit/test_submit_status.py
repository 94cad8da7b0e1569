"""`cptron status`, `logs` and `cancel`: what SLURM's commands say, read and put in words; what is asked of them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cptron import cli
from cptron.durable import replace_text
from cptron.launch import logs
from cptron.launch.history import ends_of
from cptron.launch.progress import TAIL_BYTES, progress_of
from cptron.launch.queue import JobState, states_of
from cptron.launch.record import FILE, HISTORY, JOBS, JobRecord, add_record, jobs_of, records_in

WIDTH = 200
Says = Callable[..., None]


def row(*cells: str) -> str:
    """A line of `squeue --Format` with columns of fixed width."""
    return "".join(cell.ljust(WIDTH) for cell in cells)


RUNNING = row("12", "RUNNING", "None", "1:02:03", "22:57:57", "2", "n[1-2]", "0", "2026-11-29T01:00:00")
WAITING = row("13", "PENDING", "Dependency", "0:00", "1-00:00:00", "0", "", "0", "N/A")
ENDED = row("12", "FAILED", "NonZeroExitCode", "5:00", "0:00", "0", "n1", "19200", "2026-11-29T01:00:00")
FINISHED = row("12", "COMPLETED", "None", "5:00", "0:00", "0", "n1", "0", "2026-11-29T01:00:00")
DROPPED = row("13", "CANCELLED", "DependencyNeverSatisfied", "0:00", "0:00", "0", "", "0", "N/A")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobRecord:
    """Job 12 of the run `run`, written down, in an empty folder without SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CPTRON_JOBS", str(tmp_path / "list" / FILE))
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    jobs = tmp_path / "run" / JOBS
    found = JobRecord(
        job_id="12", verb="train", name="mine", submitted_at="2026-11-29T00:00:00+00:00", nodes=2, ranks=16, array="",
        log=f"{jobs}/mine-%j.out", script=f"{jobs}/mine.sbatch", jobs=str(jobs), run_dir=str(jobs.parent), chain="",
        link=1, links=1,
    )  # fmt: skip
    add_record(found)
    return found


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Makes a stand-in for one of SLURM's commands, which prints, is written down, and ends with a code."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))

    def make(program: str, lines: Sequence[str] = (), code: int = 0, errors: str = "") -> None:
        replace_text(folder / f"{program}.out", "".join(f"{line}\n" for line in lines))
        path = folder / program
        text = (
            f'#!/bin/sh\necho {program} "$@" >>"$SEEN"\ncat "{folder}/{program}.out"\n'
            f"{'echo ' + repr(errors) + ' >&2' if errors else ''}\nexit {code}\n"
        )
        if not path.exists() or path.read_text() != text:  # a program that is being written cannot be started
            path.write_text(text)
            path.chmod(0o755)

    for program in ("squeue", "sacct", "scancel", "scontrol"):
        make(program)
    return make


def metrics(run: Path, *records: dict[str, object], stop: bool = False) -> None:
    """Write the run's metrics."""
    last = [{"kind": "stop", "step": 9, "reason": "finished 9 steps"}] if stop else []
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in (*records, *last)))


@pytest.mark.parametrize("is_there", [False, True])
def test_status_where_the_scheduler_cannot_be_asked(
    is_there: bool,
    record: JobRecord,
    says: Says,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a laptop, or while slurmctld is down: one line on why, and what the run's own files tell."""
    says("squeue", code=1, errors="squeue: error: Unable to contact slurm controller")
    if not is_there:
        monkeypatch.setenv("PATH", str(tmp_path))
    metrics(tmp_path / "run", {"kind": "step", "step": 812, "loss_nats_per_token": 2.5})
    assert cli.main(["status", "run"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("note: squeue ") and len(shown.err.splitlines()) == 1
    assert "job 12 mine (train, 2 nodes, 16 ranks): the scheduler cannot be asked from here\n" in shown.out
    assert "step 812, loss 2.5000 nats/token" in shown.out
    (Path(record.jobs) / "history.log").write_text("T 12 started, restart 0, on n1\nT 12 ended with 75\n")
    assert cli.main(["status", "12"]) == 0
    assert "has ended: exit code 75, stopped and saved" in capsys.readouterr().out


def test_states_from_both(says: Says) -> None:
    """squeue of what it knows, sacct of the rest, and neither is no error."""
    says("squeue", [RUNNING, WAITING])
    says("sacct", ["14|CANCELLED by 1000|00:10:00|n3|0:15|2026", "15_2|TIMEOUT|01:00:00|n4|0:0|2026"])
    states = states_of(["12", "13", "14", "15", "16"])
    assert [(state.job_id, state.state, state.is_active) for state in states] == [
        ("12", "RUNNING", True), ("13", "PENDING", True), ("14", "CANCELLED", False), ("15_2", "TIMEOUT", False),
        ("16", "UNKNOWN", False),
    ]  # fmt: skip
    assert (states[0].restarts, states[0].left, states[0].exit_code) == (2, "22:57:57", None)


def test_jobs_that_nobody_knows(says: Says) -> None:
    """squeue refuses a single unknown job; a site without accounts refuses altogether."""
    says("squeue", code=1, errors="slurm_load_jobs error: Invalid job id specified")
    says("sacct", code=1, errors="Slurm accounting storage is disabled")
    assert states_of(["12"]) == [JobState(job_id="12")]


def test_tasks_of_an_array(says: Says) -> None:
    """Those that wait are one line; 12 is not 123."""
    says(
        "squeue", [row("12_[3-7]", *RUNNING[WIDTH:].split()), row("12_1", "COMPLETED"), row("123", "RUNNING")]
    )
    assert [state.job_id for state in states_of(["12"])] == ["12_[3-7]", "12_1"]


def test_status_of_a_run(
    record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The scheduler's word, the history of starts, and how far it is; by run and by job id alike, and in JSON."""
    add_record(replace(record, job_id="13", link=2, links=2))
    says("squeue", [RUNNING, WAITING])
    metrics(
        tmp_path / "run",
        {"kind": "step", "step": 812, "loss_nats_per_token": 2.5},
        {"kind": "eval", "step": 812},
    )
    (tmp_path / "run/config.yaml").write_text("train: {steps: 10000}\n")
    for target in ("run", "12"):
        assert cli.main(["status", target]) == 0
        shown = capsys.readouterr().out
        assert (
            "job 12 mine (train, 2 nodes, 16 ranks): runs, since 1:02:03, 22:57:57 left, on n[1-2], "
            "started again 2 times\n" in shown
        )
        assert f"log {tmp_path}/run/{JOBS}/mine-12.out" in shown
        assert "step 812 of 10,000, loss 2.5000 nats/token, 0:0" in shown
        assert (
            "job 13 mine (train, 2 nodes, 16 ranks, link 2 of 2): waits for an earlier job to end" in shown
        ) == (target == "run")
    assert cli.main(["status", "12", "--json"]) == 0
    (facts,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert facts["progress"]["step"] == 812 and facts["states"][0]["state"] == "RUNNING"


@pytest.mark.parametrize(
    ("line", "history", "said"),
    [
        (ENDED, (), "has ended: exit code 75, stopped and saved"),
        (FINISHED, ("started", "ended with 75", "started", "ended with 0"), "0, finished, started again 1 time"),
        (DROPPED.replace("13", "12", 1), (), "was dropped: the job before it finished, or did not end as it had to"),
        ("", ("started", "ended with 2"), "has ended: exit code 2, an error to mend; see the log"),
        ("", ("started",), "is not known to the scheduler any more"),
        ("", (), "never began, and is not known to the scheduler any more"),
        (RUNNING.replace("RUNNING", "TIMEOUT"), ("started",), "was killed at its time limit"),
    ],
)  # fmt: skip
def test_ends_in_words(
    line: str,
    history: tuple[str, ...],
    said: str,
    record: JobRecord,
    says: Says,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By what the scheduler still knows, else by what the script has noted; lines of other jobs do not count."""
    says("squeue", [line] if line else [])
    notes = [f"2026 12 {text}" for text in history] + [
        "2026 112 ended with 9",
        "2026 12_ 3",
        "12 ended",
        "\x00",
    ]
    (Path(record.jobs) / HISTORY).write_text("\n".join(notes) + "\n")
    assert ends_of(record).starts == history.count("started")
    assert cli.main(["status", "12"]) == 0
    shown = capsys.readouterr().out
    assert said in shown.splitlines()[0] and "run has" not in shown.splitlines()[0]
    assert "has not begun" in shown


def test_progress_reads_the_end_only(tmp_path: Path) -> None:
    """A long file, a line that is being written, and one that is no record."""
    records: list[dict[str, object]] = [
        {"kind": "step", "step": n, "loss_nats_per_token": float(n), "more": "x" * 1000}
        for n in range(1, 600)
    ]
    metrics(tmp_path, *records)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"kind": "step"}\n{"kind": "step", "step": 600, "loss_na')
    assert (tmp_path / "metrics.jsonl").stat().st_size > 2 * TAIL_BYTES
    found = progress_of(tmp_path)
    assert found is not None
    assert (found.step, found.loss_nats_per_token, found.stopped, found.steps) == (599, 599.0, "", 0)
    metrics(tmp_path, {"kind": "step", "step": 9, "loss_nats_per_token": "nan"}, stop=True)
    found = progress_of(tmp_path)
    assert found is not None and (found.loss_nats_per_token, found.stopped) == (None, "finished 9 steps")
    assert progress_of(tmp_path / "absent") is None


def test_records(record: JobRecord, tmp_path: Path) -> None:
    """A line that is cut off or no record is passed over; an id that SLURM gives again is the newer job."""
    path = tmp_path / "list" / FILE
    with path.open("ab") as file:
        file.write(b'{"job_id": 3}\n[]\n\xff\n{"job_id": "12", "verb"')
    assert records_in(path) == [record] == jobs_of("12") == jobs_of("12_3") == jobs_of(f"run/{JOBS}")
    path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")
    add_record(replace(record, name="newer"))
    assert [found.name for found in jobs_of("12")] == ["newer"]
    log = replace(record, array="0-7", log="/a %%j%%/x-%A_%a.out").log_of("3")
    assert log == Path("/a %j%/x-12_3.out")


@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
@pytest.mark.parametrize(
    ("target", "said"),
    [("99", "job 99 is not one of those submitted"), ("absent", "absent holds no jobs")],
)
def test_unknown_targets(
    verb: str, target: str, said: str, record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    assert cli.main([verb, target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_logs(record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of it, or all, or one rank's lines without their label."""
    Path(record.log_of()).write_text("by hand\n 0: a\n10: b\n 0: c\n")
    for words, expected in (
        (["run"], "by hand\n 0: a\n10: b\n 0: c\n"),
        (["12", "--lines", "2"], "10: b\n 0: c\n"),
        (["run", "--rank", "0"], "a\nc\n"),
        (["run", "--rank", "10"], "b\n"),
        (["run", "--rank", "1"], ""),
    ):
        assert cli.main(["logs", *words]) == 0
        assert capsys.readouterr().out == expected


def test_logs_of_an_array(record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a task, or of that which wrote last."""
    jobs = Path(record.jobs)
    add_record(replace(record, job_id="20", array="0-1", log=f"{jobs}/x-%A_%a.out"))
    for task, age_s in (("0", 0), ("1", 100)):
        (jobs / f"x-20_{task}.out").write_text(f"task {task}\n")
        os.utime(jobs / f"x-20_{task}.out", (time.time() - age_s,) * 2)
    for target, expected in (("20_1", "task 1\n"), ("20", "task 0\n"), ("run", "task 0\n")):
        assert cli.main(["logs", target]) == 0
        assert capsys.readouterr().out == expected


def test_logs_that_are_not_there(record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    """The job waits, or is over."""
    says("squeue", [WAITING.replace("13", "12", 1)])
    assert cli.main(["logs", "run"]) == 2
    assert "job 12 has not started" in capsys.readouterr().err
    says("squeue", [ENDED])
    assert cli.main(["logs", "run", "--follow"]) == 2
    assert "has no log" in capsys.readouterr().err


def test_following_ends_with_the_job(
    record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that come later are shown whole, also what was written just before the end."""
    monkeypatch.setattr(logs, "POLL_S", 0.02)
    monkeypatch.setattr(logs, "ASK_S", 0.1)
    says("squeue", [RUNNING])
    path = Path(record.log_of())
    path.write_text("one\n")

    def write() -> None:
        for text in ("tw", "o\n", "three"):
            time.sleep(0.2)
            with path.open("a") as file:
                file.write(text)
        says("squeue", [ENDED])

    writer = threading.Thread(target=write)
    writer.start()
    assert cli.main(["logs", "run", "--follow"]) == 0
    writer.join()
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_cancel(record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Links that wait go first, then the run is asked to save and kept from a requeue; one id takes its chain along."""
    add_record(replace(record, job_id="11", chain="c", link=1, links=3))
    add_record(replace(record, job_id="12", chain="c", link=2, links=3))
    add_record(replace(record, job_id="13", chain="c", link=3, links=3))
    says("squeue", [ENDED.replace("12", "11", 1), RUNNING, WAITING])
    assert cli.main(["cancel", "12"]) == 0
    asked = [
        line
        for line in (tmp_path / "seen").read_text().splitlines()
        if not line.startswith(("squeue", "sacct"))
    ]
    assert asked == ["scancel 13", "scontrol update JobId=12 Requeue=0", "scancel --batch --signal=USR1 12"]
    assert "job 12: asked to save and end" in capsys.readouterr().out
    (tmp_path / "seen").unlink()
    assert cli.main(["cancel", "run", "--now"]) == 0
    asked = [line for line in (tmp_path / "seen").read_text().splitlines() if line.startswith("sc")]
    assert asked == ["scancel 13", "scancel 12"]


def test_nothing_to_cancel(record: JobRecord, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    """It is over already; a refusal of scancel is told."""
    says("squeue", [ENDED])
    assert cli.main(["cancel", "run"]) == 2
    assert "run has no job that waits or runs" in capsys.readouterr().err
    says("squeue", [RUNNING])
    says("scancel", code=1, errors="scancel: error: Kill job error on job id 12: Access/permission denied")
    assert cli.main(["cancel", "run", "--now"]) == 0
    assert (
        "not cancelled: Kill job error on job id 12: Access/permission denied"
        in capsys.readouterr().out.replace("scancel refused: ", "")
    )
