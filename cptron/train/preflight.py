"""Everything about a run that can be wrong and can be found out without a GPU, a process group or torch.

Place in the flow: `cptron train` does it before it starts any rank, and every rank does it again.
Invariant: it only reads; a run that fails here has changed nothing on disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cptron.checkpoint import layout
from cptron.checkpoint.run_lock import refuse_other_writer
from cptron.checkpoint.saved_rate import saved_rate
from cptron.checkpoint.space import check_space
from cptron.config.check import check_config
from cptron.config.check_engine import check_shape
from cptron.config.check_forgetting import check_probes
from cptron.config.check_mixing import staged_configs
from cptron.config.presets import preset_note
from cptron.config.schema import Config
from cptron.data.made_with import check_data, tokenizer_of_data
from cptron.errors import ConfigError
from cptron.model.architecture import Architecture
from cptron.model.backend import check_backend, check_offloading
from cptron.optim.phases import describe_schedule
from cptron.train.chat_notes import chat_notes
from cptron.train.origin import Origin, origin_of
from cptron.train.resume import Change, Found, accepted_changes, find_run, found_parent
from cptron.train.start_state import start_notes

FAST = 2.0
"""Times the rate, of an update that is to be spoken of."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a checked configuration comes to."""

    arch: Architecture
    base: Path | None
    """Checkpoint whose weights a new run starts from; None for other starts."""
    resume_from: Path | None
    """Checkpoint of this very run to go on from; None for a new run."""
    identity: dict[str, Any]
    """What makes this run another run than its neighbour."""
    notes: tuple[str, ...]
    """Things the user should see, such as a damaged checkpoint that was passed over."""
    contents: Mapping[str, str]
    """Identity of each source's tokens, by its name."""
    found: Found | None
    """The run that is in the directory already."""
    hugging_face: Path | None = None
    """Hugging Face model whose weights a new run starts from; None for other starts."""
    branch_from: Path | None = None
    """Checkpoint of another run of which a new run takes all; None for other starts."""
    held_to: Path | None = None
    """Checkpoint of the weights that `regularise` knows as the starting ones; None where it asks for none."""
    accepted: tuple[Change, ...] = ()
    """What has changed since the checkpoint, with consequences that `run.accept_changes` accepts."""


def preflight(config: Config, world_size: int) -> Plan:
    """Check configuration, base checkpoint, data and output directory. Raises a `CptronError` with one
    line."""
    check_config(config, world_size)
    refuse_other_writer(Path(config.run.dir))
    found = find_run(Path(config.run.dir), config.checkpoint.on_damage)
    start_notes: list[str] = []
    origin = origin_of(config, found, start_notes.append)
    arch, tokenizer = origin.arch, origin.tokenizer
    check_shape(arch, config)
    check_probes(config, arch)
    for staged, _ in [(config, ""), *staged_configs(config)]:
        check_shape(arch, staged)
    _check_reference(config, arch, tokenizer)
    check_backend(config.model.backend)
    check_offloading(config.memory.offload_modules)
    made_with = tokenizer_of_data(config, tokenizer)
    data_notes, opened = check_data(config, arch.vocab_size, made_with)
    contents = {name: content.identity for name, content in opened.items()}
    data_notes = (*data_notes, *chat_notes(config, origin, opened))
    identity = {
        "start": origin.weights,
        "tokenizer": made_with,
        "seed": config.run.seed,
        "seq_length": config.data.seq_length,
        "packing": config.data.packing,
        "order": config.data.order,
    }
    if origin.held_to is not None:
        identity["regularise"] = layout.read_manifest(origin.held_to).weights_fingerprint
    if config.adapter.kind != "none":
        settings = asdict(config.adapter) | {"targets": list(config.adapter.targets)}
        identity |= {f"adapter.{name}": value for name, value in settings.items()}
    notes = tuple(f"passed over: {problem}" for problem in found.problems) if found else ()
    notes = (*start_notes, *notes, *data_notes, *check_space(config, arch, origin.branch_from or origin.base))
    if not tokenizer and not config.data.tokenizer and config.start.mode != "random":
        notes = (
            *notes,
            "the base model came without a tokenizer: that the data was made with it is not proven",
        )
    resume_from = found.checkpoint if found else None
    notes = (*notes, *_rate_notes(config, origin, is_new=resume_from is None), *regularise_notes(config))
    plan = Plan(
        arch,
        origin.base,
        resume_from,
        identity,
        notes,
        contents,
        found,
        origin.hugging_face,
        origin.branch_from,
        origin.held_to,
    )
    settled(plan, config)
    return plan


