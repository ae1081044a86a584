"""The store fails at one write of durable tasks: each in turn never arrives, loses its answer, is carried out late, or
begins an outage. No step that was recorded runs again, and no signal, piece of output, child or answer is lost or
doubled.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import anyio
import pytest
from asking import again

from converge import Agent, MemoryStore, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch, Channel, Committed, Conflict, Range, Store, Take, Turned
from converge.errors import CalledOff, ChildFailed, NotWaiting, OutcomeUnknown, StepFailed, StoreUnavailable
from converge.ids import uuid7
from converge.model.keys import (
    ACTOR,
    CHILD,
    CHUNK,
    CUT,
    ENDED,
    GONE,
    KEPT,
    OUTBOX,
    READER,
    SIGNAL,
    SIGNALS,
    STATE,
    STEP,
    TASK,
    TOLD,
)  # fmt: skip
from converge.operations.tasks import Purging, purge
from converge.services.durable.agents import AgentRefs
from converge.testing.faults import FaultPlan, FaultyStore
from converge.testing.fixtures import wait_until

IS_FULL = os.environ.get("FULL_TESTS") == "1"
T = TypeVar("T")

OF_TASKS = (STEP, SIGNALS, SIGNAL, CHUNK, READER, CHILD, ENDED, TOLD, KEPT, GONE, OUTBOX, CUT)
COUNTED = frozenset((*OF_TASKS, ACTOR, STATE, TASK))

FAULTS = ("before", "lost", "late", "later", "outage")
"""What happens to the write: it never arrives; its answer is lost; it is carried out behind the next write, or some
writes later, and the answer is lost; from it on the store is away for a while.
"""

LATER, AWAY_SEC, MOST = 6, 0.3, 400
"""After so many writes; so long; and more writes than any of the stories makes."""

PLUGINS = {"redis": ["redis"], "postgresql": ["sql"]}


def is_counted(batches: Sequence[Batch]) -> bool:
    return any(key[0] in COUNTED for batch in batches for key in (*(key for key, _ in batch.puts), *batch.deletes))


class Failing(FaultyStore):
    """A store whose nth write of tasks fails."""

    def __init__(self, inner: Store, nth: int, fault: str) -> None:
        super().__init__(inner, FaultPlan(seed=0, likelihood={}))
        self.nth, self.fault, self.seen = nth, fault, 0
        self.struck = ""
        self._late: list[tuple[int, Sequence[Batch]]] = []
        self._away_until = float("-inf")

    async def _read(self, call: str, once: Callable[[], Awaitable[T]]) -> T:
        self._check_away()
        return await once()

    def _check_away(self) -> None:
        if anyio.current_time() < self._away_until:
            raise StoreUnavailable("the store is away")

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return await self._written(batches, lambda: self.inner.commit(batches, wake=wake))

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        return await self._written(batches, lambda: self.inner.turn(batches, take, wake=wake))

    async def _written(self, batches: Sequence[Batch], once: Callable[[], Awaitable[T]]) -> T:
        self._check_away()
        if not is_counted(batches):
            return await once()
        self.seen += 1
        if self.seen == self.nth:
            self.struck = ", ".join(sorted({str(key[0]) for one in batches for key in (*dict(one.puts), *one.deletes)}))
            if self.fault in ("late", "later"):
                # A copy: callers add to their checks what they send again.
                copy = [Batch(tuple(one.checks), one.puts, one.deletes, one.window) for one in batches]
                self._late.append((self.nth + (1 if self.fault == "late" else LATER), copy))
            if self.fault == "outage":
                self._away_until = anyio.current_time() + AWAY_SEC
            if self.fault == "lost":
                await once()
            raise StoreUnavailable("not sent") if self.fault in ("before", "outage") else OutcomeUnknown("no answer")
        done = await once()
        for due, late in [*self._late]:
            if self.seen >= due:
                self._late.remove((due, late))
                await self.inner.commit(late)
        return done

    async def settle(self) -> None:
        """Carry out what is still late."""
        for _, late in self._late:
            await self.inner.commit(late)
        self._late.clear()


RAN: Counter[str] = Counter()
ASKED: list[int] = []


def ran(name: str) -> int:
    RAN[name] += 1
    return RAN[name]


class Declined(Exception):
    """Final."""


def decline() -> None:
    RAN["decline"] += 1
    raise Declined("no")


class Works(Agent):
    """Does all that durable tasks do, one after another."""

    concurrency = 4

    async def on_task(self, task: Task) -> Any:
        if task.type == "never":
            await task.wait_for("never")
        if task.type == "child":
            await task.emit("from a child")
            return await task.step("only", ran, f"child {task.inputs['n']}")
        if task.type == "undoes":
            await task.spawn(Task(pool_id="p", type="never"), "left")
            try:
                await task.wait_for("never")
            except CalledOff:
                await task.step("undo", ran, "undo")
                raise
        if task.type == "restarts":
            await task.step("one", ran, f"one {task.inputs['n']}")
            if task.inputs["n"]:
                await task.restart({"n": task.inputs["n"] - 1})
            return "restarted"
        return await self.all(task)

    async def all(self, task: Task) -> Any:
        first = await task.step("first", self.speak, task, "first", 1, 2)
        with suppress(StepFailed):
            await task.step("decline", decline, final=(Declined,))
        children = [
            await task.spawn(Task(pool_id=pool, type="child", inputs={"n": n}), f"c{n}")
            for n, pool in enumerate(("p", "q"))
        ]
        rest = await task.spawn(Task(pool_id="p", type="never", ordering_key="k"), "rest")
        got = await task.gather(*children)
        payloads = [await task.wait_for("go"), await task.wait_for("go")]
        _, one = await task.first(children[0], rest, cancel_rest=True)
        with suppress(ChildFailed):
            await task.gather(rest)
        await task.sleep(0.01, "nap")
        second = await task.step("second", self.speak, task, "second", 3)
        return [first, got, payloads, one, second]

    async def speak(self, task: Task, name: str, *pieces: int) -> int:
        for piece in pieces:
            await task.emit(piece)
        await task.progress(1, of=2)
        return ran(name)

    async def on_ask(self, state: Any, message: Any) -> tuple[Any, Any]:
        ASKED.append(message)
        told = [*(state or []), message]
        return told, told


class Story:
    """What happens on a store, one of whose writes fails, and what must have come of it."""

    def __init__(self, store: Failing, node: Node, calm: TaskManager) -> None:
        self.store, self.node, self.calm = store, node, calm
        self.tasks = TaskManager(store, poll_sec=0.05)

    async def submit(self, **fields: Any) -> str:
        id_ = uuid_of()
        await again(lambda: self.tasks.submit(Task(id=id_, pool_id="p", **fields)))
        return id_

    async def until(self, id_: str, *states: TaskState) -> Task:
        async def is_there() -> bool:
            return (await again(lambda: self.calm.get(id_))).state in states

        await wait_until(is_there, timeout=60)
        return await self.calm.get(id_)

    async def all(self) -> None:
        id_ = await self.submit(type="all")
        for n in range(2):
            await again(lambda n=n: self.tasks.signal(id_, "go", n, key=f"k{n}"))  # type: ignore[misc]
        done = await self.calm.result(id_, timeout=60)
        assert done.result == [1, [1, 1], [0, 1], 1, 1], (done.result, done.error)
        assert dict(RAN) == {"first": 1, "decline": 1, "child 0": 1, "child 1": 1, "second": 1}, RAN
        assert done.attempts == 1 and len(await self.calm.children(id_)) <= 3
        read = [one.data async for one in self.calm.watch(id_) if one.kind == "data"]
        assert read == [1, 2, 3], read
        of_kind = Counter((one.type, one.parent_id) for one in await self.calm.list(limit=100))
        assert of_kind == {("all", ""): 1, ("child", id_): 2, ("never", id_): 1}, of_kind

    async def restart(self) -> None:
        id_ = await self.submit(type="restarts", inputs={"n": 1})
        assert (await self.calm.result(id_, timeout=60)).result == "restarted"
        assert dict(RAN) == {"one 1": 1, "one 0": 1}, RAN

    async def undo(self) -> None:
        id_ = await self.submit(type="undoes")
        await self.until(id_, TaskState.WAITING)
        assert await again(lambda: self.tasks.cancel(id_, grace_sec=60)), "this call has cancelled it"
        await self.until(id_, TaskState.CANCELLED)
        assert dict(RAN) == {"undo": 1}, RAN
        for child in await self.calm.list(limit=100):
            await self.until(child.id, TaskState.CANCELLED)

    async def outside(self) -> None:
        """Complete, fail and cancel tasks that wait; their children end with them."""
        ids = [await self.submit(type="undoes") for _ in range(3)]
        for id_ in ids:
            await self.until(id_, TaskState.WAITING)
        await again(lambda: self.tasks.complete(ids[0], "yes"))
        await again(lambda: self.tasks.fail(ids[1], "no"))
        assert await again(lambda: self.tasks.cancel(ids[2])), "this call has cancelled it"
        with pytest.raises(NotWaiting):
            await self.calm.complete(ids[0], "another")
        ended = [await self.calm.result(id_) for id_ in ids]
        assert [(one.state, one.result) for one in ended] == [
            (TaskState.COMPLETED, "yes"),
            (TaskState.FAILED, None),
            (TaskState.CANCELLED, None),
        ]
        for child in await self.calm.list(limit=100):
            if child.parent_id:
                await self.until(child.id, TaskState.CANCELLED)

    async def asks(self) -> None:
        """Ask two virtual agents; each message is answered once, in order."""
        ASKED.clear()
        refs = AgentRefs(self.store)
        for n in range(3):
            for key in ("a", "b"):
                ask_id = uuid_of()
                told = await again(
                    lambda key=key, n=n, ask_id=ask_id: refs.agent(key, pool="p").ask(n, ask_id=ask_id)  # type: ignore[misc]
                )
                assert told == list(range(n + 1)), told
        assert ASKED == [0, 0, 1, 1, 2, 2], ASKED


STORIES: dict[str, Callable[[Story], Awaitable[None]]] = {
    "all": Story.all,
    "restart": Story.restart,
    "undo": Story.undo,
    "outside": Story.outside,
    "asks": Story.asks,
}


def uuid_of() -> str:
    """Return an id for a task, so that a repeated submit is known."""
    return str(UUID(bytes=uuid7(1, os.urandom(6), 0)))


@asynccontextmanager
async def opened(kind: str, url: str) -> AsyncIterator[Store]:
    """Open an empty store: one in memory, a file in a folder, or a network of a server."""
    if kind == "memory":
        yield MemoryStore()
        return
    where, network = (f"{url}/{uuid4().hex}.db", "converge") if kind == "file" else (url, f"n{uuid4().hex[:12]}")
    async with open_store(where, plugins=PLUGINS.get(kind, []), network=network) as store:
        yield store


async def none_left(store: Store, calm: TaskManager) -> None:
    """End and purge all; sweep until nothing of any task is left."""
    for one in await calm.list(limit=100):
        await calm.cancel(one.id)
    sweep = calm.durable.sweep()
    for families in ((TOLD, OUTBOX, CUT), OF_TASKS):
        with anyio.move_on_after(30):
            while any(await store.count([family() for family in families])):
                await sweep.page()
                await anyio.sleep(0.01)  # some chores pause between their rounds
        left = await store.scan([Range(family(), None, 5) for family in families])
        assert not any(left), left
        await purge(store, Purging(), is_dry_run=False)


async def told(story: str, store: Store, nth: int, fault: str) -> str:
    """Tell a story whose nth write fails; return what it wrote, or nothing if it has fewer."""
    RAN.clear()
    await PoolManager(store).create_pool(Pool(id="p"))
    await PoolManager(store).create_pool(Pool(id="q"))
    failing, calm = Failing(store, nth, fault), TaskManager(store, poll_sec=0.05)
    async with Node(store=failing, lease_sec=10.0, poll_sec=0.05) as node:
        await node.spawn(Works, pool=["p", "q"])
        try:
            await STORIES[story](Story(failing, node, calm))
        except BaseException as error:
            error.add_note(f"{story}: write {nth} ({failing.struck}): {fault}")
            raise
        await failing.settle()
    await failing.settle()
    await none_left(store, calm)
    return failing.struck


KINDS = ("memory", "file", "redis", "postgresql") if IS_FULL else ("memory", "file")

STRIDE = {"memory": 8, "file": 31}
"""By default so many writes lie between those that fail; in the full run each of them fails once."""


def chosen(kind: str, fault: str) -> range:
    return range(1, MOST) if IS_FULL else range(1 + FAULTS.index(fault), MOST, STRIDE[kind])


@pytest.mark.timeout(3_600 if IS_FULL else 300)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_write_that_fails_is_recovered_once(
    kind: str, story: str, fault: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    servers = {"redis": "redis_url", "postgresql": "postgres_url"}
    url = request.getfixturevalue(servers[kind]) if kind in servers else f"file:{tmp_path}"
    for nth in chosen(kind, fault):
        async with opened(kind, url) as store:
            if not await told(story, store, nth, fault):
                return
    raise AssertionError("the story has no end")
