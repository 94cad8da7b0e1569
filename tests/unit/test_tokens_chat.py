"""Chats have the ids transformers gives them, and a mask that covers what the assistant says, no more, no less."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.errors import DataError
from cptron.tokens.chat import ChatEncoder, EncodedChat
from cptron.tokens.chat_formats import SHAREGPT_ROLES, ChatError, LossMask, Message, read_chat
from cptron.tokens.chat_template import ChatTemplate
from cptron.tokens.encode_chat import ChatBlocks
from cptron.tokens.records import Parsed
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "user asks: what is it?\n\n",
    "assistant says naïve café, 1234 of them.",
    "system text; the end\n",
] * 3
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>"]

CHATML = """\
{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|header|>' + message['role'] + '<|/header|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header|>assistant<|/header|>\n\n' }}
{%- endif %}"""
ALWAYS_OPEN = LLAMA.replace("{%- if add_generation_prompt %}", "{%- if true %}")
INST = """\
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- bos_token + '[INST] ' + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content + eos_token }}
    {%- else %}
        {{- raise_exception('only user and assistant') }}
    {%- endif %}
{%- endfor %}"""
# Qwen3's habit: the last answer is given empty thoughts, earlier ones are not.
THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last and loop.index0 > ns.last %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
GENERATION = """\
{%- macro turn(role, text) %}{{ '<|im_start|>' + role + '\n' + text + '<|im_end|>\n' }}{% endmacro %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}{{ message.content }}<|im_end|>{% endgeneration %}
        {{- '\n' }}
    {%- elif message.role != 'tool' %}{{ turn(message.role, message.content) }}
    {%- else %}{% continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TOJSON = """\
{%- for message in messages %}{{ message | tojson }}{{ message.content | tojson(indent=2) }}{{ dict(a=1).a }}
{%- if message.reasoning_content is defined %}{{ message.reasoning_content }}{% endif %}{{ tools }}
{%- endfor %}"""
# A turn of the assistant ends with two tokens, of which the second ends other turns too.
TWO_ENDS = CHATML.replace(
    "+ '<|im_end|>\n' }}\n{%- endfor",
    "+ ('<|eot|>' if message['role'] == 'assistant' else '') + '<|im_end|>\n' }}\n{%- endfor",
)
MASKABLE = {
    "two ends": TWO_ENDS,
    "chatml": CHATML,
    "llama": LLAMA,
    "open": ALWAYS_OPEN,
    "inst": INST,
    "thinking": THINKING,
    "generation": GENERATION,
}
END = {"inst": "</s>", "llama": "<|eot|>", "open": "<|eot|>", "two ends": "<|eot|><|im_end|>"}
TEMPLATES = {**MASKABLE, "tojson": TOJSON}

CHAT: list[Message] = [
    {"role": "user", "content": "What is it? <b>\n"},
    {"role": "assistant", "content": "A naïve café 👩\u200d💻."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "1234"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer as transformers saves one, without a template."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    # Cuts white space off the offsets it reports, as Llama 3's and Qwen's do.
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:]
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    """It, as cptron loads it."""
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    """It, as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def save(directory: Path, tmp_path: Path, template: Any, **changes: Any) -> Path:
    """A copy of the tokenizer's configuration with `template` in it, for what needs no tokenizer.json."""
    config = json.loads((directory / "tokenizer_config.json").read_text()) | changes
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return tmp_path


@pytest.fixture(scope="module")
def templates(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTemplate]:
    """All of `TEMPLATES`."""
    return {
        name: ChatTemplate.load(save(directory, tmp_path_factory.mktemp(name), source))
        for name, source in TEMPLATES.items()
    }


def learned(tokenizer: Tokenizer, chat: EncodedChat) -> list[str]:
    """Texts of the runs of learned tokens."""
    assert chat.mask is not None and chat.mask.shape == chat.ids.shape
    edges = np.flatnonzero(np.diff(chat.mask.astype(np.int8), prepend=0, append=0))
    return [tokenizer.decode(chat.ids[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


TEXT = (
    st.lists(
        st.sampled_from(
            ["\n", " ", "user", "<think>", "</think>", "é", "👩\u200d💻", "&", "'", "{{ 1 }}", "\u2028"]
        )
        | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8),
        max_size=5,
    )
    .map("".join)
    .filter(lambda text: not any(token in text for token in SPECIAL))
)


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    """User and assistant in turn, the first of them a user; any number."""
    texts = draw(st.lists(TEXT, min_size=1, max_size=6))
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60)
@given(chat=chats())
def test_text_and_ids_are_those_of_transformers(
    name: str, chat: list[Message], tokenizer: Tokenizer, reference: Any, templates: dict[str, ChatTemplate]
) -> None:
    """For every template and text."""
    encoder = ChatEncoder(tokenizer, templates[name], loss_mask="none")
    text = reference.apply_chat_template(chat, chat_template=TEMPLATES[name], tokenize=False)
    assert encoder.render(chat).decode() == text
    ids = reference.apply_chat_template(chat, chat_template=TEMPLATES[name])["input_ids"]
    found = encoder.encode(chat)
    assert found.ids.tolist() == ids == tokenizer.encode(text)
    assert found.ids.dtype == np.uint32 and found.mask is None


@pytest.mark.parametrize("name", MASKABLE)
@settings(max_examples=60)
@given(chat=chats())
def test_mask_covers_the_assistant_exactly(
    name: str, chat: list[Message], tokenizer: Tokenizer, templates: dict[str, ChatTemplate]
) -> None:
    """Answers with their end, in order; an edge may take in white space before an answer where one token holds both,
    and the ids do not depend on the mask."""
    encoder = ChatEncoder(tokenizer, templates[name], loss_mask="assistant")
    found = encoder.encode(chat)
    assert (
        found.ids.tolist()
        == ChatEncoder(tokenizer, templates[name], loss_mask="none").encode(chat).ids.tolist()
    )
    answers = [message["content"] for message in chat if message["role"] == "assistant"]
    texts = learned(tokenizer, found)
    assert len(texts) == len(answers)
    end = END.get(name, "<|im_end|>")
    for text, answer in zip(texts, answers, strict=True):
        wanted = answer.strip() if name in ("llama", "open") else answer
        assert text.endswith(wanted + end)
        assert text.removesuffix(wanted + end).replace("<think>\n\n</think>", "").strip() == ""
    assert found.eod_mask == (chat[-1]["role"] == "assistant")


@pytest.mark.parametrize("name", MASKABLE)
def test_mask_token_by_token(name: str, tokenizer: Tokenizer, templates: dict[str, ChatTemplate]) -> None:
    """On a plain chat nothing but the answers, to the character."""
    found = ChatEncoder(tokenizer, templates[name], loss_mask="assistant").encode(CHAT)
    space, end = " " if name == "inst" else "", END.get(name, "<|im_end|>")
    thoughts = "<think>\n\n</think>\n\n" if name == "thinking" else ""
    assert learned(tokenizer, found) == [
        f"{space}{CHAT[1]['content']}{end}",
        f"{thoughts}{space}{CHAT[3]['content']}{end}",
    ]


@settings(max_examples=60)
@given(chat=chats())
def test_generation_blocks_give_the_mask_of_transformers(
    chat: list[Message], tokenizer: Tokenizer, reference: Any, templates: dict[str, ChatTemplate]
) -> None:
    """Where a template says itself what the assistant says. White space at the edges is left out: transformers looks
    for its token by offsets that do not cover it, and then masks too much or too little."""
    chat = [{**message, "content": message["content"].strip()} for message in chat]
    wanted = reference.apply_chat_template(
        chat, chat_template=GENERATION, return_assistant_tokens_mask=True, return_dict=True
    )
    found = ChatEncoder(tokenizer, templates["generation"], loss_mask="assistant").encode(chat)
    assert found.mask is not None
    assert found.mask.tolist() == wanted["assistant_masks"]


def test_blocks_and_turns_agree(directory: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The two ways to a mask give the same for one template with and without its blocks."""
    bare = GENERATION.replace("generation %}{{ message", "if true %}{{ message").replace(
        "endgeneration", "endif"
    )
    masks = []
    for name, source in (("blocks", GENERATION), ("turns", bare)):
        (tmp_path / name).mkdir()
        template = ChatTemplate.load(save(directory, tmp_path / name, source))
        assert template.has_generation == (name == "blocks")
        masks.append(ChatEncoder(tokenizer, template, loss_mask="assistant").encode(CHAT))
    assert masks[0].mask is not None and masks[1].mask is not None
    assert masks[0].ids.tolist() == masks[1].ids.tolist()
    assert masks[0].mask.tolist() == masks[1].mask.tolist()


SMOLLM2 = Path(__file__).parents[2] / ".cache/smollm2-135m"


@pytest.fixture(scope="module")
def smollm2() -> tuple[dict[LossMask, ChatEncoder], Any]:
    """The real one: encoders by mask, with its own template, and transformers' tokenizer."""
    from transformers import AutoTokenizer

    if not (SMOLLM2 / "tokenizer.json").is_file():
        pytest.skip("SmolLM2-135M-Instruct is not in .cache (make demo)")
    tokenizer, template = load_tokenizer(SMOLLM2), ChatTemplate.load(SMOLLM2)
    masks: tuple[LossMask, ...] = ("assistant", "no_system")
    encoders = {mask: ChatEncoder(tokenizer, template, loss_mask=mask) for mask in masks}
    return encoders, AutoTokenizer.from_pretrained(SMOLLM2)


@settings(max_examples=25)
@given(chat=chats(), system=st.none() | TEXT, place=st.integers(0, 3))
def test_smollm2_by_its_own_template(
    chat: list[Message], system: str | None, place: int, smollm2: tuple[dict[LossMask, ChatEncoder], Any]
) -> None:
    """Ids of transformers; masks, token by token, from the parts that ChatML is made of: with or without a system
    message, first or later."""
    encoders, reference = smollm2
    if system is not None:
        place = min(place, len(chat))
        chat = [*chat[:place], {"role": "system", "content": system}, *chat[place:]]
    parts = [] if chat[0]["role"] == "system" else [("system", "<|im_start|>system\n", SMOLLM2_DEFAULT)]
    parts += [(message["role"], f"<|im_start|>{message['role']}\n", message["content"]) for message in chat]
    text = "".join(f"{header}{content}<|im_end|>\n" for _, header, content in parts)
    assert reference.apply_chat_template(chat, tokenize=False) == text
    ids = reference.apply_chat_template(chat)["input_ids"]
    offsets = reference(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for loss_mask, encoder in encoders.items():
        learned_chars = []
        for role, header, content in parts:
            if loss_mask == "assistant":
                is_said = role == "assistant"
                learned_chars += [False] * len(header) + [is_said] * len(f"{content}<|im_end|>") + [False]
            else:
                learned_chars += [role != "system"] * len(f"{header}{content}<|im_end|>\n")
        found = encoder.encode(chat)
        assert found.mask is not None and found.ids.tolist() == ids
        assert found.mask.tolist() == [int(any(learned_chars[start:end])) for start, end in offsets]
    assert found.eod_mask == (chat[-1]["role"] != "system")


SMOLLM2_DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def kept(tokenizer: Tokenizer, template: ChatTemplate, chat: list[Message]) -> list[str]:
    """Runs of what is learned where the system's words are not."""
    return learned(tokenizer, ChatEncoder(tokenizer, template, loss_mask="no_system").encode(chat))


def test_all_but_the_system(tokenizer: Tokenizer, templates: dict[str, ChatTemplate]) -> None:
    """Its messages and the text that a template writes in their place are left out, to the character, and nothing
    else; what a template begins every chat with is left out too."""
    system: Message = {"role": "system", "content": "Mind the gap."}
    rest = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in CHAT)
    assert kept(tokenizer, templates["chatml"], CHAT) == [rest]
    assert kept(tokenizer, templates["chatml"], [system, *CHAT]) == [rest]
    cut = rest.find("<|im_start|>user\nHow many?")
    assert kept(tokenizer, templates["chatml"], [*CHAT[:2], system, *CHAT[2:]]) == [rest[:cut], rest[cut:]]
    assert kept(tokenizer, templates["chatml"], [{**system, "role": "developer"}, *CHAT]) == [rest]
    llama = "".join(f"<|header|>{m['role']}<|/header|>\n\n{m['content'].strip()}<|eot|>" for m in CHAT)
    for chat in (CHAT, [system, *CHAT]):
        assert kept(tokenizer, templates["llama"], chat) == [llama]
    assert kept(tokenizer, templates["chatml"], [system]) == []


MERGED = """\
{%- set words = messages[0].content if messages[0].role == 'system' else '' %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<s>[INST] ' + words + message.content + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}{{ message.content + '</s>' }}
    {%- endif %}
{%- endfor %}"""


@pytest.mark.parametrize("source", [INST, ALWAYS_OPEN, MERGED], ids=["none", "open", "merged"])
def test_a_system_that_is_not_apart_is_refused(
    source: str, directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Where the template refuses it, opens a turn after it, or puts it into the user's."""
    template = ChatTemplate.load(save(directory, tmp_path, source))
    with pytest.raises(DataError, match="no_system") as caught:
        ChatEncoder(tokenizer, template, loss_mask="no_system")
    assert "\n" not in str(caught.value)


def test_a_system_text_that_moves_rejects_the_chat(
    directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """A template that collects them at the beginning, and one that leaves a later one out."""
    hoist = (
        "{% for m in messages if m.role == 'system' %}{{ m.content }}<|eot|>{% endfor %}"
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role + ':' + m.content }}<|im_end|>{% endfor %}"
    )
    drop = hoist.replace(
        "for m in messages if m.role == 'system'", "for m in messages[:1] if m.role == 'system'"
    )
    late: list[Message] = [*CHAT[:2], {"role": "system", "content": "Mind the gap."}, *CHAT[2:]]
    for number, source in enumerate((hoist, drop)):
        (tmp_path / str(number)).mkdir()
        template = ChatTemplate.load(save(directory, tmp_path / str(number), source))
        assert kept(tokenizer, template, [late[2], *CHAT])
        with pytest.raises(ChatError, match=r"message 2 \(system\)|does not begin"):
            kept(tokenizer, template, late)


def test_threads_share_an_encoder(tokenizer: Tokenizer, templates: dict[str, ChatTemplate]) -> None:
    """Also with generation blocks, which transformers tracks in one place for all."""
    encoder = ChatEncoder(tokenizer, templates["generation"], loss_mask="assistant")
    many = [
        [*CHAT, {"role": "user", "content": str(i)}, {"role": "assistant", "content": "x" * i}]
        for i in range(60)
    ]
    alone = [learned(tokenizer, encoder.encode(chat)) for chat in many]
    with ThreadPoolExecutor(8) as pool:
        assert [learned(tokenizer, chat) for chat in pool.map(encoder.encode, many)] == alone


def test_a_note_tells_of_a_header_without_a_turn(
    tokenizer: Tokenizer, templates: dict[str, ChatTemplate]
) -> None:
    """Every chat would teach the model to open a turn and stop."""
    (note,) = ChatEncoder(tokenizer, templates["open"], loss_mask="assistant").notes
    assert "opens a turn" in note
    assert ChatEncoder(tokenizer, templates["llama"], loss_mask="assistant").notes == []


@pytest.mark.parametrize("loss_mask", ["none", "assistant", "no_system"])
@pytest.mark.parametrize("token", ["<|im_end|>", "<s>", "<|im_start|>"])
@pytest.mark.parametrize("place", ["user", "assistant", "nested", "key"])
def test_special_tokens_in_a_message_reject_it(
    place: str, token: str, loss_mask: LossMask, tokenizer: Tokenizer, templates: dict[str, ChatTemplate]
) -> None:
    """A user who writes `<|im_end|>` would end a turn; with transformers it does."""
    chat = [dict(message) for message in CHAT]
    if place in ("user", "assistant"):
        chat[place == "assistant"]["content"] += f"x{token}y"
    else:
        arguments = {token: "x"} if place == "key" else {"x": [f"y{token}"]}
        chat[1]["tool_calls"] = [{"function": {"name": "f", "arguments": arguments}}]
    encoder = ChatEncoder(tokenizer, templates["chatml"], loss_mask=loss_mask)
    for method in (encoder.render, encoder.encode):
        with pytest.raises(ChatError, match="special token") as caught:
            method(chat)
        assert token in str(caught.value)


OPENAI: list[Message] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]
SAME = {
    "openai": OPENAI,
    "openai in an object": {"messages": OPENAI, "id": 7},
    "openai, parts": [
        {**OPENAI[0], "content": [{"type": "text", "text": "Be kind."}]},
        OPENAI[1],
        OPENAI[2],
    ],
    "openai of a table": [{**message, "name": None, "tool_calls": None} for message in OPENAI],
    "sharegpt": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
    ],
    "sharegpt in an object": {
        "system": "Be kind.",
        "conversations": [
            {"from": "user", "value": "Hi"},
            {"from": "assistant", "value": "Hello", "weight": None},
        ],
    },
    "converse": {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"text": "Hi"}]},
            {"role": "assistant", "content": [{"text": "Hello"}]},
        ],
    },
    "converse of a table": {
        "system": [{"text": "Be kind.", "cachePoint": None}],
        "messages": [
            {"role": "user", "content": [{"text": "Hi", "image": None}]},
            {"role": "assistant", "content": [{"text": "Hello", "image": None}]},
        ],
    },
}


