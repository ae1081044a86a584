"""Calls of a process as random histories make them: what can be refused is an answer, not an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from converge.contracts.store import LIMITS, Range
from converge.errors import DedupConflict, LeaseEnded, StaleClaim
from converge.model.keys import LATER
from converge.model.task import Task
from converge.services.tasks.lanes import LaneCloser
from converge.testing._task.base import Process
from converge.testing._task.model import End


def submitting(task: Task) -> Callable[[Process], Awaitable[str | None]]:
    """Submit; None if it is refused as another content under the same key."""

    async def submit(process: Process) -> str | None:
        try:
            return await process.tasks.submit(task)
        except DedupConflict:
            return None

    return submit


def finishing(claim: Task, end: End) -> Callable[[Process], Awaitable[bool]]:
    """Finish; False if the claim is stale, or was the claim of a process that has lost its lease and knows it."""

    async def finish(process: Process) -> bool:
        tasks = process.tasks
        try:
            if end.what == "complete":
                await tasks.complete(claim, end.content)
            elif end.what == "release":
                await tasks.release(claim)
            else:
                await tasks.fail(claim, end.content, retry=end.what == "fail")
        except (StaleClaim, LeaseEnded):
            return False
        return True

    return finish


def cancelling(task_id: str) -> Callable[[Process], Awaitable[bool]]:
    """Cancel; whether it was this call that did."""
    return lambda process: process.tasks.cancel(task_id)


async def sweeping(process: Process) -> tuple[int, list[tuple[int, str]]]:
    """Sweep to the end; return when that began, and what waits for its time, with the moment."""
    began = await process.store.time()
    await process.sweep_all()
    (page,) = await process.store.scan([Range(LATER(), None, LIMITS.keys)])
    return began, [(entry.key[1], str(UUID(bytes=entry.key[2]))) for entry in page]


def sweeping_some(pages: int) -> Callable[[Process], Awaitable[None]]:
    """Sweep as a process does that is killed: leases are ended, then so many pages of what they held are put back."""

    async def sweep(process: Process) -> None:
        if pages:
            await process.sweep.end_leases()
        for _ in range(pages - 1):
            await process.sweep.put_back()

    return sweep


async def closing_lanes(process: Process) -> None:
    """Close the lanes that are empty now, as a process does that has seen them so for long."""
    closer = LaneCloser(process.handle, idle_sec=0.0)
    await closer.page()
    while closer.is_under_way:
        await closer.page()
