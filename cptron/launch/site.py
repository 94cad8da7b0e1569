"""A site's defaults: what every job on this cluster is given, so that nobody types it each time.

Place in the flow: read by `submit`; what is on the command line wins. Invariant: a file with an unknown key or a value
of the wrong type is refused with its line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cptron.config.load import load_as
from cptron.errors import ConfigError
from cptron.launch.time_limit import slurm_time

VARIABLE = "CPTRON_SITE"
"""Environment variable with the path of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The keys of `site.yaml`; empty texts and 0 leave the template's value, or sbatch's own default."""

    partition: str = ""
    """Of jobs with GPUs."""
    cpu_partition: str = ""
    """Of jobs without; empty: as `partition`."""
    account: str = ""
    qos: str = ""
    time: str = ""
    """Time limit of training, as 24:00:00 or 36h."""
    cpu_time: str = ""
    """Time limit of jobs without GPUs."""
    gpus_per_node: int = 8
    """0 on a cluster without GPUs."""
    gpu_type: str = ""
    """Name of the GPUs in SLURM's gres.conf, where a cluster has several kinds: asked for as `h100:8`."""
    cpus_per_task: int = 0
    """Cores of a node / ranks on it, for training and evaluation."""
    cpu_cores: int = 0
    """Cores of a job without GPUs."""
    gpu: str = ""
    """Type, as for `cptron plan --gpu`: a run whose model does not fit is then refused before it is submitted."""
    venv: str = ""
    """Virtual environment that all nodes see; empty: the one that `cptron submit` runs in."""
    container: str = ""
    """Image with cptron in it: X.sif for apptainer; X.sqsh, a name or a URI for pyxis."""
    container_mounts: tuple[str, ...] = ()
    """Folders that a container sees beside the working folder, as SOURCE:TARGET."""
    setup: str = ""
    """Shell file that a job sources first: modules, proxies."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that a job exports, as `NCCL_SOCKET_IFNAME: ib0`."""
    sbatch: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch by their long names, as `constraint: h100`; '' for a switch."""


def site_file() -> Path:
    """$CPTRON_SITE, else ~/.config/cptron/site.yaml."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cptron" / "site.yaml"


def read_site(given: Path | None = None) -> Site:
    """The defaults in `given`, or in `site_file` where it exists. Raises `ConfigError`."""
    path = given or site_file()
    if given is None and not os.environ.get(VARIABLE) and not path.exists():
        return Site()
    site = load_as(Site, path)
    for key in ("time", "cpu_time"):
        if text := getattr(site, key):
            slurm_time(text, f"{path}: {key}")
    for key in ("gpus_per_node", "cpus_per_task", "cpu_cores"):
        if (number := getattr(site, key)) < 0:
            raise ConfigError(f"{path}: {key}={number} must not be negative; use 0 or more")
    for name in site.environment:
        require_variable_name(name, f"{path}: environment")
    return site


def require_variable_name(name: str, key: str) -> None:
    """Raise `ConfigError` where a shell could not export it."""
    if not (name.isascii() and name.isidentifier()):
        raise ConfigError(f"{key} has {name!r}, which is no name of a variable; use letters, digits and _")
