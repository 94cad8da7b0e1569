"""A curation from beginning to end: one stage after the other, and in each what is still missing.

Place in the flow: `main` calls this; executors do the units, `publish` makes the output of the last stage.
Invariant: what is there with the right fingerprint is taken as it is, all else is made; so a run that was killed at any
moment, started again with any number of workers, ends with the bytes of an undisturbed one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cptron.corpus.chain import note_changes
from cptron.corpus.executor import Executor
from cptron.corpus.manifest import MANIFEST, CorpusManifest
from cptron.corpus.publish import publish
from cptron.corpus.schema import CurateConfig
from cptron.corpus.sealed import read_record
from cptron.corpus.shard_file import read_shard
from cptron.corpus.shards import Corpus, look_up
from cptron.corpus.stages import Stage, build_step, cut_into_stages, identities
from cptron.corpus.step import CorpusStep, ShardFeatures
from cptron.corpus.token_counter import tokenizer_record
from cptron.corpus.work import Kind, Unit, Work, features_path, shard_path
from cptron.durable import make_directory, own_directory
from cptron.errors import DataError
from cptron.partials import remove_partials

WORK_DIR = ".work"
LOCK = "lock"
"""Held by whoever works in `.work`."""


def prepare(config: CurateConfig, *, restart: bool = False, alone: bool = True) -> Work:
    """Look at inputs, steps and what is there; not `alone`: beside other parts of the same run. Raises DataError where
    something cannot be used."""
    output = Path(config.corpus.output)
    directory = output / WORK_DIR
    _require_ours(output)
    if restart and directory.is_dir():
        _discard(directory)
    corpus = look_up(config.corpus, check=alone)
    _require_apart(output, config, corpus)
    steps = identities(config)
    tokenizer = tokenizer_record(config.corpus.tokenizer).fingerprint if config.corpus.tokenizer else ""
    stages = cut_into_stages(config, corpus, steps, tokenizer)
    try:
        for stage in stages:
            make_directory(directory / stage.name)
            if stage.decided:
                make_directory(directory / stage.decided)
        make_directory(directory / "inputs")
        notes = [*_found_keys(corpus), *note_changes(directory, config, steps)] if alone else []
    except OSError as error:
        raise DataError(f"{directory} cannot be written ({error.strerror}); choose another output") from error
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return Work(config, corpus, stages, directory)


def _found_keys(corpus: Corpus) -> Iterator[str]:
    """Where the text was found, if it is not where everybody has it: whoever looks can stop a wrong guess at once."""
    for source in corpus.sources:
        if not source.config.text_key and source.text_key != "text":
            yield f"input {source.config.name} has its text at {source.text_key!r}; where it has not, set text_key"


def _discard(directory: Path) -> None:
    """Remove all that was made, unless another run is at it. The directory stays: it says whose the output is."""
    with locked(directory / LOCK, shared=False):
        try:
            for path in directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        except OSError as error:
            raise DataError(
                f"{error.filename or directory} cannot be removed ({error.strerror}); mend that, or remove {directory}"
            ) from error


def _require_apart(output: Path, config: CurateConfig, corpus: Corpus) -> None:
    """Never read as input what this curation writes."""
    place = output.resolve()
    folders = [Path(path).resolve() for source in config.corpus.inputs for path in source.paths]
    files = [path.resolve() for source in corpus.sources for _, path, _, _ in source.files]
    for path in [path for path in folders if path.is_dir() and place.is_relative_to(path)] + [
        path for path in files if place in path.parents
    ]:
        raise DataError(
            f"output {output} and the input {path} lie in each other, must be apart; choose another output"
        )


def _require_ours(output: Path) -> None:
    """Never write between files that something else put there."""
    if not output.is_dir():
        return
    if (output / WORK_DIR).is_dir() or (output / MANIFEST).is_file() or not any(output.iterdir()):
        return
    raise DataError(f"{output} holds files and is no curated corpus; choose another output or empty it")


def curate(work: Work, executor: Executor, workers: int) -> CorpusManifest:
    """Do all that is missing and publish. Raises a `CptronError`; the same call then goes on."""
    with locked(work.directory / LOCK, shared=False):
        _remove_left(work)
        do_missing(work, "hash", work.stages[0], executor)
        for stage in work.stages:
            do_stage(work, stage, executor)
            finish_stage(work, stage, workers)
        return publish(work)


def do_part(work: Work, number: int, part: tuple[int, int], executor: Executor) -> None:
    """Part I of N of a stage, with others at the same time. Raises DataError where the stage before is not finished."""
    stage = work.stages[number]
    with locked(work.directory / LOCK, shared=True):
        if number:
            before = work.stages[number - 1]
            if not (work.directory / before.decided / "decision").is_dir():
                raise DataError(
                    f"{before.shown} is not finished, must be before {stage.shown}; run --finish {number - 1}"
                )
        else:
            do_missing(work, "hash", stage, executor, part)
        do_stage(work, stage, executor, part)


def finish(work: Work, number: int, workers: int) -> CorpusManifest | None:
    """Finish a stage whose parts are all done; the last one publishes. Raises DataError where parts are missing."""
    stage = work.stages[number]
    with locked(work.directory / LOCK, shared=False):
        _remove_left(work)
        if number == 0:
            require_done(work, "hash", stage)
        finish_stage(work, stage, workers)
        return None if stage.tail else publish(work)


def _remove_left(work: Work) -> None:
    """Remove what killed processes have begun, and nobody can finish."""
    try:
        remove_partials(work.places(), only_stale=True)
    except OSError as error:
        raise DataError(
            f"{error.filename} of a killed run cannot be removed ({error.strerror}); mend that and run the same "
            "command again"
        ) from None


def do_stage(work: Work, stage: Stage, executor: Executor, part: tuple[int, int] = (0, 1)) -> None:
    """The units of a stage, or of part I of N of it."""
    do_missing(work, "map", stage, executor, part)
    if stage.tail:
        do_missing(work, "features", stage, executor, part)


def do_missing(
    work: Work, kind: Kind, stage: Stage, executor: Executor, part: tuple[int, int] = (0, 1)
) -> None:
    """The units of one kind that are not done yet."""
    index, count = part
    mine = [unit for unit in work.units(kind, stage) if unit.number % count == index]
    missing = [unit for unit in mine if not work.is_done(unit)]
    done_bytes = sum(unit.weight for unit in mine) - sum(unit.weight for unit in missing)
    executor.run(work, missing, _shown(work, kind, stage), done_bytes)


def _shown(work: Work, kind: Kind, stage: Stage) -> str:
    """On the progress bar: short, for a bar that is wider than a terminal shows no numbers."""
    if kind == "hash":
        return "hashes of the input"
    what = f"features for {stage.tail.name}" if kind == "features" and stage.tail else stage.shown_steps
    return f"[{stage.number + 1}/{len(work.stages)}] {what}"


def finish_stage(work: Work, stage: Stage, workers: int) -> None:
    """Let the corpus step at the end of a stage decide, unless it has. Raises DataError where units are missing."""
    require_done(work, "map", stage)
    if stage.tail is None:
        return
    require_done(work, "features", stage)
    decision = work.directory / stage.decided / "decision"
    if decision.is_dir():
        return
    step = build_step(work.config, stage.tail)
    assert isinstance(step, CorpusStep)
    print(f"[{stage.number + 1}/{len(work.stages)}] {stage.tail.name} decides", file=sys.stderr)
    step.open()
    try:
        with own_directory(decision) as own:
            step.decide(features_of(work, stage), own, workers)
    except OSError as error:
        raise DataError(
            f"{error.filename or decision} cannot be read or written ({error.strerror}); mend that and run the same "
            "command again"
        ) from error


def require_done(work: Work, kind: Kind, stage: Stage) -> None:
    """Raise DataError unless every unit is done."""
    units = work.units(kind, stage)
    missing = [unit for unit in units if not work.is_done(unit)]
    if missing:
        raise DataError(
            f"{stage.shown} has {len(missing)} of {len(units)} shards to do ({kind}), such as {missing[0].number}, "
            "must have none; run its parts first"
        )


def features_of(work: Work, stage: Stage) -> list[ShardFeatures]:
    """Features of all shards that the tail of `stage` looks at."""
    found = []
    for unit in work.units("features", stage):
        path = shard_path(work.directory / stage.name, unit.number)
        record = read_record(work.record_path(Unit("map", stage.number, unit.number, 0)))
        features = features_path(work.directory / stage.decided, unit.number)
        found.append(ShardFeatures(unit.number, features, record["documents"], partial(read_shard, path)))
    return found


@contextmanager
def locked(path: Path, *, shared: bool) -> Iterator[None]:
    """Keep other runs off: one run alone, or the parts of one. The lock ends with the process, however it ends."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); mend that and run the same command again"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{path} is locked by another process that writes this output; wait for it to end"
            ) from None
        except OSError:
            pass  # some parallel file systems are mounted without locks; then there is only the user's care
        yield
    finally:
        os.close(descriptor)