def regularise_notes(config: Config) -> tuple[str, ...]:
    """What is on and has not been shown to be worth its cost, and what begins to move too fast."""
    asked = {
        "regularise.agem=true": config.regularise.agem,
        f"data.mixer={config.data.mixer}": config.data.mixer != "static",
    }
    notes = [f"{key} is experimental: compare with a run without it" for key, is_on in asked.items() if is_on]
    optim = config.optim
    if optim.freeze and optim.name == "adamw":
        # zero moments beside the run's step count, which corrects no bias any more
        largest = max((1 - optim.beta1**n) / math.sqrt(1 - optim.beta2**n) for n in range(1, 1000))
        if largest > FAST:
            notes.append(
                f"optim.freeze with optim.beta2={optim.beta2}: the first updates of what begins to move are up to "
                f"{largest:.1f} times the rate; give it a lower lr_mult in optim.groups, or use beta2=0.95"
            )
    return tuple(notes)


def _rate_notes(config: Config, origin: Origin, *, is_new: bool) -> tuple[str, ...]:
    """The schedule and its preset; of a new run also how it suits the start."""
    preset = preset_note(config)
    notes = (
        *([preset] if preset else []),
        describe_schedule(config.optim, config.train.steps),
    )
    if not is_new:
        return notes
    saved = saved_rate(origin.manifest) if origin.manifest is not None else None
    first_step = origin.manifest.step if origin.manifest is not None and origin.branch_from else 0
    return (*notes, *start_notes(config, saved, first_step))


def settled(plan: Plan, config: Config) -> Plan:
    """The plan with what has changed since its checkpoint, and notes on it. Raises `ConfigError` where a change is
    refused."""
    accepted, notes = plan.accepted, plan.notes
    if plan.found is not None:
        found = replace(plan.found, checkpoint=plan.resume_from)
        accepted, more = accepted_changes(config, found, plan.identity, plan.arch, plan.contents)
        notes = (*notes, *more)
    if plan.branch_from is not None and plan.resume_from is None:
        accepted, more = accepted_changes(
            config, found_parent(plan.branch_from), plan.identity, plan.arch, plan.contents
        )
        notes = (*notes, *more)
    return replace(plan, accepted=accepted, notes=notes)


def _check_reference(config: Config, arch: Architecture, tokenizer: str) -> None:
    """The reference model of a proxy predicts the same tokens, and can be cut as the proxy is."""
    if not config.doremi.reference:
        return
    found = layout.resolve(config.doremi.reference)
    manifest = layout.read_manifest(found)
    if manifest.adapter is not None:
        raise ConfigError(
            f"doremi.reference={found} holds an adapter, not whole weights; `cptron export --merge` and `cptron "
            "convert` make a checkpoint of it"
        )
    differs = tokenizer and manifest.tokenizer_fingerprint and manifest.tokenizer_fingerprint != tokenizer
    if manifest.arch.vocab_size != arch.vocab_size or differs:
        raise ConfigError(
            f"doremi.reference={found} has another vocabulary ({manifest.arch.vocab_size} ids) or tokenizer than the "
            f"proxy ({arch.vocab_size} ids); train a reference with the same"
        )
    check_shape(manifest.arch, config)
