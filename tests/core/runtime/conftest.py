"""What the tests of nodes share: the embedded stores."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["memory", "file"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store of each embedded kind."""
    return "memory:" if request.param == "memory" else f"file:{tmp_path / 'state.db'}"
