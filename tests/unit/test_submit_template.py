"""Job scripts: what is filled in, that bash and nothing else reads it, and what the templates do with an end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from cptron.errors import ConfigError
from cptron.launch.arguments import TEMPLATES
from cptron.launch.template import (
    BEGIN,
    END,
    VARIABLES,
    Template,
    read_template,
    sbatch_value,
    templates_folder,
)

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "launch").glob("*.sbatch"))
ODD = "a b'c\"d $(touch INJECTED) `touch INJECTED` $HOME \\ * ; & | # é {x} ~ !"
"""What a careless script would expand, split or run."""
STAND_INS = {
    "srun": 'printf "%s\\0" "$@" >"$SEEN/srun"; [ ! -e "$SEEN/wait" ] || until [ -e "$SEEN/signal" ]; do sleep 0.05; '
    'done; exit "$(cat "$SEEN/code")"',
    "scontrol": 'case "$1 $2" in "show hostnames") echo n1 ;; "show node") echo "  NodeAddr=10.0.0.1 X=1" ;; '
    'requeue*) touch "$SEEN/requeued" ;; esac',
    "scancel": 'echo "$@" >>"$SEEN/cancelled"; case "$1" in --signal=*) touch "$SEEN/signal" ;; esac',
    "squeue": "printf '7 other\\n8 chain-x\\n9 chain-x\\n'",
    "nvidia-smi": '[ ! -e "$SEEN/signal_early" ] || kill -USR1 $PPID; exit 9',
}
"""Programs of a node, as far as the scripts notice them."""


class Node:
    """Where a script is run: its programs, and what became of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen = root / "seen"
        for folder in (root / "bin", self.seen, root / "venv/bin"):
            folder.mkdir(parents=True)
        (root / "venv/bin/activate").write_text("export ACTIVATED=yes\n")
        for name, body in STAND_INS.items():
            path = root / "bin" / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)

    def start(self, script: str, code: int = 0, **environment: str) -> subprocess.Popen[str]:
        """The script as slurmd would start it; its ranks end with `code`."""
        (self.seen / "code").write_text(str(code))
        path = self.root / "job.sbatch"
        path.write_text(script)
        values = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.root),
            "SEEN": str(self.seen),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NAME": "job",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SECRET_TOKEN": "hunter2",
            **environment,
        }
        return subprocess.Popen(
            ["bash", str(path)], cwd=self.root, env=values, text=True, stderr=subprocess.PIPE
        )

    def run(self, script: str, code: int = 0, **environment: str) -> int:
        """The script's exit code."""
        process = self.start(script, code, **environment)
        _, errors = process.communicate(timeout=240)
        assert not errors, errors
        return process.returncode

    def srun(self) -> list[str]:
        """The words that srun was given."""
        return (self.seen / "srun").read_text().split("\0")[:-1]

    def was(self, what: str) -> bool:
        """Whether a stand-in has left this."""
        return (self.seen / what).exists()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """An empty working folder, with an odd name."""
    root = tmp_path / "a b$(touch INJECTED)'c"
    root.mkdir()
    return Node(root)


def script(name: str, options: Mapping[str, str | None] | None = None, **variables: str | list[str]) -> str:
    """A template, filled in."""
    values: dict[str, str | list[str]] = {"command": ["train", "run.yaml"], "job_dir": "jobs", "venv": ""}
    return read_template(name).rendered(options or {}, values | variables)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("everything", [False, True])
