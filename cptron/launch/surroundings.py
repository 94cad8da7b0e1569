"""In what environment a job runs: the variables between a template's two marks.

Place in the flow: `job` fills them in. Invariant: what is not asked for stays as the template has it; a folder or file
that has to be there, and is not, is found before the job waits for it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cptron.errors import ConfigError
from cptron.launch.arguments import Asked
from cptron.launch.site import Site
from cptron.launch.template import Value

IMAGE_FILES = (".sif", ".sqsh")
"""Other images are names, or are pulled."""


def variables_of(request: Asked, site: Site, jobs: Path, chain: str) -> dict[str, Value]:
    """Those of the template that are filled in. Raises `ConfigError`."""
    args = request.args
    found: dict[str, Value] = {"command": request.command, "job_dir": str(jobs)}
    container = args.container or site.container
    if container:
        found["container"] = container
    else:
        here = sys.prefix if sys.prefix != sys.base_prefix else ""
        venv = args.venv or site.venv or os.environ.get("CPTRON_VENV", here)
        found["venv"] = str(Path(venv).absolute()) if venv else ""
    if mounts := (*site.container_mounts, *args.mount):
        found["container_mounts"] = mounts
        for mount in mounts:
            if ":" not in mount or "," in mount:
                raise ConfigError(f"--mount {mount} must be SOURCE:TARGET; use e.g. /data:/data")
    if site.setup:
        found["setup"] = site.setup
    if site.environment:
        found["environment"] = tuple(f"{name}={value}" for name, value in site.environment.items())
    if chain:
        found["chain"] = chain
    if args.retries:
        found["retries"] = str(args.retries)
    return found


def require_there(variables: dict[str, Value], *, only_shown: bool) -> list[str]:
    """Raise `ConfigError` for what the job would look for in vain; a note for each where the job is only shown."""
    venv, container, setup = (str(variables.get(name, "")) for name in ("venv", "container", "setup"))
    looked_for = {
        f"venv {venv}": Path(venv, "bin/activate") if venv else None,
        f"container {container}": Path(container) if container.endswith(IMAGE_FILES) else None,
        f"setup {setup}": Path(setup) if setup else None,
    }
    absent = [
        f"{what} is not here ({path})" for what, path in looked_for.items() if path and not path.exists()
    ]
    if absent and not only_shown:
        raise ConfigError(f"{absent[0]}; make it, in a place that all nodes see, or name another")
    return absent
