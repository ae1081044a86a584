"""PostgreSQL and MariaDB are certified on servers of the check's own: restarted, cut, frozen, read-only, with another
password, beside another release of the plugin.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import converge_store_sql

pytestmark = pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")

SOURCES = Path(converge_store_sql.__file__).parent
ENTRIES = "[converge]\nsql = converge_store_sql.plugin\n"
ELSEWHERE = ("network: str = attrs.field(", "network: str = attrs.field(converter=lambda name: f'{name}_',")


@pytest.mark.parametrize("scheme", ["postgresql:", "mysql:"])
def test_it_is_certified(
    scheme: str, other_release: Callable[..., str], checked_card: Callable[..., dict[str, Any]]
) -> None:
    other = other_release(SOURCES, ENTRIES)
    card = checked_card("sql", scheme, certify=True, only="TestCertification", other_python=other)
    assert card["broken"] == []
    assert sorted(card["certified"]) == ["cut", "freeze", "refuse_writes", "releases", "restart", "rotate"]
    assert card["not_tried"] == {}


def test_a_release_that_does_not_see_what_this_one_writes_is_found(
    other_release: Callable[..., str], checked_card: Callable[..., dict[str, Any]]
) -> None:
    other = other_release(SOURCES, ENTRIES, change=ELSEWHERE)
    card = checked_card("sql", "postgresql:", certify=True, only="test_two_releases_side_by_side", other_python=other)
    assert [one["clause"] for one in card["broken"]] == ["S-4"]
