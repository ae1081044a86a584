"""F10: finished work and agents that have left are not kept: after 50,000 tasks and 1,000 agents the file and the
process are as large as before.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import median

import anyio
import pytest

SCRIPT = Path(__file__).with_name("hoarder.py")
ROUNDS = 11 if os.environ.get("FULL_TESTS") == "1" else 5
"""Of 5,000 tasks and 100 agents; the later ones are compared with the first."""
MORE = 1.1
"""What may be there at the end, for each that was there at the start."""
MORE_MEMORY = 1.2
"""The same for resident memory: SQLite's caches and the allocator keep what the largest burst needed, and how large
that is depends on the load.
"""


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_f10_thousands_of_tasks_and_a_thousand_agents_leave_nothing(tmp_path: Path) -> None:
    """Kept for 5 s each. The file keeps its pages for what comes next, so those in use are counted."""
    with anyio.fail_after(130):
        ran = await anyio.run_process(
            [sys.executable, str(SCRIPT), str(tmp_path / "state.db"), str(ROUNDS)], check=False
        )
    assert ran.returncode == 0, ran.stderr.decode()[-2_000:]
    seen = [json.loads(line) for line in ran.stdout.decode().splitlines()]
    print(*({name: one[name] for name in one if name != "rows"} for one in seen), sep="\n")  # noqa: T201 - shown when the test fails
    assert len(seen) == ROUNDS
    first, last = seen[0], seen[-1]
    assert last["rows"] == first["rows"], "rows of some family stay"
    assert last["used_pages"] <= first["used_pages"] * MORE
    assert last["objects"] <= first["objects"] * MORE
    assert last["resident_mb"] <= first["resident_mb"] * MORE_MEMORY
    claims = [one["claim_cost"] for one in seen]
    assert min(claims[-3:]) <= 1.5 * median(claims[:3]), claims
