"""From the configuration to open sources.

Place in the flow: `config.schema` -> here -> `stream`, for training, `cptron data prepare` and `cptron data
ledger` alike. Invariant: all three open the same sources in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping

from cptron.config.schema import Config, StageConfig
from cptron.data.cache import IndexCache
from cptron.data.floors import Floors
from cptron.data.mix import Mix
from cptron.data.source import TokenSource
from cptron.data.stages import Stage
from cptron.errors import ConfigError
from cptron.optim.rate_reached import step_reached


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
            arrangement=item.order,
        )
        for item in data.sources
    ]


def mix_of(config: Config, factors: Mapping[str, float] | None = None, replay_factor: float = 1.0) -> Mix:
    """What is asked of the sources; `factors` multiply their shares, by name, and `replay_factor` those of replay, as
    the forgetting monitor does. Raises ConfigError."""
    sources = config.data.sources
    return Mix(
        tuple(source.token_share for source in sources),
        tuple(source.max_epochs for source in sources),
        config.data.on_max_epochs,
        stages_of(config),
        floors_of(config),
        tuple((factors or {}).get(source.name, 1.0) for source in sources) if factors else (),
        tuple(source.role == "replay" for source in sources),
        replay_factor,
    )


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages as the loader has them; none where the run has none. Raises ConfigError."""
    return tuple(_stage(config, stage, number) for number, stage in enumerate(config.data.stages))


def floors_of(config: Config) -> Floors:
    """What no blend goes below."""
    sources = config.data.sources
    return Floors(
        frozenset(source.name for source in sources if source.role == "replay"),
        config.data.replay_floor,
        {source.name: source.min_share for source in sources if source.min_share},
    )


def _stage(config: Config, stage: StageConfig, number: int) -> Stage:
    until_step = 0
    if stage.until_lr_frac:
        found = step_reached(config.optim, config.train.steps, stage.until_lr_frac)
        if not found:
            raise ConfigError(
                f"data.stages.{number}.until_lr_frac={stage.until_lr_frac} is never reached by the schedule within "
                f"train.steps={config.train.steps}; use until_tokens, or a schedule that decays so far"
            )
        until_step = found
    return Stage(
        tuple(
            stage.shares.get(source.name, 0.0) if stage.shares else source.token_share
            for source in config.data.sources
        ),
        stage.seq_length,
        stage.global_batch_size or config.train.global_batch_size,
        stage.lr_scale,
        stage.until_tokens,
        until_step,
    )
