"""The agent that the processes of these tests run: it does what a task's inputs say, and writes a line to the ledger
for each start and end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import anyio

from converge import Agent, Task

LEFT: list[Any] = []
"""What outlives the call that began it."""


def note(**what: Any) -> None:
    """Append a line to the ledger; one write of less than a page, so lines of several processes do not mix."""
    line = json.dumps({"pid": os.getpid(), "at": time.time(), **what}) + "\n"
    descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Worker(Agent):
    """Sleeps, blocks the loop, holds the interpreter, or dies, as it is told."""

    async def on_task(self, task: Task) -> dict[str, int]:
        note(what="start", task=task.id, token=task.token, attempt=task.attempts)
        await _do(task.inputs)
        note(what="end", task=task.id, token=task.token)
        return {"token": task.token}


async def _do(inputs: Mapping[str, Any]) -> None:
    while "gate" in inputs and not os.path.exists(inputs["gate"]):  # noqa: ASYNC110, ASYNC240 - no event comes here
        await anyio.sleep(0.02)
    if "sleep" in inputs:
        await anyio.sleep(inputs["sleep"])
    if "block" in inputs:
        time.sleep(inputs["block"])  # noqa: ASYNC251 - it is what the test is about
    if "hold" in inputs:
        until = time.monotonic() + inputs["hold"]
        while time.monotonic() < until:
            # A conversion of so many digits holds the interpreter's lock for some ten milliseconds at a time.
            len(bytes(3_000_000).hex())
    if inputs.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)


class Stuck(Agent):
    """A plain handler that never returns, whatever anybody does."""

    def on_task(self, task: Task) -> None:
        note(what="start", task=task.id, token=task.token, attempt=task.attempts)
        while True:
            time.sleep(60)


class Waiting(Agent):
    """Waits for a thread of its event loop that never returns."""

    async def on_task(self, task: Task) -> None:
        note(what="start", task=task.id, token=task.token, attempt=task.attempts)
        await asyncio.to_thread(threading.Event().wait)


class Clinging(Agent):
    """Leaves a task behind that nobody can cancel."""

    async def on_task(self, task: Task) -> None:
        async def cling() -> None:
            note(what="start", task=task.id, token=task.token, attempt=task.attempts)
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)

        LEFT.append(asyncio.create_task(cling()))


class Broken(Agent):
    """Leaves an async generator behind that does not end."""

    async def on_task(self, task: Task) -> None:
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                await asyncio.sleep(60)

        LEFT.append(left := numbers())
        async for _ in left:
            break
        note(what="start", task=task.id, token=task.token, attempt=task.attempts)


class Typed(Worker):
    """Knows one type of task only."""

    task_types = ("known",)


class Troubled(Worker):
    """Raises what it is told to."""

    async def on_task(self, task: Task) -> dict[str, int]:
        note(what="start", task=task.id, token=task.token, attempt=task.attempts)
        if (name := task.inputs.get("raise")) is not None:
            raise TROUBLES[name]("as it was told to")
        if task.inputs.get("recurse"):
            _recurse(0)
        return {"token": task.token}


def _recurse(depth: int) -> int:
    return _recurse(depth + 1) + 1


class Silly(BaseException):
    """What no library should raise."""


TROUBLES: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        MemoryError,
        AssertionError,
        StopAsyncIteration,
        TimeoutError,
        SystemExit,
        KeyboardInterrupt,
        Silly,
    )
}
