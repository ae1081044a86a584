"""What other modules left in memory is looked at once: nearly every test here runs pytest, which collects garbage twice
as it ends.
"""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def leftovers() -> None:
    """Free what is garbage, and leave the rest out of all further collections."""
    gc.collect()
    gc.freeze()
