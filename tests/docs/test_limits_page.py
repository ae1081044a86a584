"""Each limit on the page is the constant that it names, and each stands there once."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from converge.runtime.config.config import Config

PAGE = Path(__file__).parents[2] / "docs/reference/limits.md"
ROW = re.compile(
    r"^\| (?P<what>[^|]+) \| (?P<value>[^|]+) \| (?P<past>[^|]+) \| `(?P<constant>[\w.]+)` \|$", re.MULTILINE
)
ROWS = [found.groupdict() for found in ROW.finditer(PAGE.read_text())]


def constant(path: str) -> Any:
    """The value of a constant, by its module below the package and its name."""
    parts = path.split(".")
    for at in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(["converge", *parts[:at]]))
        except ModuleNotFoundError:
            continue
        for part in parts[at:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no module of {path}")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["constant"])
def test_the_number_on_the_page_is_the_constants(row: dict[str, str]) -> None:
    number, _, unit = row["value"].partition(" ")
    assert float(number.replace(",", "")) == pytest.approx(float(constant(row["constant"])))
    name = row["constant"].rpartition(".")[2]
    assert (unit == "s") == (name.endswith("_SEC") and not name.endswith("_PER_SEC"))
    assert (unit == "bytes") == name.casefold().endswith("_bytes")


def test_every_row_of_the_page_is_read_and_none_is_there_twice() -> None:
    tables = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("|") and not line.startswith(("| limit |", "|---"))
    ]
    assert len(ROWS) == len(tables) > 40
    assert [name for name, count in Counter(row["constant"] for row in ROWS).items() if count > 1] == []


def test_what_the_page_says_of_the_configuration_is_its_default() -> None:
    assert f"`max_connections`, {Config().max_connections:,} unless set" in PAGE.read_text()
