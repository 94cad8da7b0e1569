"""A true SLURM cluster of two nodes on this machine: munged, slurmctld and two slurmd, over the loopback.

Place in the flow: started once a session by the fixture `cluster`; by hand, `python tests/slurm/slurm_cluster.py bash`
gives a shell in which `sbatch` submits to it. Invariant: everything is below one new directory, on ports that were
free, with a key of its own, so that two clusters never meet; and when whoever started it is gone, no process and no
file of it is left.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PORTS = range(6000, 10000)
START_S = 180.0
STOP_S = 40.0
CREDENTIAL_S = 15
"""How long a requeued job waits before it starts again; SLURM's default is 120."""
CONF = """\
ClusterName=cptron
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket,cred_expire={credential_s}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=1
JobRequeue=1
FirstJobId={first_job}
KillWait=30
MinJobAge=3600
SlurmdParameters=config_overrides
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.%n.pid
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs of SLURM and munge that are not here."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, below those that ranks, jobs and the kernel choose from."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            break
    return found


@dataclass
class Cluster:
    """A running cluster; `start` makes it, `stop` leaves nothing of it."""

    directory: Path
    cpus_per_node: int = 2
    """More than one process at a time on a core is no harm to a test."""
    _daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def conf(self) -> Path:
        """The cluster's `slurm.conf`."""
        return self.directory / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which SLURM's commands speak to this cluster and to no other."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "CPTRON_"))
        }
        return {**kept, "PATH": PATH, "SLURM_CONF": str(self.conf)}

    def run(self, *words: str | Path, timeout_s: float = 240) -> str:
        """Output of one of SLURM's commands, which must succeed."""
        done = self.call(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
        return done.stdout

    def call(
        self, *words: str | Path, timeout_s: float = 240, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """One command in the cluster's environment."""
        return subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd,
            env={**self.environment, **env},
        )

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle; raises `RuntimeError` with the logs if they are not."""
        dirs = [
            self.directory / name for name in ("munge", "state", "log", *(f"spool/{name}" for name in NODES))
        ]
        for directory in dirs:
            directory.mkdir(parents=True)
        ports = free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus_per_node} "
            "RealMemory=16000"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        self.conf.write_text(
            CONF.format(
                host=host,
                ports=ports,
                user=getpass.getuser(),
                dir=self.directory,
                credential_s=CREDENTIAL_S,
                nodes=nodes,
                first_job=random.randrange(1, 1_000_000),  # the ranks' port follows from it
            )
        )
        self._start_munge()
        self._spawn("slurmctld", "-D", "-c", "-f", self.conf)
        for name in NODES:
            self._spawn("slurmd", "-D", "-N", name, "-f", self.conf)
        self.wait_idle()

    def _start_munge(self) -> None:
        munge = self.directory / "munge"
        key = munge / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        paths = {
            "key-file": key,
            "socket": munge / "socket",
            "pid-file": munge / "pid",
            "seed-file": munge / "seed",
        }
        self._spawn(
            "munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in paths.items())
        )
        self._await(lambda: (munge / "socket").exists(), "munged")

    def _spawn(self, *words: str | Path) -> None:
        output = (self.directory / "log" / f"{words[0]}.out").open("ab")
        with output:
            daemon = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=self.environment,
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def wait_idle(self) -> None:
        def both() -> bool:
            return self.call("sinfo", "-h", "-t", "idle", "-o", "%D").stdout.strip() == str(len(NODES))

        self._await(both, "both nodes")

    def _await(self, ready: object, what: str) -> None:
        assert callable(ready)
        end_s = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > end_s:
                raise RuntimeError(f"{what} did not come up within {START_S:g} s:\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        files = sorted((self.directory / "log").iterdir())
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-2000:]}" for file in files)

    def processes(self) -> list[psutil.Process]:
        """Every process that was started in this cluster: daemons, batch scripts, ranks and what they started."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        """By the environment; of slurmstepd, which writes its title over it, by the folder it works in."""
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == str(self.conf):
                return True
            return process.name() == "slurmstepd" and Path(process.cwd()) == self.directory
        return False

    def end_jobs(self) -> None:
        """Take every job out of the queue; one that runs is killed at once."""
        if jobs := self.run("squeue", "--noheader", "--format=%A").split():
            self.run("scancel", "--full", "--signal=KILL", *jobs)
            self.call("scancel", *jobs)

    def stop(self) -> None:
        """End all jobs and daemons, and remove the directory."""
        for daemon in reversed(self._daemons):  # munged is the last: the others still speak through it
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(STOP_S)
        self._daemons.clear()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(STOP_S)
        shutil.rmtree(self.directory)


@contextlib.contextmanager
def own_cluster() -> Iterator[Cluster]:
    """A cluster for the duration of the context, in a directory of its own: a socket's path has to be short."""
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="cptron-slurm-")))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """The same, kept by a process of its own that stops it when this one is gone, however it has ended."""
    words = [sys.executable, __file__]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as keeper:
        assert keeper.stdin is not None and keeper.stdout is not None
        directory = keeper.stdout.readline().strip()
        if not directory:
            raise RuntimeError("the cluster did not start; what went wrong is on standard error")
        yield Cluster(Path(directory))
        keeper.stdin.close()
        assert keeper.wait(STOP_S * 4) == 0, "the cluster did not stop in peace"


def main(words: Sequence[str]) -> int:
    """Run a command, for example a shell, beside a running cluster; without one, stop at the end of the input."""
    if absent := missing():
        print(
            f"not found: {', '.join(absent)}; `make slurm` installs SLURM on Debian and Ubuntu",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with own_cluster() as cluster:
        if words:
            return subprocess.run(list(words), env=cluster.environment).returncode
        print(cluster.directory, flush=True)
        sys.stdin.read()
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