def test_filled_in_scripts_are_bash(name: str, everything: bool, tmp_path: Path) -> None:
    """With nothing and with all of it filled in; also as they stand, by the linter where there is one."""
    template = read_template(name)
    own = [line.partition("=")[0] for line in template.lines if re.match(r"[a-z_]+=", line)]
    arrays = ("command", "container_mounts", "environment")
    variables = {key: [ODD, ODD] if key in arrays else ODD for key in VARIABLES if key in own}
    options = {"job-name": ODD, "array": "0-7", "requeue": None, "no-requeue": "", "constraint": "a&b"}
    text = template.rendered(options, variables) if everything else "\n".join(template.lines)
    path = tmp_path / "job.sbatch"
    path.write_text(text)
    subprocess.run(["bash", "-n", str(path)], check=True)
    if linter := shutil.which("shellcheck"):
        subprocess.run(
            [linter, "--severity=warning", "--exclude=SC1090,SC1091,SC2034", str(path)], check=True
        )
    if everything:
        lines = text.splitlines()
        assert "#SBATCH --no-requeue" in lines and "#SBATCH --requeue" not in lines
        assert sum(line.startswith("#SBATCH --job-name=") for line in lines) == 1
        assert lines.index("#SBATCH --array=0-7") < next(
            i for i, line in enumerate(lines) if line.startswith(BEGIN)
        )


def test_templates_agree() -> None:
    """Each verb's template is there; what they say of the environment is the same text."""
    assert set(TEMPLATES.values()) == set(NAMES)
    blocks = set()
    for name in NAMES:
        text = (ROOT / "launch" / f"{name}.sbatch").read_text()
        blocks.add(text[text.index("# --- environment") : text.index("# --- end of environment")])
    assert len(blocks) == 1


@pytest.mark.parametrize("name", NAMES)
def test_words_reach_cptron_as_they_are(name: str, node: Node) -> None:
    """Spaces, quotes, substitutions and globs, in the command, a variable to export and every path."""
    odd_dir = f"jobs {ODD}".replace("/", "")
    verb = next(verb for verb, template in TEMPLATES.items() if template == name)
    command = [verb, ODD, "--flag", "", "--", "*"]
    text = script(
        name, command=command, job_dir=odd_dir, venv=str(node.root / "venv"), environment=[f"ODD={ODD}"]
    )
    assert node.run(text + "", 0) == 0
    words = node.srun()
    given = words[words.index("cptron") + 1 :]
    if name in ("preprocess", "curate"):
        assert given[1:3] == ["--workers", "1"]
        del given[1:3]
    assert given == command
    assert (node.root / odd_dir / "history.log").read_text().splitlines()[-1].endswith(" 41 ended with 0")
    assert not list(node.root.rglob("INJECTED")) and not list(node.root.parent.glob("INJECTED"))


def test_environment_of_a_job(node: Node) -> None:
    """The file to source, the variables and the virtual environment reach srun; secrets do not reach the notes."""
    (node.root / "bin/srun").write_text('#!/bin/sh\nenv >"$SEEN/env"\n')
    (node.root / "set up.sh").write_text("export FROM_SETUP=1\n")
    text = script(
        "train", venv=str(node.root / "venv"), setup="set up.sh", environment=[f"NCCL_ODD={ODD}", "B=2"]
    )
    assert node.run(text) == 0
    seen = (node.seen / "env").read_text().splitlines()
    assert {f"NCCL_ODD={ODD}", "B=2", "FROM_SETUP=1", "ACTIVATED=yes", "MASTER_ADDR=10.0.0.1"} <= set(seen)
    assert "MASTER_PORT=20041" in seen
    notes = (node.root / "jobs/job-41.env").read_text()
    assert f"NCCL_ODD={ODD}" in notes and "MASTER_PORT=20041" in notes and "pytest==" in notes
    assert "hunter2" not in notes and "SECRET" not in notes


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("train", "convert") else [pytest.mark.more]) for name in NAMES],
)
def test_containers(name: str, node: Node) -> None:
    """apptainer is started by srun in each task; pyxis is an option of srun. Both see the working folder and mounts."""
    verb = next(verb for verb, template in TEMPLATES.items() if template == name)
    mounts = ["/data:/data", "/b c:/d"]
    here = str(node.root)
    assert node.run(script(name, command=[verb, "x"], container="my image.sif", container_mounts=mounts)) == 0
    words = node.srun()
    start = words.index("apptainer")
    bound = ["--bind", here, "--bind", mounts[0], "--bind", mounts[1], "my image.sif", "cptron", verb]
    assert words[start : words.index(verb) + 1] == ["apptainer", "exec", "--nv", "--pwd", here, *bound]
    assert (
        node.run(script(name, command=[verb, "x"], container="nvcr.io#a/b:1", container_mounts=mounts)) == 0
    )
    words = node.srun()
    assert "--container-image=nvcr.io#a/b:1" in words and f"--container-workdir={here}" in words
    assert f"--container-mounts={here}:{here},{','.join(mounts)}" in words
    assert node.run(script(name, command=[verb, "x"], container="a.sqsh")) == 0
    assert f"--container-mounts={here}:{here}" in node.srun()


