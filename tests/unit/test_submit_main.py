"""`cptron submit` from the command line: what is refused, what is rendered, how sbatch is called and what is kept."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from plan_cases import HUGGING_FACE_8B, RECIPE
from tokens_world import write_known

from cptron import cli
from cptron.checkpoint import space
from cptron.errors import ConfigError
from cptron.launch.job import array_of
from cptron.launch.record import FILE, JOBS, jobs_of, records_in
from cptron.launch.site import Site, read_site
from cptron.launch.time_limit import slurm_time
from cptron.partials import own_partial
from cptron.tokens.indexed_writer import IndexedWriter
from cptron.tokens.manifest import TokenizerRecord
from cptron.train.resume import find_run

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]
SBATCH = """#!/bin/sh
printf '%s\\n' "$@" >>"$SEEN"
echo "partition=$SBATCH_PARTITION timelimit=$SBATCH_TIMELIMIT" >>"$SEEN"
n=$(grep -c '^--parsable' "$SEEN")
echo "$((100 + n));cluster"
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`cptron ...` in an empty folder in which the recipe's model and data are; exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    for name in ("CPTRON_SITE", "CPTRON_VENV", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(
        space, "free_bytes", lambda path: 10**13
    )  # this machine need not hold an 8B's checkpoints
    monkeypatch.setenv("CPTRON_JOBS", str(tmp_path / "list" / FILE))
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE_8B))
    (tmp_path / "tokens").mkdir()
    for name in re.findall(r"path: (tokens/\w+)", RECIPE.read_text()):
        with IndexedWriter(name, "int32") as writer:
            writer.add([1, 2, 3])
            writer.finish()

    def called(*words: str) -> tuple[int, str, str]:
        code = cli.main(["submit", *words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return called


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that numbers jobs from 101; the file of what it was given."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/sbatch"
    program.write_text(SBATCH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "seen"


TRAIN = (str(RECIPE), "--model", "config.json")


def test_dry_run_shows_the_job_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    """SLURM need not be there; site's defaults below what is typed, the template's below these."""
    site = tmp_path / "site.yaml"
    values = {
        "partition": "gpu",
        "account": "lab",
        "time": "36h",
        "gpus_per_node": 4,
        "venv": "envs/x",
        "gpu": "h100",
    }
    more = {
        "container_mounts": ["/d:/d"],
        "environment": {"NCCL_IB_HCA": "mlx5"},
        "sbatch": {"constraint": "h100"},
    }
    site.write_text(yaml.safe_dump(values | more))
    before = sorted(tmp_path.rglob("*"))
    words = (
        "--site",
        str(site),
        "--nodes",
        "2",
        "run.seed=9",
        "--partition",
        "big",
        "--dry-run",
        "--retries=1",
    )
    code, shown, errors = run(*TRAIN, *words)
    assert (code, errors) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    lines = shown.splitlines()
    for option in (
        "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=big", "account=lab", "time=1-12:00:00",
        "constraint=h100", "mem=0", f"output={tmp_path}/runs/llama3-8b-domain/jobs/cptron-llama3-8b-domain-%j.out",
    ):  # fmt: skip
        assert sum(line.split("  ")[0] == f"#SBATCH --{option}" for line in lines) == 1, option
    assert f"command=(train {RECIPE} run.seed=9)" in lines
    assert (
        f"venv={tmp_path}/envs/x" in lines
        and "environment=(NCCL_IB_HCA=mlx5)" in lines
        and "retries=1" in lines
    )
    assert "note: 2 nodes x 4 ranks: the trainer's rules accept the recipe" in lines
    assert any(
        line.startswith("note: predicted: ") and re.search(r"of 7\d\.\d GiB a GPU", line) for line in lines
    )


def test_submitted_and_found_again(
    run: Run, sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch gets a list of arguments and the environment without what would override the script; the record is in the
    run and in the user's list."""
    monkeypatch.setenv("SBATCH_PARTITION", "elsewhere")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    code, shown, errors = run(
        *TRAIN, "--nodes", "4", "--partition", "big", "run.dir=runs/a b", "--after", "77"
    )
    assert (code, errors) == (0, "")
    *options, script, environment = sbatch.read_text().splitlines()
    assert options == ["--parsable", "--dependency=afterok:77", "--kill-on-invalid-dep=yes"]
    assert environment == "partition= timelimit=5", (
        "what was asked for must not be overridden, the rest is the site's"
    )
    jobs = tmp_path / "runs/a b" / JOBS
    assert Path(script).parent == jobs and "#SBATCH --nodes=4" in Path(script).read_text()
    assert "submitted job 101: cptron-a b" in shown and f"log {jobs}/cptron-a b-101.out" in shown
    assert "\ncptron status 'runs/a b'\n" in shown
    (record,) = jobs_of("runs/a b")
    assert [record] == jobs_of("101") == records_in(tmp_path / "list" / FILE)
    assert (record.nodes, record.ranks, record.run_dir) == (4, 32, str(jobs.parent))
    assert record.log_of() == jobs / "cptron-a b-101.out"


def test_files_are_looked_at_before_a_job_waits_for_them(
    run: Run, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of a tokenizer with more ids than the model has, and a disk that holds no two checkpoints; with --after
    both may still be mended."""
    words = (*TRAIN, "--nodes", "2")

    def made_with(vocab_size: int) -> None:
        tokenizer = TokenizerRecord(
            name="t", fingerprint="ab", vocab_size=vocab_size, eos_id=None, bos_id=None
        )
        write_known(Path("tokens/domain_text_document"), [[1, 2, 3]], dtype="int32", tokenizer=tokenizer)

    made_with(200_000)
    code, _, errors = run(*words)
    assert code == 2 and "has a vocabulary of 200000, but the model has 128256 embeddings" in errors
    assert run(*words, "--after", "5")[0] == 0
    made_with(128_256)
    assert run(*words)[0] == 0
    monkeypatch.setattr(space, "free_bytes", lambda path: 10**11)
    code, _, errors = run(*words)
    assert code == 2 and "has 100.00 GB free, but a checkpoint takes about 112.43 GB" in errors


def test_what_costs_without_being_wrong_is_said(run: Run) -> None:
    """GPUs without ranks, tensor parallel groups across nodes."""
    words = (
        *TRAIN,
        "--nodes",
        "4",
        "--gpus-per-node",
        "4",
        "--ranks-per-node",
        "2",
        "parallel.tp=4",
        "--dry-run",
    )
    code, shown, _ = run(*words)
    assert code == 0 and "note: parallel.tp=4 is more than a node's 2 ranks: that is slow\n" in shown
    assert "note: 2 of a node's 4 GPUs have no rank: --gpus-per-node 2 asks for fewer\n" in shown


def test_a_time_that_is_asked_for_is_not_overridden(
    run: Run, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch reads --time from a variable of another name."""
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    assert run(*TRAIN, "--nodes", "2", "--time", "2h")[0] == 0
    assert sbatch.read_text().splitlines()[-1] == "partition= timelimit="


def test_a_template_of_ones_own(run: Run, tmp_path: Path) -> None:
    """--nodes reaches it whatever it runs; a number of nodes that is none has to be given."""
    head = (
        "#!/bin/bash\n#SBATCH --nodes=2-4\n# >>> variables\ncommand=()\njob_dir=x\nvenv=\n# <<< variables\n"
    )
    (tmp_path / "mine.sbatch").write_text(head)
    words = ("--template", "mine.sbatch", "--dry-run", "--", "inspect", "x")
    code, shown, _ = run("--nodes", "3", *words)
    assert code == 0 and "#SBATCH --nodes=3\n" in shown
    code, _, errors = run(*words)
    assert code == 2 and "--nodes=2-4, which is not one number; give --nodes" in errors


def test_a_run_may_begin_where_its_job_is_written_down(run: Run, sbatch: Path, tmp_path: Path) -> None:
    """The folder of its jobs is no other run; anything else is."""
    assert run(*TRAIN, "--nodes", "2", "run.dir=runs/a")[0] == 0
    own_partial(
        tmp_path / "runs/a/run.json"
    ).touch()  # nor does a start that was killed as it wrote its first file
    assert find_run(tmp_path / "runs/a") is None
    (tmp_path / "runs/a/other").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        find_run(tmp_path / "runs/a")


def test_chain(run: Run, sbatch: Path) -> None:
    """Each link waits for the one before to end without finishing, and for what the whole chain waits for."""
    code, shown, _ = run(*TRAIN, "--nodes", "2", "--chain", "3", "--after", "77")
    assert code == 0 and "submitted job 103 (link 3 of 3)" in shown
    calls = [call.split("\n") for call in sbatch.read_text().split("--parsable\n")[1:]]
    (chain,) = {call[0] for call in calls}
    assert re.fullmatch(r"--comment=chain-[0-9a-f]{8}", chain)
    assert [call[1] for call in calls] == [
        "--dependency=afterok:77",
        "--dependency=afterok:77,afternotok:101",
        "--dependency=afterok:77,afternotok:102",
    ]
    assert all(call[2] == "--kill-on-invalid-dep=yes" for call in calls)
    records = jobs_of("runs/llama3-8b-domain")
    assert [(record.link, record.links) for record in records] == [(1, 3), (2, 3), (3, 3)]
    assert {f"--comment={record.chain}" for record in records} == {chain}
    assert f"chain={records[0].chain}" in Path(records[0].script).read_text().splitlines()


def test_array_with_merge(run: Run, sbatch: Path, tmp_path: Path) -> None:
    """As many parts as asked for, and a job for each key that waits for all of them; words behind `--` stay."""
    site = tmp_path / "site.yaml"
    site.write_text("{partition: gpu, cpu_partition: cpu, cpu_cores: 16, cpu_time: 2:00:00}")
    command = [
        "preprocess",
        "--input",
        "a b/*.jsonl",
        "--tokenizer-model",
        "t",
        "--output-prefix",
        "out/x[1]",
    ]
    keys = ["--json-keys", "text", "note"]
    code, shown, _ = run("--site", str(site), "--array", "8", "--merge", "--", *command, *keys)
    assert code == 0
    array, *merges = jobs_of(JOBS)
    text = Path(array.script).read_text()
    assert f"command=({shlex.join([*command, *keys])})" in text.splitlines()
    for option in ("array=0-7", "partition=cpu", "cpus-per-task=16", "time=02:00:00"):
        assert f"#SBATCH --{option}\n" in text
    assert str(array.log_of("3")).endswith("cptron-preprocess-101_3.out")
    for key, merge in zip(("text", "note"), merges, strict=True):
        words = f"merge --inputs 'out/x[[]1]_part-*_{key}_document' --output-prefix 'out/x[1]_{key}_document'"
        text = Path(merge.script).read_text()
        assert f"command=({words})" in text.splitlines() and "#SBATCH --cpus-per-task=2\n" in text
        assert "--array" not in text.partition("# >>>")[0].partition("\n\n")[2]
    assert sbatch.read_text().count("--dependency=afterok:101\n") == 2
    assert "cptron status jobs" in shown


def test_gpus_of_a_kind(run: Run, tmp_path: Path) -> None:
    """SLURM refuses GPUs asked for with and without their kind together: it is in the one option."""
    (tmp_path / "site.yaml").write_text("{gpu_type: h100}")
    site = ("--site", "site.yaml", "--dry-run")
    for words, option in (
        ((*site, *TRAIN, "--nodes", "2"), "h100:8"),
        ((*site, *TRAIN, "--nodes", "2", "--gpu-type", "a100", "--gpus-per-node", "4"), "a100:4"),
        ((*site, "--", "eval", "--checkpoint", "x"), "h100:1"),
    ):
        code, shown, errors = run(*words)
        assert code == 0, errors
        assert f"#SBATCH --gpus-per-node={option}\n" in shown
    code, shown, _ = run(*site, "--", "convert", "a", "b")
    assert code == 0 and "gpus-per-node" not in shown
    code, _, errors = run("--gpu-type", "a b", *site, "--", "eval", "--checkpoint", "x")
    assert code == 2 and "--gpu-type 'a b' must be a name" in errors


def test_without_gpus(run: Run) -> None:
    """Ranks are given instead; an evaluation asks for no GPU either."""
    words = ("--gpus-per-node", "0", "--ranks-per-node", "2", "--nodes", "2", "--dry-run")
    code, shown, _ = run(*TRAIN, *words)
    assert code == 0 and "#SBATCH --ntasks-per-node=2" in shown and "#SBATCH --gpus-per-node" not in shown
    code, shown, _ = run("--gpus-per-node", "0", "--dry-run", "--", "eval", "--checkpoint", "x")
    assert code == 0 and "#SBATCH --gpus-per-node" not in shown and "command=(eval --checkpoint x)" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*TRAIN, "--nodes", "3"), "on 3 nodes x 8 ranks: train.global_batch_size=256"),
        ((*TRAIN, "--nodes", "2", "parallel.tp=3"), "on 2 nodes x 8 ranks: "),
        ((*TRAIN, "--nodes", "2", "parallel.pp=16", "parallel.tp=1", "train.steeps=3"), "train.steeps"),
        ((*TRAIN, "--nodes", "1", "parallel.tp=1", "--gpu", "rtx4090"), "rtx4090 has 23.6"),
        ((*TRAIN, "--nodes", "1", "--gpu", "h1000"), "--gpu h1000 is not known; did you mean h100?"),
        ((*TRAIN, "--nodes", "0"), "--nodes 0 must be at least 1"),
        ((*TRAIN, "--gpus-per-node", "0"), "give --ranks-per-node N"),
        ((*TRAIN, "--time", "1:2:3:4"), "--time '1:2:3:4' is no time limit; write"),
        ((*TRAIN, "--partition", "a b"), "--partition 'a b' must be a name"),
        ((*TRAIN, "--sbatch", "N=3"), "--sbatch N=3 must be a long option"),
        ((*TRAIN, "--array", "3"), "--array 3 is for preprocess"),
        ((*TRAIN, "--sbatch", "nodes=16"), "--sbatch nodes=16 is set by cptron submit itself; use --nodes"),
        ((*TRAIN, "--sbatch", "time=5"), "use --time"),
        ((*TRAIN, "--sbatch", "ntasks=64"), "use --nodes and --ranks-per-node"),
        ((*TRAIN, "--sbatch", "output=x.out"), "logs are kept where `cptron logs` finds them"),
        ((*TRAIN, "--nodes", "2", "--chain", "2", "--sbatch", "comment=x"), "known by their comment"),
        ((*TRAIN, "--nodes", "2", "--after", "1", "--sbatch", "dependency=singleton"), "leave it out"),
        ((*TRAIN, "--nodes", "2", "--time", "5m"), "before the signal to save can come, 300 s"),
        ((*TRAIN, "--nodes", "2", "--time", "1h", "--save-before", "3600"), "or a shorter --save-before"),
        ((*TRAIN, "--nodes", "2", "--gpus-per-node", "4", "--ranks-per-node", "8"), "a node has 4; use 4"),
        ((*TRAIN, "--nodes", "2", "--venv", "absent"), "absent is not here ("),
        ((*TRAIN, "--nodes", "2", "--container", "absent.sif"), "container absent.sif is not here"),
        ((*TRAIN, "--nodes", "2", "--container", "a#b", "--mount", "/data"), "must be SOURCE:TARGET"),
        (("--", "train"), "names no recipe"),
        ((*TRAIN, "--template", "absent.sbatch"), "template absent.sbatch cannot be read"),
        ((*TRAIN, "--site", "absent.yaml"), "absent.yaml: cannot read the configuration"),
        ((*TRAIN, "data.sources.domain.path=tokens/absent"), "tokens/absent.idx"),
        ((str(RECIPE),), "start.checkpoint=checkpoints/llama-3.1-8b is not here; make it"),
        ((), "there is nothing to run"),
        ((str(RECIPE), "--", "preprocess"), "are two jobs"),
        (("--", "inspect", "x"), "cptron inspect has no template; use one of train, preprocess"),
        (("--chain", "2", "--", "convert", "a", "b"), "--chain 2 is for training"),
        (("--merge", "--", "preprocess"), "--merge joins the parts"),
        (("--array", "4-", "--", "preprocess", "--input", "a"), "--array 4- must be a number of tasks"),
        (("--", "preprocess", "--input", "a", "--output-prefix", "b"), "--tokenizer-model is None"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(
    words: tuple[str, ...], said: str, run: Run, tmp_path: Path
) -> None:
    """Exit code 2 and one line."""
    before = sorted(tmp_path.rglob("*"))
    if words and words[-1] == "a":
        words = (*words, "--tokenizer-model", "t", "--output-prefix", "b")
    code, _, errors = run(*words)
    (line,) = errors.splitlines()
    assert code == 2 and said in line, line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_job_that_waits_may_lack_what_it_waits_for(run: Run) -> None:
    """With --after: the model and data may still be made; it is said that they are not checked."""
    words = ("data.sources.domain.path=tokens/absent", "--nodes", "2", "--after", "5", "--dry-run")
    code, shown, _ = run(str(RECIPE), *words)
    assert code == 0
    assert "note: start.checkpoint=checkpoints/llama-3.1-8b is not here, and not checked" in shown
    assert "note: domain is not checked: " in shown


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("partion: gpu", "site.yaml:1: unknown key partion; did you mean partition?"),
        ("gpus_per_node: many", "site.yaml:1: gpus_per_node=many must be a whole number"),
        ("gpus_per_node: -1", "gpus_per_node=-1 must not be negative"),
        ("time: soon", "site.yaml: time 'soon' is no time limit"),
        ("environment: {A B: c}", "environment has 'A B', which is no name of a variable"),
        ("- a", "must be a section"),
    ],
)
def test_site_file_with_an_error(content: str, said: str, run: Run, tmp_path: Path) -> None:
    """File and line; also where it is in its usual place."""
    path = tmp_path / "config/cptron/site.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    code, _, errors = run(*TRAIN, "--dry-run")
    (line,) = errors.splitlines()
    assert code == 2 and said in line, line


def test_the_page_names_every_key_of_the_site_file(run: Run, tmp_path: Path) -> None:
    """And its example is one."""
    page = (ROOT / "docs/clusters.md").read_text()
    assert [field.name for field in fields(Site) if f"`{field.name}`" not in page] == []
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    (tmp_path / "site.yaml").write_text(example[1])
    assert read_site(tmp_path / "site.yaml").time == "24:00:00"


def test_slurm_is_absent(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line with the remedy."""
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = run(*TRAIN, "--nodes", "2")
    (line,) = errors.splitlines()
    assert code == 2 and "sbatch is not on this machine" in line and "--dry-run" in line


def test_what_sbatch_refuses_is_one_line(run: Run, sbatch: Path) -> None:
    """Its own words, and the partitions that there are."""
    program = sbatch.parent / "bin/sbatch"
    said = (
        "sbatch: error: invalid partition specified: x",
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
    )
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{said[0]}' '{said[1]}' >&2; exit 1\n")
    sinfo = program.with_name("sinfo")
    sinfo.write_text("#!/bin/sh\nprintf 'gpu\\ncpu\\ngpu\\n'\n")
    sinfo.chmod(0o755)
    code, _, errors = run(*TRAIN, "--nodes", "2", "--partition", "x")
    assert code == 2
    assert errors == (
        "cptron: error: sbatch refused the job: invalid partition specified: x; Invalid partition name specified; "
        "partitions here: cpu or gpu\n"
    )


def test_a_job_that_cannot_be_written_down_is_still_named(
    run: Run, sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the queue, whatever becomes of the list."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("CPTRON_JOBS", str(tmp_path / "file" / FILE))
    code, shown, errors = run(*TRAIN, "--nodes", "2")
    assert code == 2 and "submitted job 101" in shown
    assert "job 101 is submitted, but cannot be written down" in errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", "01:30:00"), ("90:30", "01:30:30"), ("24:00:00", "1-00:00:00"), ("2-12", "2-12:00:00"),
        ("1-2:03", "1-02:03:00"), ("1-2:03:04", "1-02:03:04"), ("36h", "1-12:00:00"), ("1d", "1-00:00:00"),
        ("1h30m", "01:30:00"), ("90min", "01:30:00"), ("0:30", "00:00:30"),
    ],
)  # fmt: skip
def test_time_limits(text: str, expected: str) -> None:
    """As `man sbatch` reads them, and as people say them."""
    assert slurm_time(text, "--time") == expected


def test_arrays() -> None:
    """A number is a count."""
    assert [array_of(text) for text in ("8", "1", "3,5", "0-7%4", "0-9:3")] == [
        "0-7",
        "0-0",
        "3,5",
        "0-7%4",
        "0-9:3",
    ]


def test_a_wheel_carries_the_templates(tmp_path: Path) -> None:
    """What is built for a wheel submits without the checkout, with the templates of launch/."""
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    carried = tmp_path / "lib/cptron/launch/templates"
    for path in (ROOT / "launch").glob("*.sbatch"):
        assert (carried / path.name).read_bytes() == path.read_bytes()
    words = ["submit", "--dry-run", "--", "convert", "a", "b"]
    done = subprocess.run(
        [sys.executable, "-m", "cptron.cli", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "command=(convert a b)" in done.stdout, done.stderr
