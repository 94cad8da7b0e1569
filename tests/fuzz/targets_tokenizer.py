"""Targets: tokenizers and chat templates, with the files beside them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from fuzz_bytes import mutate_bytes
from fuzz_json import mutate_json
from fuzz_target import Seed, Target
from tokens_world import save_byte_tokenizer

from cptron.errors import DataError
from cptron.tokens.chat_formats import ChatError
from cptron.tokens.chat_template import ChatTemplate
from cptron.tokens.special_tokens import tokenizer_adds_bos
from cptron.tokens.tokenizer import load_tokenizer

SAMPLE = "Hello größer 123 <s>\n"
CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>"},
    "added_tokens_decoder": {},
    "add_bos_token": False,
    "model_max_length": 1e30,
}
TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[{{ message['content'] | trim }}]
{% else %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}>{% endif %}"""
MESSAGES = [{"role": "user", "content": "hi "}, {"role": "assistant", "content": "hello"}]


def make_hf(root: Path) -> Path:
    """A byte-level tokenizer with special tokens, a configuration and a template."""
    save_byte_tokenizer(root, ["<s>", "</s>"])
    (root / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": TEMPLATE}))
    (root / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "additional_special_tokens": ["<s>"]})
    )
    (root / "generation_config.json").write_text(json.dumps({"eos_token_id": [257], "bos_token_id": 256}))
    return root


def _seed(*files: str) -> Any:
    return lambda root: [Seed(make_hf(root), file) for file in files]


def read_tokenizer(directory: Path) -> Any:
    """Its facts, and what it makes of a text."""
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode(SAMPLE)
    facts = (
        tokenizer.vocab_size,
        tokenizer.eos_id,
        tokenizer.bos_id,
        tokenizer.fingerprint,
        tokenizer.added_tokens,
    )
    return facts, ids, tokenizer.decode(ids)


def read_specials(directory: Path) -> Any:
    """Whether it adds BOS by itself."""
    return tokenizer_adds_bos(str(directory), 256)


def check_ids(directory: Path, value: Any) -> str | None:
    """Ids as the tokenizers library gives them where no other file adds tokens; in any case within the vocabulary."""
    facts, ids, _ = value
    return None if all(0 <= number < facts[0] for number in ids) else f"ids outside of the vocabulary: {ids}"


def read_chat(directory: Path) -> Any:
    """A rendered chat, in all three ways."""
    template = ChatTemplate.load(directory)
    try:
        return (
            template.render(MESSAGES),
            template.render(MESSAGES, add_generation_prompt=True),
            template.render_marked(MESSAGES),
        )
    except ChatError as error:  # becomes a reject of the record
        raise DataError(str(error)) from error


def make_sentencepiece(root: Path) -> list[Seed]:
    """Unigram and BPE models by sentencepiece's trainer."""
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(f"the number {n} of many words, größer {n * 7}" for n in range(300)))
    seeds = []
    for kind in ("unigram", "bpe"):
        directory = root / kind
        directory.mkdir()
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(directory / "tokenizer"), vocab_size=60, model_type=kind, minloglevel=2,
            hard_vocab_limit=False, num_threads=1,
        )  # fmt: skip
        (directory / "tokenizer.vocab").unlink()
        seeds.append(Seed(directory, "tokenizer.model"))
    return seeds


