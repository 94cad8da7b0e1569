"""Made texts with planted personal data, whose places are known: by other rules than those that find them.

Place in the flow: below the row of personal data, and below the tests of `cptron.corpus.pii`. Invariant: equal seeds
give equal texts; harmless numbers that look like personal data stand among them.
"""

from __future__ import annotations

import ipaddress
import random

from cptron.corpus.pii.checks import IBAN_LENGTHS
from cptron.corpus.pii.spans import Span

KINDS = ("email", "ip_address", "phone", "card", "iban")
HARMLESS = [
    "see version 1.2.3.4 of 2024-05-17, page 1234567",
    "ISBN 978-3-16-148410-0 costs 1,234.50 or 12345678901234567890",
    "std::vector<int> at 12:30:45, ratio 3.14159265358979",
    "order 4111 1111 1111 1112, half of 10.0.0.1/8 and 192.168.0.17",
    "DE89 3704 0044 0532 0130 01 is not an account; call us; @home; a@b",
    "RFC 3986, section 127.0.0.1, in 1998-2004, 100-200-3000 units; 555-1234",
    "\n9.7.3.1. Regular Expression Details\nof text\n\n  36.7.1.2 Arrays\n## 38.5.9.1.\n"
    "see sections 9.7.3.1, 9.7.3.2 and 9.7.3.3",
    "LibreOffice 7.0.4.2 (The Document Foundation), Firefox/3.6.12.1, phiên bản 7.0.4.2, release number 130.1.2.3",
    "at +48.858370, +2.294481; sums +1 2 3 4 5 6 7, +12345678.50; pH 7.12345678; logo@2x.png, vue@3.2.js",
    "call 1234567 functions of mobile 2000000 users in cell 12345678",
    "f(x) = +1234 and 2001:db8::1 of the documentation, ::1, a::b",
]


def personal_datum(draw: random.Random) -> tuple[str, str]:
    """A kind and one of its kind, made by other rules than those that find it."""
    kind = draw.choice(KINDS)
    digits = lambda n: "".join(draw.choice("0123456789") for _ in range(n))  # noqa: E731
    if kind == "email":
        local = draw.choice(["ann", "j.doe", "o'neil", "info+news", "x_1"])
        return (
            kind,
            f"{local}@{draw.choice(['mail', 'my-host.co', 'a.b'])}.{draw.choice(['org', 'vn', 'museum'])}",
        )
    if kind == "ip_address":
        if draw.random() < 0.3:
            return kind, str(ipaddress.IPv6Address(0x2A00 << 112 | draw.getrandbits(100)))
        return kind, ".".join(
            [draw.choice(["8", "91", "203"]), *(str(draw.randrange(1, 255)) for _ in range(3))]
        )
    if kind == "phone":
        subscriber = digits(7)
        return kind, draw.choice([
            f"+49 {draw.randrange(100, 999)} {subscriber}",
            f"+84 ({draw.randrange(20, 99)}) {subscriber[:3]}-{subscriber[3:]}",
            f"({draw.randrange(200, 999)}) {draw.randrange(200, 999)}-{digits(4)}",
            f"+1{draw.randrange(2, 9)}{digits(9)}",
        ])  # fmt: skip
    if kind == "card":
        head, length = draw.choice([("4", 16), ("53", 16), ("37", 15), ("6011", 16)])
        body = head + digits(length - len(head) - 1)
        number = next(body + str(last) for last in range(10) if luhn_by_table(body + str(last)))
        grouped = " ".join(number[i : i + 4] for i in range(0, 16, 4)) if length == 16 else number
        return kind, draw.choice([number, grouped, grouped.replace(" ", "-")])
    country = draw.choice(sorted(IBAN_LENGTHS))
    rest = digits(IBAN_LENGTHS[country] - 4)
    check = 98 - int("".join(str(int(char, 36)) for char in rest + country) + "00") % 97
    number = f"{country}{check:02d}{rest}"
    return kind, draw.choice([number, " ".join(number[i : i + 4] for i in range(0, len(number), 4))])


def luhn_by_table(number: str) -> bool:
    """Luhn's check sum as textbooks write it."""
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    values = [int(digit) for digit in reversed(number)]
    return (sum(values[::2]) + sum(doubled[digit] for digit in values[1::2])) % 10 == 0


def texts_with_personal_data(seed: int, num_documents: int) -> list[tuple[str, list[Span]]]:
    """Texts with known places, among harmless numbers."""
    draw = random.Random(seed)
    documents = []
    for _ in range(num_documents):
        text, spans = "", []
        for _ in range(draw.randrange(1, 8)):
            if draw.random() < 0.5:
                text += draw.choice(HARMLESS) + draw.choice([". ", ".\n"])
                continue
            kind, written = personal_datum(draw)
            text += draw.choice(["Write to ", "is ", "(", "at: ", "\n"])
            spans.append((len(text), len(text) + len(written), kind))
            text += written + draw.choice([". ", ", ", ") ", "\n", "; and "])
        documents.append((text, spans))
    return documents
