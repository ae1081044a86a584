"""How often do steps, signals, children and virtual agents ask the store? Counts, so that other load does not matter.

    python tests/bench/bench_calls.py --stores file redis postgresql

Each line says how many calls that write (commits, and takes of tasks) and that read one operation takes on average, and
how many batches and records these had: what goes out together is one call. What the node does by itself meanwhile is
counted, too.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import anyio
from bench_pairs import PLUGINS, served

from converge import Agent, Node, Task, TaskState
from converge.model.keys import HELD, READY
from converge.testing.fixtures import wait_until

POOL = "bench"
STORES = ("memory", "file", "redis", "postgresql")


INSIDE: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether a call of the store makes another one."""


async def nothing() -> int:
    return 1


class Bench(Agent):
    """Does what the type of its task says."""

    concurrency = 100

    async def on_task(self, task: Task) -> Any:
        count = task.inputs.get("count", 0)
        if task.type == "steps":
            return [await task.step(f"s{n}", nothing) for n in range(count)]
        if task.type == "chunks":
            for number in range(count):
                await task.emit(number)
        if task.type == "waits":
            return await task.wait_for("go")
        if task.type == "fans":
            children = [await task.spawn(Task(pool_id=POOL, type="child"), f"c{n}") for n in range(count)]
            return len(await task.gather(*children))
        if task.type == "takes":
            children = [await task.spawn(Task(pool_id=POOL, type="waits"), f"c{n}") for n in range(count)]
            return len([child async for child, _ in task.as_completed(*children)])
        return 1

    async def on_ask(self, state: int | None, message: object) -> tuple[int, int]:
        return (state or 0) + 1, 1


class Counts:
    """What is asked of a store, by method, with the batches of its commits."""

    def __init__(self, store: Any) -> None:
        self.calls = Counter[str]()
        for name in ("get", "scan", "count", "turn", "commit", "time"):
            setattr(store, name, self._counted(name, getattr(store, name)))

    def _counted(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **more: Any) -> Any:
            if INSIDE.get():
                return await plain(*args, **more)
            token = INSIDE.set(True)
            try:
                return await counted(*args, **more)
            finally:
                INSIDE.reset(token)

        async def counted(*args: Any, **more: Any) -> Any:
            self.calls[name] += 1
            if name == "commit":
                self.calls["batches"] += len(args[0])
            answer = await plain(*args, **more)
            if name in ("get", "scan"):
                self.calls["read"] += sum(len(one) if type(one) in (list, tuple) else 1 for one in answer if one)
            return answer

        return call


class Figures:
    """The figures of one store."""

    def __init__(self, node: Node, store: str) -> None:
        self._node, self._tasks, self._store = node, node.tasks, store
        self._counts = Counts(node.store)

    async def of(self, what: str, count: int, call: Awaitable[Any]) -> None:
        before = Counter(self._counts.calls)
        await call
        made = self._counts.calls - before
        batches, read = made.pop("batches", 0), made.pop("read", 0)
        commits, others = made.pop("commit", 0) + made.pop("turn", 0), made.total()
        text = f"{commits / count:6.2f} writes, {batches / count:5.2f} batches"
        print(
            f"{self._store:10} {what:28} {text}, {others / count:6.2f} reads of {read / count:6.2f} records", flush=True
        )

    async def done(self, type_: str, count: int, tasks: int = 1) -> None:
        ids = await self._tasks.submit_many([Task(pool_id=POOL, type=type_, inputs={"count": count})] * tasks)
        for id_ in ids:
            ended = await self._tasks.result(id_, timeout=600)
            assert ended.state == TaskState.COMPLETED, ended.error

    async def stand(self) -> None:
        async def all_stand() -> bool:
            return await self._node.store.count([READY(), HELD()]) == [0, 0]

        await wait_until(all_stand, timeout=600)

    async def parked(self, count: int) -> list[str]:
        ids = await self._tasks.submit_many([Task(pool_id=POOL, type="waits") for _ in range(count)])
        await self.stand()
        return list(ids)

    async def signalled(self, ids: list[str]) -> None:
        async with anyio.create_task_group() as group:
            for id_ in ids:
                group.start_soon(self._tasks.signal, id_, "go")
        for id_ in ids:
            await self._tasks.result(id_, timeout=600)

    async def asked(self, count: int) -> None:
        keys = iter(range(count))

        async def ask() -> None:
            for number in keys:
                await self._node.agent(f"a{number % 100}", pool=POOL).ask(1)

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(ask)

    async def takes(self, count: int) -> None:
        """End children one by one, so that their parent waits before most of them."""
        id_ = await self._tasks.submit(Task(pool_id=POOL, type="takes", inputs={"count": count}))
        await self.stand()
        children = [child.id for child in await self._tasks.children(id_)]
        assert len(children) == count
        await self.of("a child as it ends", count, self.ended_slowly(children, id_))
        print(f"{self._store:10} their parent waited {(await self._tasks.get(id_)).parks:,} times", flush=True)

    async def ended_slowly(self, children: list[str], parent: str) -> None:
        for child in children:
            await self._tasks.signal(child, "go")
            await anyio.sleep(0.02)  # in which its parent has got to its next wait, mostly
        ended = await self._tasks.result(parent, timeout=600)
        assert ended.result == len(children), ended.error

    async def all(self, count: int) -> None:
        await self.done("ends", 0, 100)
        await self.of("a step", count, self.done("steps", count))
        await self.of("a step, 100 tasks at once", 100 * (count // 10), self.done("steps", count // 10, 100))
        await self.of("a piece of output", count, self.done("chunks", count))
        ids = await self.parked(count)
        await self.of("a signal to a result", count, self.signalled(ids))
        await self.of("an ask, 100 in flight", count, self.asked(count))
        await self.of("a child gathered", count, self.done("fans", count))
        await self.takes(count)


async def measure(store: str, url: str, count: int) -> None:
    place = f"{url}/{uuid4().hex}.db" if store == "file" else url
    network = "converge" if store in ("memory", "file") else f"n{uuid4().hex[:16]}"
    async with Node(store=place, plugins=PLUGINS.get(store, []), network=network) as node:
        await node.spawn(Bench, pool=POOL)
        await Figures(node, store).all(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--count", type=int, default=1_000, help="operations of each kind")
    arguments = parser.parse_args()
    for store in arguments.stores:
        with served(store) as url:
            anyio.run(measure, store, url, arguments.count, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
