"""A process that submits and works on a shared store for ever: `python chaos_agent.py URL NETWORK SEED`.

It says each task whose submit, and whose completion, was acknowledged, and each claim that was refused as stale.
"""

from __future__ import annotations

import os
import random
import sys

import anyio

from converge import Task, TaskManager, open_store
from converge.errors import LeaseEnded, OutcomeUnknown, StaleClaim, StoreError
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings

LEASE_SEC = 2.0  # short: many are to end
AWAY_SEC = 0.1


def say(*words: str) -> None:
    """Say a line at once: whoever is killed has said it or not."""
    os.write(1, (" ".join(words) + "\n").encode())


async def submit(tasks: TaskManager, dice: random.Random) -> None:
    """Submit one under a key; where the outcome is unknown, again until it is known."""
    task = Task(pool_id="p", dedup_key=f"{dice.getrandbits(64):x}")
    while True:
        try:
            say("submitted", await tasks.submit(task))
        except OutcomeUnknown:
            say("unknown", str(task.dedup_key))
            await anyio.sleep(AWAY_SEC)  # the server comes back in its own time
        else:
            return


async def work(tasks: TaskManager, dice: random.Random) -> None:
    """Claim, hold for a moment, complete."""
    for task in await tasks.claim("agent", ["p"], limit=4):
        say("holding", task.id)
        await anyio.sleep(dice.uniform(0.1, 0.5))  # a claim has to be held for faults to meet it
        try:
            await tasks.complete(task, "done")
        except (StaleClaim, LeaseEnded):
            say("stale", task.id)
        else:
            say("completed", task.id)


async def main(url: str, network: str, seed: int) -> None:
    """Go on for ever, whatever the store says."""
    dice = random.Random(seed)
    while True:
        try:
            async with open_store(url, network=network) as store:
                StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=LEASE_SEC))
                tasks = TaskManager(store, poll_sec=0.5)
                while True:
                    await (submit if dice.random() < 0.5 else work)(tasks, dice)
        except (StoreError, LeaseEnded) as error:
            say("failed", type(error).__name__)
            await anyio.sleep(AWAY_SEC)  # the server comes back in its own time


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
