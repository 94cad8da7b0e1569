"""Check digits: Luhn for payment cards, modulo 97 for bank accounts.

Place in the flow: under `spans`. Invariant: a number with one digit changed is never taken for a card or an account.
"""

from __future__ import annotations

_CARDS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (4, 4, (13, 16, 19)),
    (51, 55, (16,)),
    (2221, 2720, (16,)),
    (34, 34, (15,)),
    (37, 37, (15,)),
    (6011, 6011, (16, 19)),
    (644, 649, (16, 19)),
    (65, 65, (16, 19)),
    (3528, 3589, (16, 17, 18, 19)),
    (300, 305, (14,)),
    (36, 36, (14, 15, 16, 17, 18, 19)),
    (38, 39, (14, 15, 16, 17, 18, 19)),
    (62, 62, (16, 17, 18, 19)),
    (5018, 5018, (13, 14, 15, 16, 17, 18, 19)),
    (6304, 6304, (13, 14, 15, 16, 17, 18, 19)),
)
"""First and last of the leading digits that an issuer has, and the lengths of its numbers (ISO/IEC 7812)."""

IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip
"""Characters of an account number, by country (the registry of ISO 13616)."""


def is_card(written: str) -> bool:
    """Whether digits, perhaps with blanks or hyphens, are the number of a payment card."""
    digits = written.replace(" ", "").replace("-", "")
    issued = any(
        len(digits) in lengths and first <= int(digits[: len(str(first))]) <= last
        for first, last, lengths in _CARDS
    )
    return issued and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_at(text: str, start: int) -> int:
    """Where an account number that begins at `start`, with single blanks or without, ends; 0 if there is none."""
    length = IBAN_LENGTHS.get(text[start : start + 2])
    if length is None:
        return 0
    place, characters = start, ""
    while len(characters) < length and place < len(text):
        char = text[place]
        if char.isascii() and (char.isdigit() or char.isupper()):
            characters += char
        elif char != " " or text[place - 1] == " ":
            return 0
        place += 1
    follows = text[place : place + 1]
    if len(characters) < length or (follows.isascii() and follows.isalnum()):
        return 0
    return place if mod_97(characters) else 0


def mod_97(iban: str) -> bool:
    """Whether the two check digits of an account number without blanks are right."""
    moved = iban[4:] + iban[:4]
    return int("".join(str(int(char, 36)) for char in moved)) % 97 == 1
