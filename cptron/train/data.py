"""The data of a run, opened where the run stands.

Place in the flow: `setup.prepare` calls it after the weights are loaded. Invariant: every rank goes on with
the same samples: they have opened the same content, at the same place, under the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.config.schema import Config
from cptron.data.floors import is_usable
from cptron.data.ledger import Entry, Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.open import mix_of, open_sources
from cptron.data.stages import Stage
from cptron.data.stream import SampleStream, Stream
from cptron.data.windows import WindowSet
from cptron.errors import ConfigError, DataError
from cptron.forgetting.journal import JOURNAL, Verdict, after_rollbacks, in_a_branch, read_verdicts
from cptron.forgetting.sets import evaluated_sets
from cptron.runtime.dist import agree, from_main
from cptron.runtime.session import Session
from cptron.train.preflight import Plan
from cptron.train.resume import renewed
from cptron.train.state import TrainState, read_state, set_random_state, without_mixer

if TYPE_CHECKING:
    from cptron.train.setup import Run

Opened = tuple[TrainState, TrainLoader, list[WindowSet]]
MakeStream = Callable[[TrainState], Stream]
"""Makes the stream of a run's sources at the position of a state."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What this rank has opened on its own."""

    state: TrainState
    random_states: list[dict[str, str]]
    sources: Ledger
    """An account for each source that says no more than its content."""
    stream: MakeStream
    """Makes the stream of the sources; collective in Megatron's order."""
    valid_sets: list[WindowSet]


def open_data(config: Config, plan: Plan, session: Session) -> Opened:
    """State, training batches and validation sets of this rank; collective. Raises the same error on every
    rank.

    Whatever can go wrong on one rank alone does so before the ranks build anything together: the others would
    wait for it in a collective.
    """
    verdicts = from_main(lambda: read_verdicts(Path(config.run.dir) / JOURNAL)) if plan.resume_from else []
    found = agree(lambda: _find(config, plan, session, verdicts))
    _check_same_content(found.sources)
    loader = agree(lambda: _load(config, session, found))
    _check_same_content(found.state.ledger)
    return found.state, loader, found.valid_sets


def _find(config: Config, plan: Plan, session: Session, verdicts: Sequence[Verdict]) -> _Found:
    """Rank-local."""
    directory = plan.resume_from or plan.branch_from
    saved = read_state(directory / layout.STATE) if directory else None
    state = TrainState.from_dict(saved) if saved else TrainState()
    if plan.resume_from is None:
        branch = in_a_branch(state.watch, state.reaction, state.step, state.tokens_total)
        state.watch, state.reaction = branch
    state.watch, state.reaction = after_rollbacks(state.step, state.watch, state.reaction, verdicts)
    if config.data.mixer == "static":
        without_mixer(state)
    for name in renewed(plan.accepted, state.ledger.entries):
        state.ledger.renew(name, state.step)
    identities, stream = _find_sources(config, plan)
    sources = Ledger({name: Entry(identity, 0.0) for name, identity in identities.items()})
    valid_sets = evaluated_sets(
        config,
        plan.arch.vocab_size,
        session.dp_rank,
        session.topology.dp,
        session.topology.layout.sequence_unit,
    )
    return _Found(state, saved["random_states"] if saved else [], sources, stream, valid_sets)


def _find_sources(config: Config, plan: Plan) -> tuple[Mapping[str, str], MakeStream]:
    """Content of each source by its name, and what makes the stream of them."""
    if config.data.order == "megatron":
        from cptron.train.megatron_order import MegatronStream, open_files

        files = open_files(config)
        identities = {name: content.identity for name, content in files.contents.items()}
        vocab_size = plan.arch.vocab_size
        return identities, lambda state: MegatronStream(config, state.ledger, files, vocab_size)
    sources = open_sources(config, plan.arch.vocab_size)
    identities = {source.name: source.identity for source in sources}

    def stream(state: TrainState) -> Stream:
        mix = mix_of(config, state.share_factors, state.reaction.replay_factor)
        return SampleStream(sources, mix, state.ledger)

    return identities, stream


