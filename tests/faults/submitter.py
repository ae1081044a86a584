"""A process that submits task after task, and writes to the ledger the id of each that was acknowledged: `submitter.py
URL NETWORK [PLUGIN...]`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import anyio

from converge import Task, TaskManager, open_store

sys.path.insert(0, str(Path(__file__).parent))

from worker_agents import note  # type: ignore[import-not-found]  # found where the processes of these tests run


async def main(url: str, network: str, plugins: Sequence[str]) -> None:
    """Submit until killed."""
    async with open_store(url, network=network, plugins=plugins) as store:
        tasks = TaskManager(store)
        while True:
            note(
                what="acknowledged",
                task=await tasks.submit(Task(pool_id="faults", inputs={"sleep": 0.4}, max_attempts=100)),
            )
            await anyio.sleep(0.04)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
