"""What is parsed is kept for the tests of this folder, and no longer: it is large."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from trees import parsed, walked


@pytest.fixture(scope="package", autouse=True)
def trees() -> Iterator[None]:
    """Let go of the trees of all modules at the end."""
    yield
    parsed.cache_clear()
    walked.cache_clear()