@pytest.mark.parametrize("name", SAME)
def test_formats_have_one_normal_form(name: str) -> None:
    """One chat, written in every way."""
    before = json.dumps(SAME[name])
    assert read_chat(SAME[name]) == OPENAI
    assert json.dumps(SAME[name]) == before


def test_blocks_are_lines() -> None:
    """Words of two blocks do not run into one."""
    chat = {
        "system": [{"text": "a"}, {"text": "b"}],
        "messages": [{"role": "user", "content": [{"text": "c"}]}],
    }
    assert [message["content"] for message in read_chat(chat)] == ["a\nb", "c"]


def test_roles_need_not_alternate_and_extras_stay() -> None:
    """What an OpenAI message holds besides is the template's."""
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
    }
    tool = {"role": "tool", "content": "3", "tool_call_id": "1"}
    chat = [OPENAI[2], OPENAI[2], call, tool, tool]
    del call["content"]
    assert read_chat(chat) == [OPENAI[2], OPENAI[2], call, tool, tool]
    assert {read_chat([{"from": role, "value": ""}])[0]["role"] for role in SHAREGPT_ROLES} == {
        "system", "user", "assistant", "tool"
    }  # fmt: skip


BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "0 messages"),
    "text": ("hello", "a str"),
    "not a message": (["hello"], "message 0 is a str"),
    "no list": ({"id": 1}, "neither"),
    "two lists": ({"messages": OPENAI, "conversations": OPENAI}, "exactly one"),
    "list is text": ({"messages": "hello"}, "a str"),
    "unknown role": ([{"role": "robot", "content": "x"}], "'robot'"),
    "no role": ([{"content": "x"}], "None"),
    "role is a list": ([{"role": ["user"], "content": "x"}], "role"),
    "unknown sender": ([{"from": "robot", "value": "x"}], "'robot'"),
    "sender is a list": ([{"from": [], "value": "x"}], "from"),
    "no value": ([{"from": "gpt"}], "nothing"),
    "mixed": ([{"from": "gpt", "value": "x"}, {"role": "user", "content": "x"}], "role None"),
    "no content": ([{"role": "user"}], "no content"),
    "content is null": ([{"role": "user", "content": None}], "no content"),
    "assistant says nothing": ([{"role": "assistant", "content": None, "tool_calls": []}], "no content"),
    "content is a number": ([{"role": "user", "content": 3}], "a int"),
    "no blocks": ([{"role": "user", "content": []}], "an empty list"),
    "block is text": ([{"role": "user", "content": ["x"]}], "a str"),
    "image": ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "image_url"),
    "image in converse": ([{"role": "user", "content": [{"text": "x"}, {"image": {}}]}], "image"),
    "text and more": ([{"role": "user", "content": [{"text": "x", "toolUse": {}}]}], "toolUse"),
    "system role in converse": ([{"role": "system", "content": [{"text": "x"}]}], "'system'"),
    "two systems": ({"system": "x", "messages": OPENAI}, "twice"),
    "system and developer": (
        {"system": "x", "messages": [{"role": "developer", "content": "y"}, *OPENAI[1:]]},
        "twice",
    ),
    "system is a number": ({"system": 3, "messages": OPENAI[1:]}, "a int"),
    "tools": ({"messages": OPENAI, "tools": [{}]}, "'tools'"),
    "two lines": ([{"role": "a\nb", "content": "x"}], "role"),
}


