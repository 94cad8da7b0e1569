"""What the tests of `cptron eval --harness` run on a warm rank: the engine and lm_eval's own model side by side."""

from __future__ import annotations

from typing import Any

Answers = dict[str, list[Any]]


def answers(
    checkpoint: str, exported: str, asked: dict[str, list[tuple[Any, ...]]]
) -> tuple[Answers, Answers]:
    """What the engine and lm_eval's `hf` answer to the same requests, by method."""
    from cptron.evaluate.harness_tasks import stay_offline

    stay_offline()
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cptron.checkpoint import layout
    from cptron.checkpoint.weights import open_model
    from cptron.evaluate.harness_engine import EngineLM
    from cptron.runtime.session import open_session

    def ask(model: Any) -> Answers:
        return {
            method: getattr(model, method)([Instance(method, {}, request, 0) for request in requests])
            for method, requests in asked.items()
        }

    directory = layout.resolve(checkpoint)
    arch = layout.read_manifest(directory).arch
    with open_session() as session:
        device = session.device.torch_device
        ours = ask(EngineLM(open_model(directory), arch, directory / layout.HUGGING_FACE, 3, device))
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    return ours, ask(HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(exported), batch_size=1))
