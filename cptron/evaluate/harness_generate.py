"""One greedy generation for lm-evaluation-harness: what a task asks for, and when it is done.

Place in the flow: `harness_engine` pushes the likeliest token until `done`. Invariant: what cannot be done exactly
(sampling, beams) is refused, and the text ends before the first stop string.
"""

from __future__ import annotations

from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from cptron.errors import ConfigError

GREEDY = {"do_sample": (False,), "temperature": (0, 0.0), "num_beams": (1,), "repetition_penalty": (1, 1.0)}
"""Values with which a generation is greedy."""
WITHOUT_EFFECT = ("top_p", "top_k", "use_cache")
"""What a greedy generation does not depend on."""


def request_of(gen_kwargs: dict[str, Any], eos: str, max_new_tokens: int) -> tuple[list[str], int]:
    """(stop strings, limit of new tokens) of a request. Raises ConfigError unless it is greedy."""
    wanted: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, max_new_tokens))
    until = handle_stop_sequences(wanted.pop("until", None), eos=eos)
    limit = int(wanted.pop("max_gen_toks"))
    for key, value in wanted.items():
        if key not in WITHOUT_EFFECT and value not in GREEDY.get(key, ()):
            raise ConfigError(
                f"the task generates with {key}={value}, the engine generates greedily only; "
                "export the checkpoint and use --hugging-face"
            )
    return [term for term in until if term], limit


class Generation:
    """Context and what has followed it so far."""

    def __init__(
        self, tokenizer: Any, context: list[int], until: list[str], end_ids: set[int], max_new_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._until = until
        self._end_ids = end_ids
        self._num_context = len(context)
        self._max_new_tokens = max_new_tokens
        self.ids = list(context)
        self.done = max_new_tokens < 1

    def push(self, token: int) -> None:
        """Append a token, and see whether it was the last."""
        self.ids.append(token)
        new = self.ids[self._num_context :]
        shown = self._tokenizer.decode(new)
        stopped = token in self._end_ids or any(term in shown for term in self._until)
        self.done = stopped or len(new) >= self._max_new_tokens

    @property
    def text(self) -> str:
        """What was generated, without special tokens, up to the first stop string."""
        text = str(self._tokenizer.decode(self.ids[self._num_context :], skip_special_tokens=True))
        for term in self._until:
            text = text.split(term)[0]
        return text
