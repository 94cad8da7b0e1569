"""From the configuration to open sources.

Place in the flow: `config.schema` -> here -> `stream`, for training, `cptron data prepare` and `cptron data
ledger` alike. Invariant: all three open the same sources in the same way.
"""

from __future__ import annotations

from cptron.config.schema import Config
from cptron.data.cache import IndexCache
from cptron.data.source import TokenSource
from cptron.data.stream import Mix
from cptron.forgetting.reaction import raised_shares


def open_sources(config: Config, vocab_size: int = 0) -> list[TokenSource]:
    """The training sources in the order of the configuration.

    Token ids from `vocab_size` on are refused when they are read; 0 checks nothing. Raises DataError.
    """
    data = config.data
    cache = IndexCache(data.cache_dir) if data.cache_dir else None
    return [
        TokenSource(
            item.name,
            item.path,
            data.seq_length,
            config.run.seed,
            packing=data.packing,
            vocab_size=vocab_size,
            cache=cache,
            eod_mask_loss=data.eod_mask_loss,
        )
        for item in data.sources
    ]


def mix_of(config: Config, replay_factor: float = 1.0) -> Mix:
    """What is asked of the sources, when the monitor has multiplied replay by so much."""
    sources = config.data.sources
    shares = tuple(source.token_share for source in sources)
    if replay_factor != 1:
        shares = raised_shares(shares, [source.role == "replay" for source in sources], replay_factor)
    return Mix(
        shares,
        tuple(source.max_epochs for source in sources),
        config.data.on_max_epochs,
    )