@pytest.mark.parametrize(
    ("code", "chain", "retries", "requeued", "cancelled"),
    [
        (0, "", 0, False, False),
        (75, "", 0, True, False),
        (2, "", 3, False, False),
        (1, "", 0, False, False),
        (1, "", 1, True, False),
        (0, "chain-x", 0, False, False),
        (75, "chain-x", 0, False, False),
        (2, "chain-x", 3, False, True),
        (137, "chain-x", 0, False, True),
        (76, "chain-x", 1, False, False),
    ],
)
def test_what_an_end_leads_to(
    code: int, chain: str, retries: int, requeued: bool, cancelled: bool, node: Node
) -> None:
    """Saved: again, or the next link of the chain. Failed: neither, unless retries are left. Finished: nothing."""
    text = script("train", chain=chain, retries=str(retries))
    assert node.run(text, code) == code
    assert node.was("requeued") == requeued
    assert node.was("cancelled") == cancelled
    if cancelled:
        assert (node.seen / "cancelled").read_text().split() == ["8", "9"], "the links of this chain alone"


def test_retries_are_counted_over_restarts(node: Node) -> None:
    """Two of them, then no more; a save in between does not count."""
    text = script("train", retries="2")
    for code, again in ((1, True), (75, True), (76, True), (1, False), (75, True)):
        (node.seen / "requeued").unlink(missing_ok=True)
        assert node.run(text, code, SLURM_RESTART_COUNT="1") == code
        assert node.was("requeued") == again


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
@pytest.mark.parametrize("code", [75, 138])
def test_signals_reach_the_ranks(number: signal.Signals, requeued: bool, code: int, node: Node) -> None:
    """The script passes them on, waits for the ranks, and starts again after the scheduler's own signal only; ranks
    that were killed by it before they listened have lost nothing."""
    (node.seen / "wait").touch()
    process = node.start(script("train"), code)
    deadline = time.monotonic() + 240
    while not node.was("srun") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (75, "")
    assert (node.seen / "cancelled").read_text() == "--signal=USR1 41\n"
    assert node.was("requeued") == requeued


def test_a_limit_shorter_than_a_start_is_no_endless_loop(node: Node) -> None:
    """Stopped before the first step for the fourth time: the job ends."""
    (node.seen / "wait").touch()
    (node.root / "jobs").mkdir()
    (node.root / "jobs/early-41").write_text("75\n75\n75\n")
    process = node.start(script("train"), 138)
    deadline = time.monotonic() + 240
    while not node.was("srun") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=240)
    assert process.returncode == 75 and not node.was("requeued")


def test_a_signal_before_the_ranks_are_started_counts_as_one(node: Node) -> None:
    """Nothing is started that would be stopped again; four in a row end the job, a step in between begins anew."""
    jobs = node.root / "jobs"
    (node.seen / "signal_early").touch()
    assert node.run(script("train")) == 75
    assert node.was("requeued") and not node.was("srun")
    assert (jobs / "early-41").read_text() == "75\n"
    (node.seen / "signal_early").unlink()
    assert node.run(script("train"), 75) == 75
    assert node.was("srun") and not (jobs / "early-41").exists()


