"""A process that kills itself at one of its calls of the store.

`sweeper.py URL NUMBER before|after` sweeps, and the commit of that number, from 1, is its last; `sweeper.py URL take`
claims, and never learns what.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any

import anyio

from converge import TaskManager, open_store
from converge.contracts.store import Batch, Channel, Take, Turned
from converge.services.store.handle import StoreHandle
from converge.services.tasks import sweep

PAGE = 20


def kill_at(store: Any, number: int, when: str) -> None:
    """Let the store's turn of that number be the process's last: it is not carried out, or it is and nobody learns of
    it.
    """
    turn, made = store.turn, [0]

    async def counted(batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        made[0] += 1
        if made[0] == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        turned: Turned = await turn(batches, take, wake=wake)
        if made[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return turned

    store.turn = counted


async def main(url: str, number: int, when: str) -> None:
    """Sweep until nothing is left; then say so: the number was too high."""
    async with open_store(url) as store:
        opened = StoreHandle.of(store)
        await opened.commits()
        kill_at(store, number, when)
        sweep.SWEPT_TOGETHER = PAGE
        while await sweep.Sweep(opened).page():
            pass
    print("swept")  # noqa: T201 - read by the test


async def take(url: str) -> None:
    """Claim ten tasks, and die as the answer comes."""
    async with open_store(url) as store:
        await StoreHandle.of(store).lease()
        kill_at(store, 1, "after")
        await TaskManager(store).claim("dying", ["faults"], limit=10)


if __name__ == "__main__":
    if sys.argv[2] == "take":
        anyio.run(take, sys.argv[1])
    else:
        anyio.run(main, sys.argv[1], int(sys.argv[2]), sys.argv[3])
