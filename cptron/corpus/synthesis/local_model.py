"""A Hugging Face causal language model on this machine.

Place in the flow: a `Model`, behind the cache. Invariant: the answers of a group depend on the group, the model and the
parameters alone: sampling draws from a seed made of them. On other hardware, or with another number of threads, the
last bits of a float may differ, and with them a word.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cptron.corpus.synthesis.answer import Answer, End, Request
from cptron.corpus.synthesis.settings import LocalSettings
from cptron.errors import DataError
from cptron.tokens.manifest import hash_file

PACKAGES = ("torch", "transformers", "tokenizers")
_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model")


def model_files(folder: Path) -> list[Path]:
    """All that decides what the model says. Raises DataError where there is no model."""
    files = sorted(path for pattern in _PATTERNS for path in folder.glob(pattern))
    if not (folder / "config.json").is_file() or not any(path.suffix == ".safetensors" for path in files):
        raise DataError(
            f"{folder} has no config.json with *.safetensors, must be a model's folder; correct it"
        )
    return files


class LocalModel:
    """Answers by generating. Raises DataError where the model cannot be loaded or its device is not there."""

    concurrency = 1

    def __init__(
        self,
        settings: LocalSettings,
        temperature: float,
        top_p: float,
        answer_tokens: int,
        seed: int,
        *,
        asks: bool = True,
    ) -> None:
        folder = Path(settings.folder)
        self._settings = settings
        self._answer_tokens = answer_tokens
        self.group_size = settings.batch_size
        self.identity: Mapping[str, Any] = {
            "folder": folder.resolve().name,
            "sha256": _content_hash(tuple(model_files(folder))),
        }
        parameters: dict[str, Any] = {"dtype": settings.dtype, "answer_tokens": answer_tokens}
        if temperature > 0:
            parameters |= {"temperature": temperature, "top_p": top_p, "seed": seed}
        self.parameters: Mapping[str, Any] = parameters
        if asks:
            self._load(folder)

    def _load(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # the curation has its own
        settings = self._settings
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise DataError("device cuda is not there, must be for the local model; set local.device to cpu")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, settings.dtype), local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise DataError(
                f"{folder} cannot be loaded as a causal language model ({error}); use another one"
            ) from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._tokenizer.pad_token is None:
            raise DataError(f"the tokenizer of {folder} has no end token, must have one; use another model")
        self._tokenizer.padding_side = "left"
        self._model: Any = model.eval().to(settings.device)
        self._most_tokens: int = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        if self._most_tokens <= self._answer_tokens:
            raise DataError(
                f"answer_tokens {self._answer_tokens} must be below the context of {folder} of {self._most_tokens}; "
                "lower it"
            )

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """See `Model`. What does not fit into the model's context is refused."""
        ids = [self._prompt_ids(request) for request in requests]
        most = self._most_tokens - self._answer_tokens
        fitting = [one for one in ids if len(one) <= most]
        made = iter(self._generated(fitting, requests)) if fitting else iter(())
        return [
            self._answer(next(made), len(one), request) if len(one) <= most else _too_long(len(one), most)
            for one, request in zip(ids, requests, strict=True)
        ]

    def stop(self) -> None:
        """See `Model`: there are no other threads."""

    def _prompt_ids(self, request: Request) -> list[int]:
        """By the chat template where there is one, else the text that the model is to go on with."""
        if self._tokenizer.chat_template:
            return list(self._tokenizer(self._chat(request), add_special_tokens=False)["input_ids"])
        ids = list(self._tokenizer(request.completion or _as_one(request) + "\n")["input_ids"])
        return ids[:-1] if ids[-1:] == [self._tokenizer.eos_token_id] else ids  # some end every text

    def _chat(self, request: Request) -> str:
        from jinja2 import TemplateError

        user = {"role": "user", "content": request.user}
        chats: list[list[dict[str, str]]] = [[user]]
        if request.system:  # some templates have no such role
            chats = [
                [{"role": "system", "content": request.system}, user],
                [{**user, "content": _as_one(request)}],
            ]
        for messages in chats:
            try:
                return str(
                    self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                )
            except TemplateError as error:
                why = error
        raise DataError(
            f"the chat template of {self._settings.folder} takes no question of a user ({why}); correct it, or use "
            "another model"
        )

    def _generated(self, prompts: list[list[int]], requests: Sequence[Request]) -> list[list[int]]:
        import torch

        batch = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self._settings.device)
        sampled = "temperature" in self.parameters
        names = ("temperature", "top_p")
        sampling: dict[str, Any] = {name: self.parameters[name] if sampled else None for name in names}
        ends = {request.stop for request in requests if request.stop and not self._tokenizer.chat_template}
        if ends:
            sampling |= {"stop_strings": sorted(ends), "tokenizer": self._tokenizer}
        devices = [torch.cuda.current_device()] if self._settings.device == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(self._seed(requests))
            output = self._model.generate(
                **batch, max_new_tokens=self._answer_tokens, do_sample=sampled, num_beams=1,
                top_k=0 if sampled else None,
                pad_token_id=self._tokenizer.pad_token_id, **sampling,
            )  # fmt: skip
        return [row[batch["input_ids"].shape[1] :].tolist() for row in output]

    def _answer(self, ids: list[int], tokens_in: int, request: Request) -> Answer:
        ends = self._model.generation_config.eos_token_id
        known = set(ends if isinstance(ends, list) else [ends]) | {self._tokenizer.eos_token_id}
        stop = next((place for place, token in enumerate(ids) if token in known), len(ids))
        end: End = "stop" if stop < len(ids) else "length"
        text = self._tokenizer.decode(ids[:stop], skip_special_tokens=True)
        if request.completion and not self._tokenizer.chat_template:
            text, stopped = request.completed(text)
            end = "stop" if stopped else end
        return Answer(text.encode("utf-8", "replace").decode().replace("\0", ""), end, tokens_in, stop)

    def _seed(self, requests: Sequence[Request]) -> int:
        asked = json.dumps([self.parameters.get("seed", 0), [asdict(request) for request in requests]])
        return int.from_bytes(hashlib.sha256(asked.encode()).digest()[:7], "little")


def _as_one(request: Request) -> str:
    return "\n\n".join(part for part in (request.system, request.user) if part)


def _too_long(num_tokens: int, most: int) -> Answer:
    return Answer(f"the prompt has {num_tokens} tokens, {most} fit", "refused", 0, 0)


@functools.cache
def _content_hash(files: tuple[Path, ...]) -> str:
    hashes = [(path.name, hash_file(path).sha256) for path in files]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
