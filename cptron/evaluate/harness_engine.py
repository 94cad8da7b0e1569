"""A checkpoint that answers lm-evaluation-harness: the engine computes every logit, in one process.

Place in the flow: `harness` hands it to lm_eval. Invariant: tokens, truncation and scores are those of lm_eval's `hf`
model on the exported checkpoint; padding of the vocabulary has no logit here.

Shapes: B requests of a batch, S tokens of the longest, V vocabulary, C tokens of a continuation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from cptron.errors import CheckpointError, ConfigError
from cptron.evaluate.harness_generate import Generation, request_of
from cptron.model.architecture import Architecture

Request = tuple[Any, list[int], list[int]]
"""What lm_eval asked, and the tokens of context and continuation."""


class EngineLM(TemplateLM):  # type: ignore[misc]
    """The model of a checkpoint, and the tokenizer beside it."""

    def __init__(
        self, model: Any, arch: Architecture, hugging_face: Path, batch_size: int, device: torch.device
    ) -> None:
        """Load the tokenizer. Raises `CheckpointError` where the checkpoint has none."""
        from transformers import AutoTokenizer, GenerationConfig
        from transformers.models.auto.configuration_auto import AutoConfig

        super().__init__()
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(hugging_face, local_files_only=True)
            if (hugging_face / "generation_config.json").is_file():
                generation = GenerationConfig.from_pretrained(hugging_face, local_files_only=True)
            else:
                config = AutoConfig.from_pretrained(hugging_face, local_files_only=True)
                generation = GenerationConfig.from_model_config(config)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{hugging_face} must hold a config and a tokenizer ({str(error).splitlines()[0]}); "
                "convert the model again with its tokenizer"
            ) from None
        if self.tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"the tokenizer in {hugging_face} names no eos_token, must name one; add it"
            )
        ends = generation.eos_token_id
        self.end_ids = set(ends if isinstance(ends, list) else [ends]) - {None}
        self.max_length = arch.max_position_embeddings
        self.max_gen_toks = 256
        self.batch_size = batch_size
        self._model = model.eval()
        self._vocab_size = arch.vocab_size
        self._device = device

    @property
    def eot_token_id(self) -> int:
        """Id of the end of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids with the special tokens that the tokenizer adds of its own accord, unless they are written out."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **flags))

    def logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits `[B, S, V]` of rows of ids, the shorter ones padded behind, where causal attention does not look."""
        longest = max(map(len, rows))
        tokens_BS = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._device)
        with torch.no_grad():
            return self._model(tokens_BS)[:, :, : self._vocab_size]  # type: ignore[no-any-return]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether it is the greedy one) of each request."""
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        rows = []
        for _, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length or not context:
                raise ConfigError(
                    f"a continuation of {len(continuation)} tokens after {len(context)} cannot be scored, must be of "
                    f"1 to {self.max_length} after at least 1; change the task"
                )
            rows.append((context + continuation)[-(self.max_length + 1) :])
        for numbers in self._batches([len(row) for row in rows], "loglikelihood", disable_tqdm):
            logits_BSV = self.logits([rows[number][:-1] for number in numbers])
            for number, logits_SV in zip(numbers, logits_BSV, strict=True):
                end, count = len(rows[number]) - 1, len(requests[number][2])
                answers[number] = _score(logits_SV[end - count : end], rows[number][-count:])
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], answers[number])
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows as long as the model allows."""
        windows: list[Request] = []
        counts = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            found = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            pieces = [make_disjoint_window(pair) for pair in found]
            windows += [(None, *piece) for piece in pieces]
            counts.append(len(pieces))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to a stop string, an end token or the limit; every token costs a whole forward
        pass."""
        started = [self._begin(*request.args) for request in requests]
        lengths = [len(generation.ids) for generation in started]
        for numbers in self._batches(lengths, "generate_until", disable_tqdm):
            while going := [started[number] for number in numbers if not started[number].done]:
                logits_BSV = self.logits([generation.ids for generation in going])
                for generation, logits_SV in zip(going, logits_BSV, strict=True):
                    generation.push(int(logits_SV[len(generation.ids) - 1].argmax()))
        return [generation.text for generation in started]

    def _begin(self, context: str, gen_kwargs: dict[str, Any]) -> Generation:
        """The context, cut from the left so that all new tokens find room."""
        until, max_new_tokens = request_of(
            gen_kwargs, self.tokenizer.decode(self.eot_token_id), self.max_gen_toks
        )
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"the task generates up to {max_new_tokens} tokens, must be fewer than the model's {self.max_length} "
                "positions; set max_gen_toks in its generation_kwargs"
            )
        bos = self.tokenizer.bos_token
        flags = {"add_special_tokens": False} if bos and context.startswith(bos) else {}
        ids = list(self.tokenizer(context, **flags)["input_ids"])[-room:] or [self.prefix_token_id]
        return Generation(self.tokenizer, ids, until, self.end_ids, max_new_tokens)

    def _batches(self, lengths: Sequence[int], what: str, disable_tqdm: bool) -> Iterator[list[int]]:
        """Numbers of requests, longest first, as many at a time as go into a forward pass."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        with tqdm(total=len(order), desc=what, disable=disable_tqdm) as progress:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                yield batch
                progress.update(len(batch))


def _score(logits_CV: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Sum of log-probabilities, and whether each token is the likeliest."""
    targets_C = torch.tensor(continuation, device=logits_CV.device)
    log_probabilities_CV = logits_CV.float().log_softmax(-1)
    found_C = log_probabilities_CV.gather(1, targets_C[:, None])
    return float(found_C.sum()), bool((log_probabilities_CV.argmax(-1) == targets_C).all())
