"""A job array makes the token files of a corpus in parts, on a real scheduler; merged they are those of one job."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_jobs import Job, submit
from tiny_world import World

pytestmark = pytest.mark.more
NUM_PARTS = 8
ONE_CORE = ("--cpus-per-task=1", "--time=60")


def test_array(cluster: Cluster, world: World, tmp_path: Path) -> None:
    """Eight tasks, then the merge that depends on them; every byte is that of one job over the same files."""
    names = ("domain", "general", "domain_valid")
    corpora = ["--input", *map(str, map(world.corpus, names)), "--tokenizer-model", str(world.hugging_face)]
    words = [*corpora, "--append-eod", "--output-prefix"]
    one = submit(cluster, tmp_path, "preprocess.sbatch", ONE_CORE, *words, tmp_path / "one")
    array = submit(
        cluster,
        tmp_path,
        "preprocess.sbatch",
        [*ONE_CORE, f"--array=0-{NUM_PARTS - 1}"],
        *words,
        tmp_path / "web",
    )
    parts, whole = f"{tmp_path}/web_part-*_text_document", tmp_path / "web_text_document"
    after = [
        *ONE_CORE[1:],
        "--cpus-per-task=1",
        f"--dependency=afterok:{array.number}",
        "--kill-on-invalid-dep=yes",
    ]
    merge = submit(cluster, tmp_path, "merge.sbatch", after, "--inputs", parts, "--output-prefix", whole)
    one.wait("COMPLETED")
    wait_for_array(array)
    merge.wait("COMPLETED")
    assert len(list(tmp_path.glob("web_part-*_text_document.bin"))) == NUM_PARTS
    for suffix in (".bin", ".idx"):
        expected = (tmp_path / f"one_text_document{suffix}").read_bytes()
        assert whole.with_suffix(suffix).read_bytes() == expected
    assert len(expected) > 1000


def wait_for_array(array: Job) -> None:
    """Every task has ended well."""
    for number in range(NUM_PARTS):
        Job(array.cluster, f"{array.number}_{number}", array.cwd).wait("COMPLETED")
