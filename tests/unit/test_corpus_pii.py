"""Personal data is found where it was planted, and nothing else is touched."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.curate.planted import HARMLESS, KINDS, luhn_by_table, texts_with_personal_data
from cptron.corpus.document import Document, Dropped
from cptron.corpus.pii.checks import IBAN_LENGTHS, is_card, luhn, mod_97
from cptron.corpus.pii.spans import find_pii
from cptron.corpus.registry import config_class, step_class
from cptron.corpus.step import Tally

LEAST_PRECISION = LEAST_RECALL = 0.98


def pii_of(text: str) -> list[tuple[str, str]]:
    """What is found, with its kind."""
    return [(kind, text[start:end]) for start, end, kind in find_pii(text, KINDS, public_addresses_only=True)]


def test_precision_and_recall_on_known_places() -> None:
    """By exact place and kind, for each kind."""
    right, found, known = Counter[str](), Counter[str](), Counter[str]()
    for text, spans in texts_with_personal_data(0, 2000):
        mine = find_pii(text, KINDS, public_addresses_only=True)
        found.update(kind for _, _, kind in mine)
        known.update(kind for _, _, kind in spans)
        right.update(kind for _, _, kind in set(mine) & set(spans))
    for kind in KINDS:
        assert right[kind] / known[kind] >= LEAST_RECALL, (kind, right, known)
        assert right[kind] / found[kind] >= LEAST_PRECISION, (kind, right, found)


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_numbers_are_left_alone(text: str) -> None:
    """Versions, dates, ISBN, code, private addresses, wrong check digits."""
    assert pii_of(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail ann@example.org.", [("email", "ann@example.org")]),
        ("<ann@example.org>", [("email", "ann@example.org")]),
        ("'bob@x.co.uk'", [("email", "bob@x.co.uk")]),
        ("pay DE89370400440532013000 now", [("iban", "DE89370400440532013000")]),
        ("GB29 NWBK 6016 1331 9268 19 BANK", [("iban", "GB29 NWBK 6016 1331 9268 19")]),
        ("4111 1111 1111 1111 123", [("card", "4111 1111 1111 1111")]),
        ("4111-1111-1111-1111", [("card", "4111-1111-1111-1111")]),
        ("Tel: 030 901820", [("phone", "030 901820")]),
        ("Điện thoại: 0912 345 678", [("phone", "0912 345 678")]),
        ("फ़ोन: 09876 543210", [("phone", "09876 543210")]),
        ("cell: 4155550132", [("phone", "4155550132")]),
        ("call 0912345678", [("phone", "0912345678")]),
        ("+1.4155550123 +33 1 23 45 67 89", [("phone", "+1.4155550123"), ("phone", "+33 1 23 45 67 89")]),
        ("0049 30 1234567", [("phone", "0049 30 1234567")]),
        ("from 8.8.8.8 to", [("ip_address", "8.8.8.8")]),
        ("8.8.4.4 - - [10/Oct/2000] GET", [("ip_address", "8.8.4.4")]),
        ("8.8.4.4 dns.example\n91.198.174.192 Host", [("ip_address", "8.8.4.4"), ("ip_address", "91.198.174.192")]),
        ("Server 8.8.4.4, http://9.9.9.9/x", [("ip_address", "8.8.4.4"), ("ip_address", "9.9.9.9")]),
        ("[2a00:1450:4001:82a::200e]", [("ip_address", "2a00:1450:4001:82a::200e")]),
    ],
)  # fmt: skip
def test_known_writings(text: str, expected: list[tuple[str, str]]) -> None:
    """One of each."""
    assert pii_of(text) == expected


@given(st.integers(0, 10**15), st.integers(0, 15), st.integers(1, 9))
def test_one_wrong_digit_is_no_card(number: int, place: int, change: int) -> None:
    """Luhn finds it, and agrees with its textbook table."""
    digits = f"4{number:015d}"
    assert luhn(digits) == luhn_by_table(digits) and is_card(digits) == luhn(digits)
    wrong = digits[:place] + str((int(digits[place]) + change) % 10) + digits[place + 1 :]
    assert not (luhn(digits) and luhn(wrong))


def test_bank_accounts_of_the_standard() -> None:
    """Examples of ISO 13616, and each with one character changed."""
    for number in (
        "GB29NWBK60161331926819",
        "DE89370400440532013000",
        "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S",
    ):
        assert mod_97(number) and len(number) == IBAN_LENGTHS[number[:2]]
        assert not mod_97(number[:-1] + ("0" if number[-1] != "0" else "1"))


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("0123456789 .-+@:()/abAF\nđ"), max_size=60), st.text(max_size=20))
def test_spans_are_in_order_and_the_rest_stays(left: str, right: str) -> None:
    """On any text; what is put in place of them is not found again."""
    text = left + right
    spans = find_pii(text, KINDS, public_addresses_only=True)
    assert all(0 <= start < end <= len(text) for start, end, _ in spans)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))


@pytest.mark.parametrize(
    "piece",
    [
        "a.",
        "@",
        "a@",
        "1",
        "1 ",
        "1-",
        "+1",
        "1.",
        "1.2.3.4 ",
        "1.2.3.4. A\n",
        ":",
        "a:",
        "A1",
        "DE89 ",
        "(",
        "a-b/",
        "tel ",
        "4111 ",
        "a@b.",
        "00 1",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    """Hundred thousand characters of what patterns begin with; quadratic time would be minutes."""
    started_s = time.process_time()
    find_pii(piece * (100_000 // len(piece)), KINDS, public_addresses_only=True)
    assert time.process_time() - started_s < 10


def test_step_replaces_counts_and_drops() -> None:
    """Typed placeholders; a list of contacts goes as a whole."""
    step = step_class("pii")("pii", config_class("pii")(drop_above=2, placeholder="[{kind}]"), 0)
    tally = Tally()
    text = "ann@example.org and 8.8.8.8"
    done = step.apply(Document(text, "x", "x"), tally)  # type: ignore[union-attr]
    assert isinstance(done, Document) and done.text == "[EMAIL] and [IP_ADDRESS]"
    assert tally == {"email": 1, "ip_address": 1}
    assert step.apply(Document(f"{text} 9.9.9.9", "x", "x"), tally) == Dropped("too_much", "3 places")  # type: ignore[union-attr]
    assert step_class("pii").problem(config_class("pii")(placeholder="X"))
