"""Small tokenizers of the kinds that can be extended, and text of a domain, for the tests of `cptron/tokenizer`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from cptron.tokenizer.texts import Text

ENGLISH = [
    "The tide rises twice a day because the Moon pulls on the oceans, and the Earth turns beneath the bulge.",
    "Sailors learned the hours of high water long before anybody could explain them; nobody's chart was right.",
    "In 1687 Newton gave the first account from gravity alone, and it's the account that stands today.",
] * 8
DOMAIN = [
    "Việc cài đặt tiếng Việt: bạn hãy chọn ngôn ngữ trong hộp thoại, rồi chọn tiếng Việt và nhấn nút đóng.",
    "हिन्दी में लिखने के लिए भाषा चुनें और फिर हिन्दी चुनें। यह भाषा संवाद में है।",
    "def height(hours, parts):\n    return sum(amplitude * cos(speed * hours) for amplitude, speed in parts)\n",
    "aaaa aaaaaaa abababab 🔎︎ 🔎︎ thethethe   \n\n\t  mis-installed installed installer",
] * 12
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("gpt2", "llama3", "qwen", "llama2")


def blocks(texts: Iterable[str]) -> list[list[Text]]:
    """Texts as a corpus gives them."""
    return [[Text(text, len(text.encode()), "", "") for text in texts]]


def make_base(directory: Path, kind: str, vocab_size: int = 420) -> Path:
    """A tokenizer trained on ENGLISH, with an end of text that for `llama3` and `qwen` is outside the model's
    vocabulary, as theirs is."""
    directory.mkdir()
    backend = _llama2(vocab_size) if kind == "llama2" else _byte_level(kind, vocab_size)
    if kind in ("llama3", "qwen"):
        backend.add_special_tokens(["<|end|>", "<|pad|>"])
    backend.save(str(directory / "tokenizer.json"))
    end = "</s>" if kind == "llama2" else "<|end|>"
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return directory


def _byte_level(kind: str, vocab_size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    backend.pre_tokenizer = level if kind == "gpt2" else pre_tokenizers.Sequence([split, level])
    if kind == "qwen":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"] if kind == "gpt2" else [],
        show_progress=False,
    )
    backend.train_from_iterator(ENGLISH, trainer)
    return backend


def _llama2(vocab_size: int) -> Tokenizer:
    """SentencePiece's BPE as `transformers` converts it: no pre-tokenizer, bytes for unknown characters."""
    cut = Tokenizer(models.BPE())
    cut.pre_tokenizer = pre_tokenizers.Metaspace()
    cut.train_from_iterator(ENGLISH, trainers.BpeTrainer(vocab_size=vocab_size - 259, show_progress=False))
    model = json.loads(cut.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: number for number, token in enumerate([*tokens, *model["vocab"]])}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend
