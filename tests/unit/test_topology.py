"""Rank arithmetic against megatron-core's own, and which rank a launcher made this process."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import ConfigError
from cptron.runtime.launcher import Ranks, launched_ranks, slurm_rendezvous
from cptron.runtime.topology import Layout, Topology

SIZES = st.integers(1, 6)

SBATCH_SHELL = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOBID": "4242",
    "SLURM_JOB_NODELIST": "node[01-02]",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0",
}
"""What a batch script itself sees: much of a task, but it is none."""


def srun_task(rank: int, tasks: int, tasks_per_node: str, local: int, node: int) -> dict[str, str]:
    """What a task of `srun` in that job sees."""
    return SBATCH_SHELL | {
        "SLURM_STEP_ID": "0",
        "SLURM_STEPID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": tasks_per_node,
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
    }


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, SIZES)
def test_ranks_are_numbered_with_tensor_innermost(tp: int, cp: int, dp: int, pp: int) -> None:
    """Counting through (pipeline, data, context, tensor) with the last index fastest numbers every rank once."""
    topology = Topology(tp * cp * dp * pp, Layout(tp=tp, cp=cp, pp=pp))
    assert topology.dp == dp
    places = [(p, d, c, t) for p in range(pp) for d in range(dp) for c in range(cp) for t in range(tp)]
    axes = (topology.pp_rank, topology.dp_rank, topology.cp_rank, topology.tp_rank)
    assert [tuple(axis(rank) for axis in axes) for rank in range(tp * cp * dp * pp)] == places
    context = f"_cp{cp}" if cp > 1 else ""
    assert topology.describe() == f"tp{tp}{context}_pp{pp}_dp{dp}"


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, SIZES)
def test_groups_are_megatron_cores(tp: int, cp: int, dp: int, pp: int) -> None:
    """Ranks that share two coordinates are the groups which megatron-core makes in its default order."""
    import cptron.runtime.megatron_ready  # noqa: F401

    from megatron.core.parallel_state import RankGenerator

    topology = Topology(tp * cp * dp * pp, Layout(tp=tp, cp=cp, pp=pp))
    theirs = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order="tp-cp-ep-dp-pp")
    axes = {"tp": topology.tp_rank, "cp": topology.cp_rank, "dp": topology.dp_rank, "pp": topology.pp_rank}
    for axis in axes:
        others = [place for name, place in axes.items() if name != axis]
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(topology.world_size):
            groups.setdefault(tuple(place(rank) for place in others), []).append(rank)
        assert sorted(groups.values()) == sorted(theirs.get_ranks(axis))


@settings(deadline=None)
@given(st.integers(1, 64), SIZES, SIZES)
def test_a_world_that_cannot_be_cut_is_refused(world_size: int, tp: int, pp: int) -> None:
    """The message names the number of ranks and what it must be a multiple of."""
    if world_size % (tp * pp) == 0:
        assert Topology(world_size, Layout(tp=tp, pp=pp)).dp * tp * pp == world_size
        return
    with pytest.raises(ConfigError, match=f"world size {world_size} must be a multiple of .* = {tp * pp};"):
        Topology(world_size, Layout(tp=tp, pp=pp))


def test_torchrun_is_understood() -> None:
    """Second of two machines with four ranks each."""
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}
    ranks = launched_ranks(env | {"MASTER_ADDR": "node01", "MASTER_PORT": "29500"})
    assert ranks == Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4, launcher="torchrun")
    assert not ranks.is_main


def test_torchrun_inside_a_slurm_task_goes_first() -> None:
    """One `srun` task on each machine starts torchrun there: its ranks count, not the tasks."""
    env = srun_task(1, 2, "1(x2)", 0, 1)
    env |= {"RANK": "4", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}
    assert launched_ranks(env) == Ranks(4, 8, 0, 4, "torchrun")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (srun_task(0, 8, "4(x2)", 0, 0), Ranks(0, 8, 0, 4, "slurm")),
        (srun_task(6, 8, "4(x2)", 2, 1), Ranks(6, 8, 2, 4, "slurm")),
        (srun_task(3, 4, "4", 3, 0), Ranks(3, 4, 3, 4, "slurm")),
        (srun_task(1, 2, "1(x2)", 0, 1), Ranks(1, 2, 0, 1, "slurm")),
    ],
)
def test_srun_is_understood(env: dict[str, str], expected: Ranks) -> None:
    """Sizes are the step's, which may be smaller than the job's."""
    ranks = launched_ranks(env)
    assert ranks == expected
    assert ranks.is_main == (expected.rank == 0)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"HOME": "/root", "PATH": "/usr/bin"},
        SBATCH_SHELL,
        srun_task(0, 1, "1", 0, 0),  # an interactive shell: `srun --pty bash`
        {"RANK": "0"},
    ],
)
def test_a_process_started_by_hand_has_no_ranks(env: dict[str, str]) -> None:
    """Neither a shell on a cluster nor a stray variable makes it wait for ranks that nobody starts."""
    assert launched_ranks(env) is None


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `cptron train` asks."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert launched_ranks() is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched_ranks() == Ranks(0, 1, 0, 1, "torchrun")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu-[007,009-012],m3", "gpu-007"),
        ("login,n[1-2]", "login"),
        ("r[03-04]n[1,5],y", "r03n1"),
    ],
)
def test_ranks_of_srun_meet_on_the_first_node(nodes: str, host: str) -> None:
    """As `scontrol show hostnames` lists them; two jobs, and two steps of one, have other ports."""
    env = {"SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": nodes}
    assert slurm_rendezvous(env) == (host, 20000 + 123456 % 12000)
    others = [{"SLURM_JOB_ID": "123457"}, {"SLURM_STEP_ID": "1"}]
    assert len({slurm_rendezvous(env | other) for other in [{}, *others]}) == 3
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST"):
        assert slurm_rendezvous(env | {name: ""}) is None
