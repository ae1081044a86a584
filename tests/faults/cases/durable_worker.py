"""Processes that are killed: a worker whose tasks record steps, put out, wait for a signal and spawn a child; one that
sends signals; one that reads output. Each kills itself at its point: before or after the nth write of a kind.

    python durable_worker.py ROLE URL NETWORK FOLDER POINT [ID...]
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from converge import Agent, Node, Task, TaskManager, open_store
from converge.contracts.store import Batch, Store
from converge.errors import LeaseEnded, StoreError
from converge.model.keys import ACTOR, CHILD, CHUNK, DONE, LATER, SIGNAL, STEP

ROLE, URL, NETWORK, FOLDER, POINT, *IDS = sys.argv[1:]
NOTES, READ = Path(FOLDER) / "notes.txt", Path(FOLDER) / "read.txt"
PLUGINS = {"redis": ["redis"], "postgresql": ["sql"]}.get(URL.partition(":")[0], [])


STARTS = 20
"""How often something is begun again while the store does not answer."""

IS_WITHIN = ContextVar("is_within", default=False)
"""Whether a turn is under way, which some stores carry out with a commit."""


def puts(family: object, batch: Batch) -> bool:
    return any(key[0] is family for key, _ in batch.puts)


KINDS: dict[str, Callable[[Batch], bool]] = {
    "step": lambda batch: puts(STEP, batch) and not puts(CHILD, batch) and not batch.deletes,
    "chunk": partial(puts, CHUNK),
    "spawn": partial(puts, CHILD),
    "park": partial(puts, LATER),
    "consume": lambda batch: any(key[0] is SIGNAL for key in batch.deletes),
    "finish": partial(puts, DONE),
    "signal": partial(puts, SIGNAL),
    "answer": partial(puts, ACTOR),
}


def die_at(store: Store, point: str) -> None:
    """Have this process kill itself before, or after, the nth commit of a kind: `after:step:2`."""
    when, what, left = (*point.split(":"), "1")[:3]
    counted = int(left)

    def dying(write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def written(batches: Sequence[Batch], *arguments: Any, **more: Any) -> Any:
            nonlocal counted
            is_counted = not IS_WITHIN.get() and any(map(KINDS[what], batches))
            counted -= is_counted
            is_last = is_counted and counted == 0  # of this write; another may be counted meanwhile
            if when == "before" and is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            token = IS_WITHIN.set(True)
            done = await write(batches, *arguments, **more)
            IS_WITHIN.reset(token)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return written

    for name in ("commit", "turn"):
        setattr(store, name, dying(getattr(store, name)))


def ran(task: str, name: str, token: int) -> int:
    with NOTES.open("a") as file:
        file.write(f"{task} {name} {token}\n")
    return token


class Worker(Agent):
    concurrency = 4

    async def on_task(self, task: Task) -> object:
        if task.type == "child":
            return await task.step("only", ran, task.id, "only", task.token)
        for number in range(3):
            await task.emit([task.token, number])
        tokens = [await task.step(f"s{n}", ran, task.id, f"s{n}", task.token) for n in range(3)]
        child = await task.spawn(Task(pool_id="p", type="child", max_attempts=1_000))
        payload = await task.wait_for("go")
        (result,) = await task.gather(child)
        return {"tokens": tokens, "child": child.id, "result": result, "payload": payload}

    async def on_ask(self, state: Any, message: Any) -> tuple[Any, Any]:
        """Answer with all that this virtual agent was told, in order."""
        told = [*(state or []), message]
        return told, told


async def work(store: Store) -> None:
    """Work until killed. On a busy machine a short lease may end while the node starts: then it starts again, as what
    supervises a process has it do.
    """
    for _ in range(STARTS):
        with suppress(StoreError, LeaseEnded):
            async with Node(store=store, lease_sec=2.0, poll_sec=0.2) as node:  # short: each is killed
                await node.spawn(Worker, pool="p")
                await anyio.sleep_forever()


async def send(store: Store) -> None:
    for id_ in IDS:
        for _ in range(STARTS):
            with suppress(StoreError):  # it did not answer in time; the key makes a repeat harmless
                await TaskManager(store).signal(id_, "go", id_, key="k")
                break


async def read(store: Store) -> None:
    """Append each piece with its cursor to a file; go on behind the last one that stands there."""
    lines = READ.read_text().splitlines() if READ.exists() else []
    after = lines[-1].split(" ", 1)[0] if lines else ""
    with READ.open("a", buffering=1) as file:
        async for output in TaskManager(store, poll_sec=0.2).watch(IDS[0], after=after):
            if output.kind == "data":
                file.write(f"{output.cursor} {output.data}\n")


async def main() -> None:
    async with open_store(URL, plugins=PLUGINS, network=NETWORK) as store:
        if POINT:
            die_at(store, POINT)
        await {"work": work, "send": send, "read": read}[ROLE](store)


anyio.run(main)