def test_where_a_site_does_not_show_its_nodes(node: Node) -> None:
    """PrivateData: the name of the first node has to do."""
    (node.root / "bin/scontrol").write_text('#!/bin/sh\n[ "$2" = hostnames ] && echo n1\n')
    (node.root / "bin/srun").write_text('#!/bin/sh\nenv >"$SEEN/env"\n')
    assert node.run(script("train")) == 0
    assert "MASTER_ADDR=n1" in (node.seen / "env").read_text().splitlines()


def test_array_tasks_make_parts(node: Node) -> None:
    """Each its own, and notes which it was; a --workers of the user's comes later and wins."""
    text = script("preprocess", command=["preprocess", "--input", "x", "--workers", "3"])
    array = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}
    assert node.run(text, SLURM_CPUS_PER_TASK="8", **array) == 0
    words = node.srun()
    assert words[words.index("preprocess") :] == [
        "preprocess", "--workers", "8", "--input", "x", "--workers", "3", "--partition", "slurm"
    ]  # fmt: skip
    assert " 40_2 ended with 0" in (node.root / "jobs/history.log").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_as_it_stands_it_takes_arguments(name: str, node: Node) -> None:
    """By hand, with the arguments behind the script; without any it says how it is used."""
    text = "\n".join(read_template(name).lines)
    process = node.start(text, CPTRON_VENV=str(node.root / "venv"))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.startswith("usage: sbatch ")


def template_of(*lines: str) -> Template:
    """One of the user's own."""
    return Template(Path("mine.sbatch"), ("#!/bin/bash", "#SBATCH --nodes=1", *lines))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (template_of("command=()", "job_dir=x"), "has 0 lines `# >>> variables`"),
        (template_of(END, BEGIN), "in this order"),
        (template_of(BEGIN, "command=()", END), "lacks the variable job_dir; add a line job_dir="),
        (
            template_of(BEGIN, "command=()", "job_dir=", "venvv=", END),
            "mine.sbatch:6: venvv= sets no variable",
        ),
        (
            template_of(BEGIN, "command=()", "job_dir=", "echo hello", END),
            "mine.sbatch:6: echo hello sets no",
        ),
        (template_of(BEGIN, "command=()", "job_dir=", END), "lacks the variable container; add"),
        (
            template_of("#SBATCH -N 2", BEGIN, "command=()", "job_dir=", "container=", END),
            "mine.sbatch:3: #SBATCH -N 2",
        ),
    ],
)
def test_templates_that_cannot_be_filled_in(template: Template, said: str) -> None:
    """One line with file, line and remedy: a variable that is missing or unknown, marks, an option that is not read."""
    with pytest.raises(ConfigError) as caught:
        template.rendered({"nodes": "2"}, {"command": ["x"], "job_dir": "y", "container": "z"})
    assert said in str(caught.value)


def test_what_is_not_asked_for_stays() -> None:
    """Options and variables of the template, comments beside them, and everything below."""
    lines = (
        "#SBATCH --time=1:00  # mine",
        "",
        BEGIN,
        'command=("$@")',
        "job_dir=x  # y",
        "venv=v",
        END,
        "echo a=b",
    )
    text = template_of(*lines).rendered({"time": "2", "qos": "q"}, {"command": ["a b"], "job_dir": "j"})
    assert text.splitlines() == [
        "#!/bin/bash", "#SBATCH --nodes=1", "#SBATCH --time=2     # mine", "#SBATCH --qos=q", "", BEGIN,
        "command=('a b')", "job_dir=j", "venv=v", END, "echo a=b",
    ]  # fmt: skip


def test_a_value_of_sbatch_is_one_line() -> None:
    """A line break would end the option, and begin something else."""
    assert sbatch_value("job-name", 'a b#"\\') == '"a b#\\"\\\\"'
    with pytest.raises(ConfigError, match="one line"):
        sbatch_value("job-name", "a\nrm")


def test_folder_of_the_templates_is_the_checkouts() -> None:
    """There is one copy; a wheel carries it beside the code (below)."""
    assert templates_folder() == ROOT / "launch"
