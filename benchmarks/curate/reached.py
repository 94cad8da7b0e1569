"""Whether some text is encoded into each new token of an extended byte-level tokenizer: a search of its own.

Place in the flow: a row of `curate_tokenizer`. Invariant: a token counts as reached once `tokenizers` alone has put it
into the encoding of a text that was given, or made from a word of such a text by other characters around the token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

BATCH = 2000
MAX_HOSTS = 200
"""Words in which the characters around a token are changed."""
CHARACTERS = [chr(point).encode() for point in [*range(1, 0xD800), *range(0xE000, 0x20000)]]


def not_reached(base: Path, extended: Path, texts: Sequence[str]) -> list[int]:
    """Ids of new tokens that no text tried is encoded into."""
    old, new = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (base, extended))
    byte_of = _bytes_of_characters()
    left = {
        number: bytes(byte_of[character] for character in new.id_to_token(number) or "")
        for number in range(old.get_vocab_size(), new.get_vocab_size())
    }
    own = [raw.decode() for raw in left.values() if _is_text(raw)]
    for tried in (texts, own, ["x" + text for text in own]):
        for start in range(0, len(tried), BATCH):
            for encoding in new.encode_batch(list(tried[start : start + BATCH]), add_special_tokens=False):
                for number in encoding.ids:
                    left.pop(number, None)
    words = {word.encode() for text in texts for word in re.findall(r"\s?\S+", text)}
    return [number for number, raw in left.items() if not _reached(new, number, raw, sorted(words))]


def _reached(new: Tokenizer, number: int, raw: bytes, words: Sequence[bytes]) -> bool:
    hosts = [word for word in words if raw in word][:MAX_HOSTS]
    return any(
        number in encoding.ids
        for host in hosts
        for encoding in new.encode_batch(sorted(set(_others(host, raw))), add_special_tokens=False)
    )


def _others(host: bytes, raw: bytes) -> Iterator[str]:
    """The word up to the token, with other characters where the token begins and ends within one."""
    within = next((place for place, byte in enumerate(raw) if not 0x80 <= byte < 0xC0), len(raw))
    before = host[: host.index(raw)].decode("utf-8", "ignore").encode()
    heads = [char[:-within] for char in CHARACTERS if char.endswith(raw[:within])] if within else [b""]
    whole = raw[within:].decode("utf-8", "ignore").encode()
    rest = raw[within + len(whole) :]
    tails = [char[len(rest) :] for char in CHARACTERS if char.startswith(rest)] if rest else [b"", b"!", b" "]
    for head in heads[:64]:
        for tail in tails[:64]:
            made = before + head + raw + tail
            if _is_text(made):
                yield made.decode()


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bytes_of_characters() -> dict[str, int]:
    """Character -> byte, as GPT-2 writes bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
