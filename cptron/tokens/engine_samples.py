"""Texts on which tokenizer libraries tend to differ from one another.

Place in the flow: `engine.choose_engine` compares a fast engine with the reference on them, besides the input's own.
Invariant: the same texts for the same tokenizer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

# fmt: off
_SPACES = (
    "", " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\r", " \n ", "\n \n", "\t \t", "\x0b", "\x0c", "\x85",
    "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\u200b", "\u2060", "\ufeff",
)
_WORDS = (
    "a", "The", "WORD", "wordWord", "I'LL", "don't", "we'Ve", "'S", "'\u017f", "it\u2019s", "''", "snake_case",
    "__", "0", "12", "1234", "1234567890" * 3, "\u0663\u0664",
    "\uff12\u00bd\u2167\u00b2", "3.14e-10", "!!!", "...", "?!\n", "#!/bin/sh", "c[0]->d = 0xFF;",
    "http://a.b/c?d=e&f=g", "\u201cq\u201d\u2014", "caf\u00e9", "cafe\u0301", "\u0301", "a\u0300\u0316",
    "A\u030a\u212b\u00c5", "\ufb01\u017f\u212a\u00df\u0130\u0131", "\u1100\u1161\u11a8\uac01",
    "\u01c5\u02b0\u00aa\u2135", "\u65e5\u672c\u8a9e", "\u4e2d\u6587\uff0c\u6807\u70b9\u3002",
    "\ud55c\uad6d\uc5b4", "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", "th\u1ebf gi\u1edbi",
    "\U0001f600", "\U0001f469\u200d\U0001f4bb", "\U0001f44d\U0001f3fd", "\U0001f1fb\U0001f1f3",
    "\U0001f3f3\ufe0f\u200d\U0001f308", "\U00020000", "\U0001d54f", "\x00", "\x01\x04\x06\x1f\x7f", "\ufffd",
    "\ufffe\uffff", "\ue000\U0010ffff", "\u2581", "\u2581\u2581a", "\u0120", "\u010a", "<0x0A>", "<|", "|>",
    "<s>", "</s>", "<unk>", "[INST]", "<|endoftext|>", "<|eot_id|>", "<|im_start|>", "<think>",
    "ab\u200cc\u200d\u200e",
)
# fmt: on
_LONG = ("x" * 300, "ab" * 300, "1" * 300, " " * 300, "-" * 300, "\u65e5\u672c" * 100)
_MAX_ADDED = 300


def adversarial_texts(added_tokens: Sequence[str]) -> list[bytes]:
    """Spaces, scripts, controls, digits and special tokens, alone and next to one another (about 40 KiB)."""
    texts = {*_SPACES, *_WORDS, *_LONG, *_around(added_tokens)}
    words = itertools.cycle([*_WORDS, *added_tokens[:20]])
    for space, other in itertools.product(_SPACES, repeat=2):
        texts.add(next(words) + space + next(words) + other + next(words))
    texts.update(first + second for first, second in itertools.product(_WORDS[:32], _WORDS[32:48]))
    return [text.encode("utf-8") for text in sorted(texts)]


def _around(added_tokens: Sequence[str]) -> Iterator[str]:
    """Every added token whole in a text; the first ones in all neighbourhoods, cut off, doubled."""
    yield " ".join(added_tokens[:_MAX_ADDED]) + "".join(added_tokens[:_MAX_ADDED])
    for token in added_tokens[:40]:
        yield from (
            token,
            token[:-1],
            token[1:],
            token * 2,
            token + token[:2],
            f" {token} ",
            f"a{token}b",
            f"\n{token}\n",
        )
