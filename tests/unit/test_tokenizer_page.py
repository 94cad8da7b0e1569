"""docs/tokenizer.md has the numbers that are on record."""

from __future__ import annotations

from benchmarks.curate import tokenizer_page
from benchmarks.data.results import read


def test_table_is_that_of_the_results() -> None:
    """To the last digit; `python -m benchmarks.curate.tokenizer_page` writes it anew."""
    page = tokenizer_page.PAGE.read_text(encoding="utf-8")
    lines = tokenizer_page.table(read(tokenizer_page.RESULTS))
    assert len(lines.splitlines()) > 10
    assert tokenizer_page.put(page, lines) == page
