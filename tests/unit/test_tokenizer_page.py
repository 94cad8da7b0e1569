"""docs/tokenizer.md has the numbers that are on record, and none that are not."""

from __future__ import annotations

from benchmarks.curate import tokenizer_page
from benchmarks.data.results import read


def test_table_is_that_of_the_results() -> None:
    """To the last digit; `python -m benchmarks.curate.tokenizer_page` writes it anew."""
    page = tokenizer_page.PAGE.read_text(encoding="utf-8")
    results = read(tokenizer_page.RESULTS)
    on_record = any(str(row["row"]).startswith("tokenizer ") for row in results)
    lines = tokenizer_page.table(results) if on_record else "Not measured yet."
    assert tokenizer_page.put(page, lines) == page
