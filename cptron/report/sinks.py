"""Where metric records go: JSONL always, TensorBoard and Weights & Biases when asked for.

Place in the flow: rank 0 of the loop writes each record once. A record is a flat dict: `kind` (step, eval,
save, guard, start or stop), `step` (optimizer steps done) and values with their unit in the name. Invariant: after
a resume or a rollback no sink but Weights & Biases shows a step twice; records of steps that were lost are gone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from cptron.config.schema import Config
from cptron.errors import ConfigError, DataError
from cptron.json_text import parse_json

Record = dict[str, Any]
METRICS_FILE = "metrics.jsonl"


class Sink(Protocol):
    """A destination of records."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def rewind(self, position: int) -> None:
        """Forget what came after `position`, which the run went back to."""

    def close(self) -> None:
        """Flush and release."""


class Metrics:
    """Hands every record to every sink, in order."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def write(self, record: Record) -> None:
        """Write one record everywhere."""
        for sink in self._sinks:
            sink.write(record)

    def rewind(self, position: int) -> None:
        """Go back to a step everywhere."""
        for sink in self._sinks:
            sink.rewind(position)

    def close(self) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.close()


def open_sinks(config: Config, run_dir: Path, resume_step: int, config_dict: dict[str, Any]) -> Metrics:
    """The sinks that `config.log` asks for, below `run_dir`.

    `resume_step` is the step that the run goes on from, 0 for a new run. `config_dict` is shown by Weights &
    Biases. Raises `ConfigError` when a package asked for is missing.
    """
    sinks: list[Sink] = []
    if config.log.tensorboard:
        sinks.append(TensorBoardSink(run_dir / "tensorboard", resume_step))
    if config.log.wandb != "off":
        name = config.run.name or run_dir.resolve().name
        sinks.append(WandbSink(config.log.wandb, config.log.wandb_project, name, run_dir, config_dict))
    return Metrics([JsonlSink(run_dir / METRICS_FILE, resume_step), *sinks])


def read_records(path: Path) -> list[Record]:
    """All whole records of a JSONL file; a last line cut off by a crash is left out. Raises `DataError`."""
    return list(each_record(path))


def each_record(path: Path) -> Iterator[Record]:
    """As `read_records`, one at a time: a log of a million steps is not held in memory."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = parse_json(line)
                if not isinstance(record["kind"], str) or type(record["step"]) is not int:
                    raise TypeError("its kind must be a text, its step a whole number")
            except (ValueError, TypeError, KeyError):
                raise DataError(
                    f"{path}:{number}: not a metrics record; remove the line or restore the file"
                ) from None
            yield record


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """Name and value of every metric, grouped for display: `train/lr`, `valid/manual/perplexity`."""
    group = {"step": "train"}.get(record["kind"], record["kind"])
    for key, value in record.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "unix_s"):
            yield key if key.startswith("valid/") else f"{group}/{key}", float(value)


class JsonlSink:
    """One JSON object a line, flushed at once. Numbers that JSON lacks are written as "nan", "inf" and
    "-inf".

    Records whose `key` is beyond `position` are cut off, in one atomic replacement. At 0 nothing is kept: a run
    without a checkpoint starts over, baseline included.
    """

    def __init__(self, path: Path, position: int, key: str = "step") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._key = path, key
        self._file = self._opened(position)

    def _opened(self, position: int) -> TextIO:
        path = self._path
        kept: list[Record] = []
        if position > 0 and path.exists():
            kept = [record for record in read_records(path) if self._place(record) <= position]
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(_line(record) for record in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def _place(self, record: Record) -> int:
        place = record.get(self._key)
        if type(place) is not int:
            raise DataError(f"{self._path}: a record has no {self._key}; remove its line or restore the file")
        return place

    def rewind(self, position: int) -> None:
        """Cut off what came after `position`. Raises `DataError` on a full disk."""
        try:
            self._file.close()
            self._file = self._opened(position)
        except OSError as error:
            raise self._cannot_write(error) from None

    def write(self, record: Record) -> None:
        """Append one record. Raises `DataError` on a full disk."""
        try:
            self._file.write(_line(record))
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(f"{self._path} cannot be written ({error}); free space and start again")

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what could not be written was said
            self._file.close()


def _line(record: Record) -> str:
    finite = {k: repr(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


class TensorBoardSink:
    """Event files with the metrics of steps and evaluations; on resume TensorBoard drops the lost steps
    itself."""

    def __init__(self, dir: Path, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "log.tensorboard=true needs the tensorboard package, which is not installed; "
                "run `pip install tensorboard`, or set log.tensorboard=false"
            ) from None
        self._dir, self._make = dir, SummaryWriter
        self._writer = self._opened(resume_step)

    def _opened(self, resume_step: int) -> Any:
        return self._make(str(self._dir), purge_step=resume_step + 1 if resume_step else 0)

    def rewind(self, position: int) -> None:
        """Go on in a new event file, which hides the later steps of those before."""
        self._writer.close()
        self._writer = self._opened(position)

    def write(self, record: Record) -> None:
        """Write the metrics of a step or an evaluation at its step."""
        if record["kind"] in ("step", "eval"):
            for name, value in scalars(record):
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbSink:
    """A Weights & Biases run under `dir/wandb`; resumes keep its id. `offline` needs no account and no
    network."""

    def __init__(
        self, mode: Literal["offline", "online"], project: str, name: str, dir: Path, config: dict[str, Any]
    ) -> None:
        if mode == "offline":  # wandb's own telemetry would ask the network even then
            os.environ["WANDB_ERROR_REPORTING"] = "false"
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                f"log.wandb={mode} needs the wandb package, which is not installed; "
                "run `pip install wandb`, or set log.wandb=off"
            ) from None
        quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        run_id = _wandb_id(dir / "wandb")
        try:
            self._run = wandb.init(
                mode=mode,
                project=project,
                name=name,
                dir=dir,
                config=config,
                id=run_id,
                resume="allow" if mode == "online" else None,  # offline there is nothing to resume from
                settings=quiet,
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"log.wandb={mode}: {reason}; run `wandb login`, or set log.wandb=offline"
            ) from None
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        """Log the metrics of a step or an evaluation against its step."""
        if record["kind"] in ("step", "eval"):
            self._run.log({"step": record["step"], **dict(scalars(record))})

    def rewind(self, position: int) -> None:
        """Nothing: what was logged stays, and the steps taken again are shown after it."""

    def close(self) -> None:
        """Finish the run, so that its files are complete."""
        self._run.finish()


def _wandb_id(wandb_dir: Path) -> str:
    """The run's id, drawn once and kept beside its files."""
    path = wandb_dir / "run_id"
    if not path.exists():
        wandb_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8), encoding="ascii")
    return path.read_text(encoding="ascii").strip()
