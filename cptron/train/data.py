"""The data of a run, opened where the run stands.

Place in the flow: `setup.prepare` calls it after the weights are loaded. Invariant: every rank goes on with
the same samples: they have opened the same content, at the same place, under the same shares.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from cptron.checkpoint import layout
from cptron.config.schema import Config
from cptron.data.ledger import Ledger
from cptron.data.loader import Cut, TrainLoader
from cptron.data.open import mix_of, open_sources
from cptron.data.stream import SampleStream, Stream
from cptron.data.valid import ValidSet
from cptron.errors import DataError
from cptron.runtime.dist import agree
from cptron.runtime.session import Session
from cptron.train.preflight import Plan
from cptron.train.state import TrainState, read_state, set_random_state

Opened = tuple[TrainState, TrainLoader, list[ValidSet]]


def open_data(config: Config, plan: Plan, session: Session) -> Opened:
    """State, training batches and validation sets of this rank; collective. Raises the same error on every
    rank."""
    opened = agree(lambda: _open(config, plan, session))
    _check_same_content(opened[0].ledger)
    return opened


def _open(config: Config, plan: Plan, session: Session) -> Opened:
    data, train = config.data, config.train
    saved = read_state(plan.resume_from / layout.STATE) if plan.resume_from else None
    ledger = Ledger.from_dict(saved["ledger"]) if saved else Ledger()
    stream = _open_stream(config, plan, ledger)
    state = TrainState(saved["step"] if saved else 0, saved["tokens_total"] if saved else 0, ledger)
    if saved:
        random_states = saved["random_states"]
        if len(random_states) == session.ranks.world_size:
            set_random_state(random_states[session.ranks.rank])
    cut = {"dp_rank": session.dp_rank, "dp_size": session.topology.dp}
    loader = TrainLoader(
        stream,
        ledger,
        Cut(
            train.global_batch_size,
            train.micro_batch_size,
            **cut,
            reads=session.reads_data,
            hands_on=session.hands_data_on,
        ),
        workers=data.workers,
        prefetch_steps=data.prefetch_steps,
        allocate=session.device.host_array,
    )
    micro = config.eval.micro_batch_size or train.micro_batch_size
    valid_sets = [ValidSet(v.name, v.path, data.seq_length, v.max_tokens, micro, **cut) for v in data.valid]
    return state, loader, valid_sets


def _open_stream(config: Config, plan: Plan, ledger: Ledger) -> Stream:
    if config.data.order == "megatron":
        from cptron.train.megatron_order import MegatronStream

        return MegatronStream(config, ledger)
    return SampleStream(open_sources(config, plan.arch.vocab_size), mix_of(config), ledger)


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
