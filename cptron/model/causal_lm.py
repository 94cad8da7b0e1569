"""megatron-core's GPTModel with this project's attention inputs and loss.

Place in the flow: made by `model.build`, called by the pipeline schedule. Invariant: computes what `transformers`
computes for the same architecture, weights and documents; padding of the vocabulary never enters the softmax.

Shapes: B rows, S tokens of a row on this rank, W tokens of the whole row, H hidden, V vocabulary on this rank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import cptron.runtime.megatron_ready  # noqa: F401

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from cptron.model.architecture import Architecture
from cptron.model.attention import AttentionInputs
from cptron.model.options import ModelOptions
from cptron.model.rotary import RotaryTable
from cptron.model.segments import (
    Int32Array,
    document_lengths,
    document_positions,
    local_tokens,
    segments_of,
)
from cptron.model.top_targets import TopTargets, top_tokens
from cptron.model.vocab_loss import TokenLosses, Vocabulary, losses_and_divergence


class CausalLM(GPTModel):  # type: ignore[misc]
    """One chunk of the model."""

    def __init__(self, arch: Architecture, options: ModelOptions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arch = arch
        self.options = options
        if self.post_process:
            self.output_layer.__class__ = (
                OutputLayer  # GPTModel makes this layer itself, of a class it does not ask for
            )
        self._rotary = RotaryTable(arch, self.config.params_dtype)
        self._local_rotary = RotaryTable(arch, self.config.params_dtype, local=True)
        tp = self.config.tensor_model_parallel_size
        rows = self.vocab_size // tp
        first_row = parallel_state.get_tensor_model_parallel_rank() * rows
        group = parallel_state.get_tensor_model_parallel_group() if tp > 1 else None
        self.top_k = 0
        """A teacher's: the last stage answers with so many most likely tokens and their probabilities, `[B, S, K]`."""
        self._teacher: TopTargets | None = None
        self.vocabulary = Vocabulary(first_row, min(max(arch.vocab_size - first_row, 0), rows), group)

    def forward(
        self,
        tokens_BS: torch.Tensor,
        documents_BW: Int32Array | None = None,
        labels_BS: torch.Tensor | None = None,
        loss_weights_BS: torch.Tensor | None = None,
        teacher: TopTargets | None = None,
    ) -> Any:
        """Hidden states for the next stage; on the last one `TokenLosses`, or logits `[B, S, V]` without labels.

        `documents_BW` numbers the documents of the whole rows (None: each row is one document); tokens, labels,
        weights and what `teacher` says of them (`[B, S]`, `[B, S, K]`) are this context rank's part. Other stages than
        the first use only the shape of `tokens_BS`.
        """
        self._teacher = teacher
        rows, seq_length = tokens_BS.shape
        if documents_BW is None:
            documents_BW = np.zeros((rows, seq_length * self.config.context_parallel_size), np.int32)
        inputs = self._attention_inputs(documents_BW, tokens_BS.device)
        extra = {"labels": labels_BS, "loss_mask": loss_weights_BS, "packed_seq_params": inputs}
        return super().forward(tokens_BS, None, None, **extra)

    def _attention_inputs(self, documents_BW: Int32Array, device: torch.device) -> AttentionInputs:
        attention = self.options.attention
        cp = self.config.context_parallel_size
        cp_rank = parallel_state.get_context_parallel_rank()
        seq_length = documents_BW.shape[1]
        here_S = local_tokens(seq_length, cp, cp_rank)
        positions_BS = here_S[None]
        if attention.reset_positions:
            positions_BS = document_positions(documents_BW)[:, here_S]
        seen_BW = documents_BW if attention.document_mask else np.zeros_like(documents_BW)
        segments = segments_of(seen_BW, cp, cp_rank)
        places = (_on(positions_BS, device), seq_length, device)
        cos, sin = self._rotary.at(*places, self._counted_far(documents_BW, here_S, device))
        local_cos, local_sin = None, None
        if self.arch.rope_local_theta is not None:
            local_cos, local_sin = self._local_rotary.at(*places)
        return AttentionInputs(
            cos=cos,
            sin=sin,
            local_cos=local_cos,
            local_sin=local_sin,
            segments=segments,
            query_starts=_on(segments.query_starts, device),
            key_starts=_on(segments.key_starts, device),
        )

    def _counted_far(
        self, documents_BW: Int32Array, here_S: np.ndarray, device: torch.device
    ) -> torch.Tensor | None:
        """Which positions are counted over more tokens, of their row or document, than LongRope's original context;
        None where the model has no such rule."""
        context = self._rotary.original_context
        if context is None:
            return None
        if self.options.attention.reset_positions:
            return _on(document_lengths(documents_BW)[:, here_S] > context, device)
        return torch.full((1, len(here_S)), documents_BW.shape[1] > context, device=device)

    def _preprocess(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._preprocess(*args, **kwargs)
        hidden = prepared[0]
        if self.arch.embedding_scale is not None and self.pre_process:
            # rounded as transformers rounds it
            scale = torch.tensor(self.arch.embedding_scale, dtype=hidden.dtype, device="cpu")
            hidden = hidden * float(scale)
            prepared = (hidden, *prepared[1:])
        passed_on = (
            self.config.recompute_granularity is not None or self.config.pipeline_model_parallel_size > 1
        )
        if passed_on and torch.is_grad_enabled() and hidden is not None and not hidden.requires_grad:
            # frozen embeddings: recomputation, and a stage that is frozen as a whole, need an input with a gradient
            hidden.requires_grad_()
        return prepared

    def _postprocess(
        self,
        hidden_states: torch.Tensor,
        input_ids: Any,
        position_ids: Any,
        labels: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not self.post_process or labels is None:
            return super()._postprocess(hidden_states, input_ids, position_ids, labels, *args, **kwargs)
        return self._losses(hidden_states, labels, kwargs["loss_mask"])

    def _losses(
        self, hidden_SBH: torch.Tensor, labels_BS: torch.Tensor, weights_BS: torch.Tensor | None
    ) -> TokenLosses | tuple[torch.Tensor, ...]:
        if self.config.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, tensor_parallel_output_grad=True)
        else:
            hidden_SBH = copy_to_tensor_model_parallel_region(hidden_SBH)
        weights_BS = torch.ones_like(labels_BS, dtype=torch.float32) if weights_BS is None else weights_BS
        tied = self.share_embeddings_and_output_weights
        teacher = self._teacher and TopTargets(
            *(tensor.transpose(0, 1).flatten(0, 1) for tensor in self._teacher)
        )
        found = self.output_layer(
            hidden_SBH.flatten(0, 1),
            weight=self.shared_embedding_or_output_weight() if tied else None,
            targets=(labels_BS.t().flatten(), weights_BS.t().flatten()),
            vocabulary=self.vocabulary,
            chunk_tokens=self.options.memory.logits_chunk_tokens,
            teacher=teacher,
            top_k=self.top_k,
        )
        shape = labels_BS.t().shape
        if self.top_k:
            return tuple(top_TK.view(*shape, -1).transpose(0, 1) for top_TK in found)
        total, *by_token = (
            part if part is None or not part.dim() else part.view(shape).t() for part in found
        )
        return TokenLosses(total, *by_token)


class OutputLayer(ColumnParallelLinear):  # type: ignore[misc]
    """megatron-core's output layer, which also knows its loss.

    The loss is asked of the module, not computed beside it from its weight: what gathers parameters while the
    forward pass goes on waits for a module's weights when the module is called.
    """

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        targets: tuple[torch.Tensor, torch.Tensor] | None = None,
        vocabulary: Vocabulary | None = None,
        chunk_tokens: int = 0,
        teacher: TopTargets | None = None,
        top_k: int = 0,
    ) -> tuple[torch.Tensor | None, ...]:
        """Logits as megatron-core's; or with `targets` (labels and weights `[T]`) what `losses_and_divergence` returns,
        and with `top_k` what `top_tokens` does."""
        if targets is None:
            return super().forward(input_, weight, runtime_gather_output)  # type: ignore[no-any-return]
        assert vocabulary is not None
        weight_VH = self.weight if weight is None else weight
        if top_k:
            return top_tokens(input_, weight_VH, vocabulary, top_k, chunk_tokens)
        return losses_and_divergence(input_, weight_VH, *targets, vocabulary, chunk_tokens, teacher)


def _on(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on the device, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