@pytest.mark.parametrize("name", BAD)
def test_no_chat_is_rejected(name: str) -> None:
    """With one line that names what is wrong."""
    value, message = BAD[name]
    with pytest.raises(ChatError) as caught:
        read_chat(value)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_template_refuses_is_rejected(
    tokenizer: Tokenizer, templates: dict[str, ChatTemplate]
) -> None:
    """Its own exceptions, and expressions that fail on a message."""
    with pytest.raises(ChatError, match="only user and assistant"):
        ChatEncoder(tokenizer, templates["inst"], loss_mask="none").render(OPENAI)
    call = [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]
    with pytest.raises(ChatError, match="cannot render"):
        ChatEncoder(tokenizer, templates["chatml"], loss_mask="none").render(call)


def test_what_has_no_certain_mask_is_rejected(
    tokenizer: Tokenizer, templates: dict[str, ChatTemplate]
) -> None:
    """An answer that the next message changes, and a weight other than 1; without a mask both are good."""
    twice = [CHAT[0], CHAT[1], CHAT[3]]
    weighted = [CHAT[0], {**CHAT[1], "weight": 0}]
    masked = ChatEncoder(tokenizer, templates["thinking"], loss_mask="assistant")
    unmasked = ChatEncoder(tokenizer, templates["thinking"], loss_mask="none")
    for chat, message in ((twice, "changes with what follows"), (weighted, "weight 0")):
        assert unmasked.render(chat)
        with pytest.raises(ChatError, match=message):
            masked.encode(chat)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ("m.content + ('</s>' if m.name else '<|im_end|>')", "does not end"),
        ("(m.name ~ '<|im_end|>' if m.name else '') + m.content + '<|im_end|>'", "too early"),
    ],
    ids=["another end", "an end inside"],
)
def test_a_turn_of_another_shape_is_rejected(
    turn: str, message: str, directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Where some messages end otherwise than the probe did, the mask would run into the next turn or stop short."""
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + TURN + '\n' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    template = ChatTemplate.load(save(directory, tmp_path, source.replace("TURN", turn)))
    encoder = ChatEncoder(tokenizer, template, loss_mask="assistant")
    assert learned(tokenizer, encoder.encode(CHAT)) == [f"{CHAT[i]['content']}<|im_end|>" for i in (1, 3)]
    chat = [*CHAT[:3], {**CHAT[3], "name": "x"}]
    if message == "does not end":
        chat = [CHAT[0], {**CHAT[1], "name": "x"}, *CHAT[2:]]
    with pytest.raises(ChatError, match=message):
        encoder.encode(chat)


def test_white_space_at_an_edge_of_a_block_is_learned(
    directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Though the tokenizer's own offsets leave white space out."""
    source = GENERATION.replace("{% endgeneration %}\n        {{- '\n' }}", "{{ ' ' }}{% endgeneration %}")
    assert source != GENERATION
    template = ChatTemplate.load(save(directory, tmp_path, source))
    found = ChatEncoder(tokenizer, template, loss_mask="assistant").encode(CHAT)
    assert learned(tokenizer, found) == [f"{CHAT[i]['content']}<|im_end|> " for i in (1, 3)]


UNMASKABLE = {
    "no special end": (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
        "special token",
    ),
    "two ends": (
        "{% for m in messages %}{{ '<|im_start|>' + m.content + ('</s>' if loop.last else '<|im_end|>') }}{% endfor %}",
        "special token",
    ),
    "thoughts in the prompt": (
        CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>' }}"),
        "changes with what follows",
    ),
    "unable": ("{{ raise_exception('never') }}", "never"),
}


@pytest.mark.parametrize("name", UNMASKABLE)
def test_a_template_without_certain_turns_gives_no_mask(
    name: str, directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """It is refused at once, with the way out; its text is as good as any."""
    source, message = UNMASKABLE[name]
    template = ChatTemplate.load(save(directory, tmp_path, source))
    ChatEncoder(tokenizer, template, loss_mask="none")
    with pytest.raises(DataError, match="generation") as caught:
        ChatEncoder(tokenizer, template, loss_mask="assistant")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_that_leaves_text_out_is_refused(
    directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """One for images looks for blocks in a content, and finds none in a text."""
    source = (
        "{% for m in messages %}{% for b in m.content %}{{ b.text }}{% endfor %}{{ eos_token }}{% endfor %}"
    )
    template = ChatTemplate.load(save(directory, tmp_path, source))
    with pytest.raises(DataError, match="leaves out"):
        ChatEncoder(tokenizer, template, loss_mask="none")


def test_the_day_is_given_or_the_template_refused(directory: Path, tmp_path: Path) -> None:
    """Two runs on two days give equal files."""
    source = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    path = save(directory, tmp_path, source)
    with pytest.raises(DataError, match="--chat-date"):
        ChatTemplate.load(path)
    given_day = ChatTemplate.load(path, date(2024, 7, 26))
    assert given_day.render(CHAT) == "26 Jul 2024"
    assert given_day.sha256 != ChatTemplate.load(path, date(2024, 7, 27)).sha256
    hidden = "{% macro f() %}{{ strftime_now('%Y') }}{% endmacro %}{{ f() }}"
    with pytest.raises(DataError, match="--chat-date"):
        ChatTemplate.load(save(directory, tmp_path, hidden))


@pytest.mark.parametrize(
    "source", ["{{ [1, 2] | random }}", "{% macro f() %}{{ lipsum() }}{% endmacro %}{{ f() }}"]
)
def test_a_template_that_rolls_dice_is_refused(source: str, directory: Path, tmp_path: Path) -> None:
    """As above."""
    with pytest.raises(DataError, match="random"):
        ChatTemplate.load(save(directory, tmp_path, source))


def test_where_templates_are_found(directory: Path, tmp_path: Path) -> None:
    """A file of its own, before a named list, before a string; `default` of a list."""
    with pytest.raises(DataError, match="no chat template"):
        ChatTemplate.load(save(directory, tmp_path, None))
    assert ChatTemplate.load(save(directory, tmp_path, "one")).render(CHAT) == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    assert ChatTemplate.load(save(directory, tmp_path, named)).render(CHAT) == "three"
    with pytest.raises(DataError, match="tool_use"):
        ChatTemplate.load(save(directory, tmp_path, named[:1]))
    (tmp_path / "chat_template.jinja").write_bytes(b"fo\r\nur")
    found = ChatTemplate.load(tmp_path / "tokenizer.json")
    assert (found.render(CHAT), found.path.name) == ("fo\nur", "chat_template.jinja")


def test_a_damaged_template_names_its_line(directory: Path, tmp_path: Path) -> None:
    """And is no traceback."""
    with pytest.raises(DataError, match="line 2"):
        ChatTemplate.load(save(directory, tmp_path, "{{ 1 }}\n{% for %}"))


def test_a_special_token_that_is_not_settled_is_refused(directory: Path, tmp_path: Path) -> None:
    """Transformers may have a default for it, so leaving it out would not be the same; null is clear."""
    config = json.loads((directory / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": "{{ bos_token }}x"})
    )
    with pytest.raises(DataError, match="bos_token"):
        ChatTemplate.load(tmp_path)
    assert (
        ChatTemplate.load(save(directory, tmp_path, "{{ bos_token }}x", bos_token=None)).render(CHAT) == "x"
    )
    whole = {"content": "<s>", "lstrip": False}
    assert (
        ChatTemplate.load(save(directory, tmp_path, "{{ bos_token }}x", bos_token=whole)).render(CHAT)
        == "<s>x"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__init__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ ''.__class__ }}{{ cycler.__init__.__globals__.os.getcwd() }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str, directory: Path, tmp_path: Path) -> None:
    """It comes with a model from outside."""
    template = ChatTemplate.load(save(directory, tmp_path, source))
    try:
        text = template.render(CHAT)
    except ChatError:
        return
    assert text == ""


def test_missing_jinja_is_named(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DataError, match=r"pip install 'cptron\[data\]'"):
        ChatTemplate.load(save(directory, tmp_path, CHATML))


def test_a_tokenizer_that_splits_special_tokens_is_refused(
    directory: Path, tmp_path: Path, templates: dict[str, ChatTemplate]
) -> None:
    """The template's tokens would become ordinary text."""
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    save(directory, tmp_path, None, split_special_tokens=True)
    with pytest.raises(DataError, match="split_special_tokens"):
        ChatEncoder(load_tokenizer(tmp_path), templates["chatml"], loss_mask="none")


def test_a_last_turn_without_its_end_is_rejected(
    directory: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Also where the text is as long as what was not found in it."""
    source = "{% for m in messages %}{{ m.content + ('' if m.name else '<|im_end|>') }}{% endfor %}"
    encoder = ChatEncoder(
        tokenizer, ChatTemplate.load(save(directory, tmp_path, source)), loss_mask="assistant"
    )
    assert encoder.encode([{"role": "assistant", "content": "a"}]).mask is not None
    for length in range(1, 14):
        with pytest.raises(ChatError, match=r"does not end with <\|im_end\|>"):
            encoder.encode([{"role": "assistant", "content": "a" * length, "name": "x"}])


def test_a_rejected_chat_is_shown_whatever_it_holds(
    tokenizer: Tokenizer, templates: dict[str, ChatTemplate]
) -> None:
    """Tables and JSON lines have values that JSON libraries refuse."""
    blocks = ChatBlocks(ChatEncoder(tokenizer, templates["chatml"], loss_mask="none"), False)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    values: list[Any] = [
        [{"n": 1 << 64, "é": b"\xff", "day": date(2024, 7, 26)}],
        b"text",
        ["\ud800"],
        deep,
    ]
    parsed = Parsed([(value,) for value in values], [1, 2, 3, 4], [], 4, 0)
    records, rejects = blocks.render("a.parquet", parsed)
    assert records == [] and [reject.record for reject in rejects] == [1, 2, 3, 4]
    assert json.loads(rejects[0].raw) == [
        [{"n": 1 << 64, "é": "b'\\xff'", "day": "datetime.date(2024, 7, 26)"}]
    ]
    assert [reject.raw for reject in rejects[1:3]] == [b'["text"]', b'[["\\ud800"]]']
    assert rejects[3].raw == b"nested too deeply to be shown"


def test_a_special_token_of_another_shape_is_refused(directory: Path, tmp_path: Path) -> None:
    """Not a traceback, and not an undefined variable."""
    path = save(directory, tmp_path, "{{ bos_token }}x", bos_token={"x": 1})
    with pytest.raises(DataError, match=r"bos_token \{'x': 1\}, must be a text"):
        ChatTemplate.load(path)