def make_tiktoken(root: Path) -> Path:
    """Ranks of all bytes and some pairs."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell"]
    ranks = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (root / "t.tiktoken").write_text(ranks)
    config = {
        "pattern": "v2",
        "special_tokens": {"</s>": 300, "<s>": 301},
        "eos_token": "</s>",
        "bos_token": "<s>",
    }
    (root / "tiktoken_config.json").write_text(json.dumps(config))
    return root


def mutate_template(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Other expressions, statements and attributes, or bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(draw, content, others)
    text = content.decode()
    at = draw.randrange(len(text) + 1)
    new = draw.choice(
        (
            *(
                "{{",
                "}}",
                "{%",
                "%}",
                "{#",
                "{% if %}",
                "{% endfor %}",
                "{% raw %}",
                "{{ 1 / 0 }}",
                "{{ x.y.z }}",
                "{{ messages }}",
            ),
            *(
                "{{ messages.__class__ }}",
                "{{ ''.__class__.__mro__ }}",
                "{{ self }}",
                "{{ namespace(a=1).a }}",
                "{{ cycler }}",
            ),
            *(
                "{{ messages[99] }}",
                "{{ raise_exception('a\nb') }}",
                "{{ dict(a=1) | tojson }}",
                "{% set a = messages %}",
                "{{ caller() }}",
            ),
            *(
                "{% include 'x' %}",
                "{% extends 'x' %}",
                "{% import 'x' as y %}",
                "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            ),
            *(
                "{{ range(10 ** 9) }}",
                "{{ 'x' * 10 ** 10 }}",
                "{{ 9 ** 9 ** 9 }}",
                "{{ [0] * 10 ** 10 }}",
                "{{ '%1000000000d' % 1 }}",
                "{{ '%3d' % 1 }}",
            ),
            *(
                "{{ strftime_now('%Y') }}",
                "{{ lipsum() }}",
            ),
        )
    )
    return (text[:at] + new + text[at:]).encode()


def planted_templates(_: Path) -> Mapping[str, bytes]:
    """Ways out of the sandbox, and texts that grow."""
    templates = {
        "class": "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "globals": "{{ raise_exception.__globals__ }}",
        "format": "{{ '{0.__class__}'.format(messages) }}",
        "format_map": "{{ '{a.__init__.__globals__}'.format_map({'a': namespace()}) }}",
        "attr": "{{ messages | attr('__class__') }}",
        "namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "product of text": "{{ 'x' * 10 ** 10 }}",
        "product of list": "{{ ([0] * 10 ** 9) | length }}",
        "power": "{{ 9 ** 9 ** 9 }}",
        "width": "{{ '%10000000000d' % 1 }}",
        "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "deep blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    }
    return {name: text.encode() for name, text in templates.items()}


def make_template(root: Path) -> list[Seed]:
    """A template in a file of its own."""
    make_hf(root)
    (root / "chat_template.jinja").write_text(TEMPLATE)
    return [Seed(root, "chat_template.jinja")]


TARGETS = [
    Target(
        format="tokenizer.json",
        name="tokenizer",
        reader="cptron.tokens.hf_tokenizer, cptron.tokens.hf_serialised",
        make=_seed("tokenizer.json"),
        read=read_tokenizer,
        mutate=mutate_json,
        check=check_ids,
    ),
    Target(
        format="tokenizer.json",
        name="tokenizer-specials",
        reader="cptron.tokens.special_tokens",
        make=_seed("tokenizer.json", "tokenizer_config.json"),
        read=read_specials,
        mutate=mutate_json,
        budget=0.5,
    ),
    Target(
        format="tokenizer_config.json",
        name="tokenizer-config",
        reader="cptron.tokens.hf_tokenizer",
        make=_seed("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"),
        read=read_tokenizer,
        mutate=mutate_json,
        check=check_ids,
    ),
    Target(
        format="SentencePiece model",
        name="sentencepiece",
        reader="cptron.tokens.tokenizer.SentencePieceTokenizer",
        make=make_sentencepiece,
        read=read_tokenizer,
        mutate=mutate_bytes,
    ),
    Target(
        format="tiktoken ranks",
        name="tiktoken",
        reader="cptron.tokens.tiktoken_tokenizer",
        make=lambda root: [Seed(make_tiktoken(root), "t.tiktoken")],
        read=read_tokenizer,
        mutate=mutate_bytes,
        check=check_ids,
    ),
    Target(
        format="tiktoken ranks",
        name="tiktoken-config",
        reader="cptron.tokens.tiktoken_tokenizer.read_tiktoken_config",
        make=lambda root: [Seed(make_tiktoken(root), "tiktoken_config.json")],
        read=read_tokenizer,
        mutate=mutate_json,
        check=check_ids,
    ),
    Target(
        format="chat template",
        name="chat-template",
        reader="cptron.tokens.chat_template, cptron.tokens.chat_sandbox",
        make=make_template,
        read=read_chat,
        mutate=mutate_template,
        planted=planted_templates,
    ),
    Target(
        format="chat template",
        name="chat-config",
        reader="cptron.tokens.chat_template",
        make=_seed("tokenizer_config.json"),
        read=read_chat,
        mutate=mutate_json,
    ),
]
