"""A process that submits, claims and completes on a store until it is killed.

    python mysql_worker.py URL NETWORK SEED

It says each task whose submit, and whose completion, was acknowledged.
"""

from __future__ import annotations

import os
import random
import sys

import anyio

from converge import Task, TaskManager, open_store
from converge.errors import LeaseEnded, StaleClaim, StoreError
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings

LEASE_SEC = 2.0


def say(*words: str) -> None:
    """Say a line at once: whoever is killed has said it or not."""
    os.write(1, (" ".join(words) + "\n").encode())


async def use(url: str, network: str, dice: random.Random) -> None:
    """Work until the store is away."""
    options = {"mysql": {"connect_timeout_sec": 1.0, "timeout_sec": 3.0}}
    async with open_store(url, network=network, options=options) as store:
        StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=LEASE_SEC))
        tasks = TaskManager(store)
        while True:
            if dice.random() < 0.5:
                wanted = [Task(pool_id="p", dedup_key=f"{dice.getrandbits(64):x}") for _ in range(3)]
                for id_ in await tasks.submit_many(wanted):
                    say("submitted", id_)
            for task in await tasks.claim("agent", ["p"], limit=4):
                try:
                    await tasks.complete(task, "done")
                except StaleClaim:
                    say("stale", task.id)
                    continue
                say("completed", task.id)


async def main(url: str, network: str, seed: int) -> None:
    """Go on for ever, whatever the store says."""
    dice = random.Random(seed)
    while True:
        try:
            await use(url, network, dice)
        except (StoreError, LeaseEnded) as error:
            say("failed", type(error).__name__)
            await anyio.sleep(0.05)  # the server is away; the next try comes a moment later


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
