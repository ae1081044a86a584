"""What do steps, waits, output, children and virtual agents cost beside what the store does anyway?

    python tests/bench/bench_durable.py --stores memory file redis postgresql

Each figure is a ratio or a count within one run, or a rate of one process that does both ends, so that it can be read
on a machine with other work: *step* is the median of steps of one task beside plain commits of a like batch, taken
in turns; *at once* the rate of 100 tasks' steps beside 100 callers' grouped commits; *readers* the median from a piece
of output to its last of three readers beside that of one; *signals* how many commits 200 at once to one task take;
*asks* 100 in flight to 100 virtual agents; *children* 1,000 spawned and gathered by one task.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import anyio
from bench_pairs import PLUGINS, STORES, served

from converge import Agent, Node, Task, TaskState
from converge.codec import encode
from converge.contracts.store import Batch
from converge.machines.durable import Step, held_key
from converge.model.keys import SIGNALS, STEP
from converge.model.working import RUNS

POOL = "bench"
NEW = 100
"""Pieces of output during which readers are new, and look by themselves."""

Measure = Callable[[Task], Awaitable[Any]]
MEASURES: dict[str, Measure] = {}


def nothing() -> int:
    return 1


async def nothing_async() -> int:
    return 1


class Bench(Agent):
    """Runs a measurement within a handler, or the part of a task that one needs."""

    concurrency = 100

    async def on_task(self, task: Task) -> Any:
        return await MEASURES[task.type](task)

    async def on_ask(self, state: int | None, message: object) -> tuple[int, int]:
        return (state or 0) + 1, 1


async def timed(call: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


async def commit(task: Task, number: int) -> None:
    """A plain commit of what a step writes: a check of the claim, and one record."""
    runs: Any = RUNS.get()
    ledger = runs.attempt(task.id, task.token, "bench").ledger
    batch = Batch([held_key(ledger.found)], [(STEP(ledger.id, 0, f"x{number}"), encode(Step(number, 1, 1)))])
    await (await ledger.handle.commits()).commit([batch])


async def steps(task: Task) -> dict[str, float]:
    """The median of a step, and that of a plain commit, in turns."""
    await task.step("first", nothing_async)
    found: dict[str, list[float]] = {"step": [], "commit": []}
    for number in range(task.inputs["count"]):
        found["step"].append(await timed(task.step(f"s{number}", nothing_async)))
        found["commit"].append(await timed(commit(task, number)))
    return {name: statistics.median(all_) for name, all_ in found.items()}


async def many_steps(task: Task) -> float:
    """Seconds of some steps, or of as many commits."""
    await task.step("first", nothing_async)
    began = time.perf_counter()
    for number in range(task.inputs["count"]):
        await (commit(task, number) if task.inputs["plain"] else task.step(f"s{number}", nothing_async))
    return time.perf_counter() - began


async def speaks(task: Task) -> None:
    """Put out the moment at which it does, now and then."""
    await task.wait_for("go")
    for _ in range(task.inputs["count"]):
        await task.emit(time.perf_counter())
        await anyio.sleep(0.02)  # readers are idle when the next piece comes


async def waits(task: Task) -> int:
    """Wait for one signal."""
    await task.wait_for("go")
    return 1


async def fans(task: Task) -> int:
    """Spawn many children and gather them."""
    children = [await task.spawn(Task(pool_id=POOL, type="child"), f"c{n}") for n in range(task.inputs["count"])]
    return len(await task.gather(*children))


async def child(task: Task) -> int:
    return 1


MEASURES |= {one.__name__: one for one in (steps, many_steps, speaks, waits, fans, child)}


FIGURES = {"step": 300, "at_once": 20, "readers": 100, "signals": 1_000, "asks": 2_000, "children": 1_000}
"""The figures, each with how many times its subject is done."""


class Figures:
    """The figures of one store, each printed as soon as it is known."""

    def __init__(self, node: Node, store: str) -> None:
        self._node, self._store, self._tasks = node, store, node.tasks

    async def all(self, scale: float, names: Sequence[str]) -> None:
        for name in names:
            await getattr(self, name)(max(5, int(FIGURES[name] * scale)))

    def say(self, what: str, text: str) -> None:
        print(f"{self._store:10} {what:9} {text}", flush=True)

    async def done(self, task: Task) -> Any:
        ended = await self._tasks.result(await self._tasks.submit(task), timeout=300)
        assert ended.state == TaskState.COMPLETED, ended.error
        return ended.result

    async def step(self, count: int) -> None:
        found = await self.done(Task(pool_id=POOL, type="steps", inputs={"count": count}))
        step, plain = found["step"] * 1_000, found["commit"] * 1_000
        self.say("step", f"{step / plain:.2f} of a plain commit: {step:.3f} ms, {plain:.3f} ms")

    async def at_once(self, count: int) -> None:
        rates = {}
        for plain in (True, False):
            inputs = {"count": count, "plain": plain}
            tasks = [Task(pool_id=POOL, type="many_steps", inputs=inputs) for _ in range(100)]
            ids = await self._tasks.submit_many(tasks)
            took = [(await self._tasks.result(id_, timeout=300)).result for id_ in ids]
            rates[plain] = 100 * count / statistics.median(took)
        ratio = rates[False] / rates[True]
        self.say("at once", f"{ratio:.2f} of grouped commits: {rates[False]:,.0f} and {rates[True]:,.0f} a second")

    async def readers(self, count: int) -> None:
        medians = {}
        for readers in (1, 3):
            id_ = await self._tasks.submit(Task(pool_id=POOL, type="speaks", inputs={"count": NEW + count}))
            late: dict[float, float] = {}

            async def read(id_: str = id_, late: dict[float, float] = late) -> None:
                async for output in self._tasks.watch(id_):
                    if output.kind == "data" and int(output.cursor.split(".")[1]) >= NEW:
                        late[output.data] = time.perf_counter() - output.data

            async with anyio.create_task_group() as group:
                for _ in range(readers):
                    group.start_soon(read)
                await self._tasks.signal(id_, "go")
            medians[readers] = statistics.median(late.values()) * 1_000
        ratio = medians[3] / medians[1]
        self.say("readers", f"the last of three {ratio:.2f} of one: {medians[3]:.2f} ms, {medians[1]:.2f} ms")

    async def parked(self, count: int) -> list[str]:
        ids = await self._tasks.submit_many([Task(pool_id=POOL, type="waits") for _ in range(count)])
        left = set(ids)
        while left:
            for id_ in list(left):
                if (await self._tasks.get(id_)).state == TaskState.WAITING:
                    left.discard(id_)
            await anyio.sleep(0.05)
        return ids

    async def signals(self, count: int) -> None:
        (id_,) = await self.parked(1)
        store: Any = self._tasks._store
        calls, plain = 0, store.commit

        async def counted(batches: Any, **more: Any) -> Any:
            nonlocal calls
            calls += any(key[0] is SIGNALS for batch in batches for key, _ in batch.puts)
            return await plain(batches, **more)

        store.commit = counted
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(self._tasks.signal, id_, "go" if number == 199 else "other", number)
        store.commit = plain
        self.say("signals", f"200 at once to one task take {calls} commits")
        ids = await self.parked(count)
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for id_ in ids:
                group.start_soon(self._tasks.signal, id_, "go")
        sent = time.perf_counter() - began
        for id_ in ids:
            await self._tasks.result(id_, timeout=300)
        ended = time.perf_counter() - began
        self.say("signals", f"{count / sent:,.0f} a second; to the end of the tasks {count / ended:,.0f} a second")

    async def asks(self, count: int) -> None:
        keys = iter(range(count))
        began = time.perf_counter()

        async def ask() -> None:
            for number in keys:
                await self._node.agent(f"a{number % 100}", pool=POOL).ask(1)

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(ask)
        self.say("asks", f"{count / (time.perf_counter() - began):,.0f} a second, 100 in flight to 100 virtual agents")

    async def children(self, count: int) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        assert await self.done(Task(pool_id=POOL, type="fans", inputs={"count": count})) == count
        took, used = time.perf_counter() - began, time.process_time() - cpu
        self.say("children", f"{count:,} spawned and gathered in {took:.2f} s, of which {used:.2f} s of this process")


async def measure(store: str, url: str, scale: float, names: Sequence[str]) -> None:
    place = f"{url}/{uuid4().hex}.db" if url.startswith("file:") else url
    network = "converge" if store in ("memory", "file") else f"n{uuid4().hex[:16]}"
    async with Node(store=place, plugins=PLUGINS.get(store, []), network=network) as node:
        await node.spawn(Bench, pool=POOL)
        await Figures(node, store).all(scale, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--figures", nargs="+", default=list(FIGURES), choices=FIGURES)
    parser.add_argument("--scale", type=float, default=1.0, help="how much of it: 0.1 takes some seconds")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    gc.set_threshold(100_000, 20, 20)
    for store in arguments.stores:
        with served(store) as url:
            anyio.run(measure, store, url, arguments.scale, arguments.figures, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
