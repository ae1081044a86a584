"""Pages that are made from the code are as they would be made now."""

from __future__ import annotations

import pytest
from made_pages import DOCS, MADE


@pytest.mark.parametrize("name", MADE)
def test_a_made_page_is_as_it_would_be_made_now(name: str) -> None:
    made = "`python tests/docs/made_pages.py` makes it again"
    assert (DOCS / name).read_text(encoding="utf-8") == MADE[name](), made
