"""The page of the configuration says of each key what the code says: its type, its default, its bounds, what it is
for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from converge.runtime.config.config import Config
from converge.runtime.config.fields import AgentGroup, Retention
from converge.schema import Setting, settings_of

PAGE = Path(__file__).parents[2] / "docs/reference/config.md"


def row_of(setting: Setting, *, above: str = "") -> str:
    """The row of the page's table that a setting must have."""
    name = f"{above}{setting.name}"
    if name == "options":
        return ""  # a table of tables, told in words
    value = ", ".join(part for part in (setting.type, setting.bounds, setting.unit) if part)
    default = "" if setting.default in (None, "", [], {}) else f"`{_shown(setting.default)}`"
    return f"| `{name}` | {value} | {default} | {setting.help} |"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def rows() -> list[str]:
    """The rows of all keys, tables below their key."""
    found = [row_of(one) for one in settings_of(Config, without=("origins", "retention"))]
    found += [row_of(one, above="agents[].") for one in settings_of(AgentGroup)]
    found += [row_of(one, above="retention.") for one in settings_of(Retention)]
    return [row for row in found if row]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("`")[1])
def test_the_row_of_each_key_says_what_the_code_says(row: str) -> None:
    assert row in PAGE.read_text().splitlines()


def test_the_page_has_no_row_of_a_key_that_is_not_there() -> None:
    names = {row.split("`")[1] for row in rows()} | {"options.NAME"}
    assert set(re.findall(r"^\| `([\w.\[\]]+)` \|", PAGE.read_text(), re.MULTILINE)) == names
