"""The page on upgrades names each format of a store, and the release that may run beside it."""

from __future__ import annotations

import re
from pathlib import Path

from converge.model.formats import FORMATS

PAGE = Path(__file__).parents[2] / "docs/how-to/upgrade.md"


def rows(page: str) -> list[tuple[int, str]]:
    """Return the number of each format in the page's table, with the oldest release beside it."""
    return [(int(number), oldest) for number, oldest in re.findall(r"^\| (\d+) \|.*\| (\S+?),? [^|]*\|$", page, re.M)]


def test_the_table_has_every_format() -> None:
    assert rows(PAGE.read_text()) == [(one.number, one.oldest) for one in FORMATS]


def test_a_format_that_is_missing_is_found() -> None:
    page = "| 1 | the first | a new store | 0.1.0 |\n| 2 | x | y | 0.2.0, from then on |\n"
    assert rows(page) == [(1, "0.1.0"), (2, "0.2.0")]