def _load(config: Config, session: Session, found: _Found) -> TrainLoader:
    """Collective in Megatron's order; what comes after that may again fail on one rank."""
    stream = found.stream(found.state)
    if len(found.random_states) == session.ranks.world_size:
        set_random_state(found.random_states[session.ranks.rank])
    return _loader(config, session, stream, found.state)


def _loader(config: Config, session: Session, stream: Stream, state: TrainState) -> TrainLoader:
    return TrainLoader(
        stream,
        state.ledger,
        Cut(
            config.train.global_batch_size,
            config.train.micro_batch_size,
            session.dp_rank,
            session.topology.dp,
            reads=session.reads_data,
            hands_on=session.hands_data_on,
        ),
        workers=config.data.workers,
        prefetch_steps=config.data.prefetch_steps,
        allocate=session.device.host_array,
    )


def asked_shares(run: Run) -> dict[str, float]:
    """Share of the tokens of each source in the stage of the next global batch, with the factors of `reopen`, before
    the monitor's factor of replay, floors and limits; to be changed and given to `reopen`."""
    mix = mix_of(run.config, run.state.share_factors)
    return _normalised(run, mix.asked(_next_stage(run), range(len(run.source_names))))


def own_shares(run: Run) -> dict[str, float]:
    """The same as the configuration gives them for that stage."""
    return _normalised(run, _next_stage(run).token_shares)


def _next_stage(run: Run) -> Stage:
    """By the ledger, and not by what the loader has handed out: after a resume that is nothing."""
    return run.loader.stream.stage_after(run.state.ledger)


def reopen(run: Run, shares: Mapping[str, float] | None = None) -> None:
    """Draw under other shares from the run's position on; batches that were read ahead are thrown away. Every rank
    calls it with the same shares; nothing is exchanged.

    `shares` are of the tokens, by source, in that stage, before floors: all of `asked_shares`, changed. What they
    are to those goes into the state's `share_factors`, so that it holds in later stages and after a resume. None: the
    monitor has changed its factor of replay. The ledger stays as it is until the next batch. Raises ConfigError on
    numbers that are no shares.
    """
    stream, state = run.loader.stream, run.state
    assert isinstance(stream, SampleStream), "Megatron's order is refused with the configuration"
    if shares is not None:
        if set(shares) != set(run.source_names) or not is_usable(shares.values()):
            raise ConfigError(
                f"shares {dict(shares)} must be one for each source, finite, from 0 and not all 0; keep those in force"
            )
        # not normalised: else a source that is not drawn in this stage would fall behind or come ahead in a later one
        change = {name: shares[name] / asked for name, asked in asked_shares(run).items() if asked}
        state.share_factors |= {
            name: state.share_factors.get(name, 1.0) * factor for name, factor in change.items()
        }
    run.loader.close()
    position = Ledger()
    position.assign(state.ledger)
    factors = [state.share_factors.get(name, 1.0) for name in run.source_names]
    again = stream.again(factors, state.reaction.replay_factor, position)
    run.loader = _loader(run.config, run.session, again, state)
    state.ledger.assign(position)  # the loader has put the shares of the next batch in force there


def _normalised(run: Run, values: Sequence[float]) -> dict[str, float]:
    total = math.fsum(values)
    return {name: value / total for name, value in zip(run.source_names, values, strict=True)}


def _check_same_content(ledger: Ledger) -> None:
    """Nodes may have token files of their own: raise on all ranks unless they hold the same."""
    ledgers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ledgers, ledger.to_dict())
    for rank, other in enumerate(ledgers):
        for name, entry in ledgers[0]["entries"].items():
            found = other["entries"].get(name)
            if found != entry:
                raise DataError(
                    f"source {name} has content {found and found['identity'][:12]} on rank {rank} and "
                    f"{entry['identity'][:12]} on rank 0; give every node the same token files"
                )
