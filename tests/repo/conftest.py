"""What is parsed is kept for the tests of this folder, and no longer: it is large, and each collection of garbage would
go through all of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from trees import parsed, walked

HERE = Path(__file__).parent


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Let go of the trees of all modules where the next test of this process is another folder's. A fixture of the
    package would not: without an `__init__.py` its end is that of the whole run.
    """
    if nextitem is None or HERE not in nextitem.path.parents:
        parsed.cache_clear()
        walked.cache_clear()
