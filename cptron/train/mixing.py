"""Online mixing: when the mixer is asked, and what becomes of its answer.

Place in the flow: the loop calls `before_draw` ahead of every global batch; `train.data.reopen` puts new shares in
force. Invariant: shares change between two global batches only, by the number of batches drawn; the decision is in the
journal before it takes effect, is the same on every rank, and is taken again whenever its batch comes again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cptron.data.floors import floored, is_usable
from cptron.data.open import floors_of
from cptron.errors import CheckpointError
from cptron.mixture.mixer import make_mixer
from cptron.runtime.dist import agree, from_main
from cptron.train.data import asked_shares, own_shares, reopen
from cptron.train.guards import data_settings
from cptron.train.hooks import Hook
from cptron.train.mix_journal import MIX_JOURNAL, Decision, append_decision, read_decisions
from cptron.train.setup import Run


class Mixing:
    """Of one run; does nothing with `data.mixer: static`. Collective in all that it does."""

    def __init__(self, run: Run, hooks: Sequence[Hook]) -> None:
        """Raises `CheckpointError` on every rank where the journal is damaged or lacks what the state knows."""
        self._run, self._hooks = run, hooks
        self._kind = run.config.data.mixer
        if self._kind == "static":
            return
        self._path = run.directory / MIX_JOURNAL
        self._data = data_settings(run)
        self._decisions: list[Decision] = from_main(lambda: read_decisions(self._path))
        agree(self._require_state)
        known = run.state.mixing.get("decisions", 0)
        if len(self._decisions) < known:
            raise CheckpointError(
                f"{MIX_JOURNAL} has {len(self._decisions)} decision(s), the checkpoint was made with {known}; restore "
                "the file"
            )

    def _require_state(self) -> None:
        try:
            make_mixer(self._kind, self._run.state.mixing.get("mixer", {}))
        except ValueError as error:
            raise CheckpointError(
                f"the checkpoint's state of the mixer {error}; use another checkpoint"
            ) from None

    def before_draw(self) -> None:
        """Set new shares, if the mixer is to be asked between the batch drawn last and the next one."""
        if self._kind == "static":
            return
        state, data = self._run.state, self._run.config.data
        batch = state.batches_drawn
        if batch == 0 or batch % data.mixer_every_batches or state.mixing.get("batch") == batch:
            return
        losses, tokens = self._since_last_update()
        state.mixing |= {"batch": batch, "seen": state.trained.to_dict()}
        if batch > data.mixer_skip_batches:
            self._update(losses, tokens)

    def _since_last_update(self) -> tuple[dict[str, float], dict[str, int]]:
        """Mean loss of each source that was trained on since then; tokens of each since the start."""
        seen: Mapping[str, Any] = self._run.state.mixing.get("seen", {})
        losses, tokens = dict[str, float](), dict[str, int]()
        for name, trained in self._run.state.trained.sources.items():
            before = seen.get(name, {"loss_nats": 0.0, "tokens": 0})
            tokens[name] = trained.tokens
            if trained.tokens > before["tokens"]:
                nats = trained.loss_nats - before["loss_nats"]
                losses[name] = nats / (trained.tokens - before["tokens"])
        return losses, tokens

    def _update(self, losses: Mapping[str, float], tokens: Mapping[str, int]) -> None:
        run, state = self._run, self._run.state
        prior = {name: share for name, share in own_shares(run).items() if share}
        mixer = make_mixer(self._kind, state.mixing.get("mixer", {}))
        factors: dict[str, float] = state.mixing.get("factors", {})
        answer = mixer.update(losses, tokens, prior)
        proposed = from_main(lambda: answer)
        decision = self._decided() or self._decide(proposed, prior, factors)
        if decision.shares.keys() != prior.keys():
            raise CheckpointError(
                f"{MIX_JOURNAL} has decided on {', '.join(decision.shares)} after batch {decision.batch}, where "
                f"{', '.join(prior)} are drawn; restore the file"
            )
        mixer.follow(decision.shares)
        wanted = {name: decision.shares[name] / share for name, share in prior.items()}
        change = {name: wanted[name] / factors.get(name, 1.0) for name in prior}
        state.mixing |= {
            "mixer": mixer.to_dict(),
            "factors": {**factors, **wanted},
            "decisions": len(self._decisions),
        }
        if any(factor != 1.0 for factor in change.values()):
            reopen(run, {name: share * change.get(name, 1.0) for name, share in asked_shares(run).items()})
        # of the step that it is in force for: a resume from the checkpoint before says it again
        record = {"kind": "mix", "step": state.step + 1, "batch": decision.batch, "refused": decision.refused}
        record |= {f"asked/{name}": share for name, share in decision.shares.items()}
        for hook in self._hooks:
            hook.on_mix(run, record)

    def _decided(self) -> Decision | None:
        """What the journal says of this batch, where it is about the present data settings."""
        batch = self._run.state.batches_drawn
        return next((d for d in reversed(self._decisions) if (d.batch, d.data) == (batch, self._data)), None)

    def _decide(
        self, proposed: Mapping[str, float], prior: Mapping[str, float], factors: Mapping[str, float]
    ) -> Decision:
        """The mixer's answer under the floors, in the journal."""
        state, refused = self._run.state, ""
        if set(proposed) != set(prior) or not is_usable(proposed.values()) or not all(proposed.values()):
            refused = f"data.mixer={self._kind} asked for {dict(proposed)}, which are no shares"
            proposed = {name: share * factors.get(name, 1.0) for name, share in prior.items()}
        shares = floored(proposed, floors_of(self._run.config))
        decision = Decision(state.batches_drawn, state.step, shares, self._data, refused)
        is_main = self._run.session.ranks.is_main
        agree(lambda: append_decision(self._path, decision) if is_main else None)
        self._decisions.append(decision)
        return decision
