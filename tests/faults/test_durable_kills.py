"""Processes of durable tasks are killed at each kind of write, and at random: no recorded step runs again, no signal,
child or piece of output is lost or doubled, and no key is left behind.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import preloaded
import pytest
from asking import again

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Store
from converge.model.keys import (
    CHILD,
    CHUNK,
    CUT,
    ENDED,
    GONE,
    HELD,
    KEPT,
    OUTBOX,
    READER,
    SIGNAL,
    SIGNALS,
    STEP,
    TOLD,
)  # fmt: skip
from converge.operations.tasks import Purging, purge
from converge.services.durable.agents import AgentRefs
from converge.testing.fixtures import wait_until

IS_FULL = os.environ.get("FULL_TESTS") == "1"
KILLS = {"file": 3, "redis": 2, "postgresql": 2}
"""By default; all kinds of them together, some hundreds a store, with FULL_TESTS=1."""

FULL_KILLS, A_ROUND, AT_ONCE = 500, 50, 4
PATIENCE_SEC = 20 if IS_FULL else 120
WORKER = Path(__file__).parent / "cases/durable_worker.py"
PLUGINS = {"file": [], "redis": ["redis"], "postgresql": ["sql"]}

KINDS = ("step", "chunk", "spawn", "park", "consume", "finish")
POINTS = [f"{when}:{kind}" for kind in KINDS for when in ("before", "after")]
REACHED = {"step": 2, "chunk": 2}
"""How many writes of a kind a new task is sure to make."""

OTHERS = ("random", "stopped", "before:signal", "after:signal")

OF_TASKS = (STEP, SIGNALS, SIGNAL, CHUNK, READER, CHILD, ENDED, TOLD, KEPT, GONE, OUTBOX, CUT)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Killing:
    """One store, and the processes that are killed on it."""

    def __init__(self, url: str, network: str, folder: Path, chance: random.Random) -> None:
        self.url, self.network, self.folder, self.chance = url, network, folder, chance

    def started(self, role: str, point: str, *ids: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(WORKER), role, self.url, self.network, str(self.folder), point, *ids]
        return preloaded.start(command)

    async def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it has killed itself; it must, unless there are others that took what it would have worked on."""
        with process:
            try:
                with anyio.move_on_after(PATIENCE_SEC):
                    while process.poll() is None:  # noqa: ASYNC110  # nothing says that a process has ended
                        await anyio.sleep(0.05)  # as above
                assert process.poll() == -signal.SIGKILL or (IS_FULL and process.poll() is None), process.args
            finally:
                process.kill()

    async def kill(self, point: str, id_: str) -> None:
        """Kill a process that works on the task; it is sent its signal first, so that each point is reached."""
        if point.endswith("signal"):
            await self.ended(self.started("send", point, id_))
            return
        if point not in ("random", "stopped"):
            await self.ended(
                self.started("work", f"{point}:{self.chance.randint(1, REACHED.get(point.split(':')[1], 1))}")
            )
            return
        with self.started("work", "") as worker:
            try:
                await anyio.sleep(self.chance.uniform(0.3, 1.6))  # when it is killed is left to chance
                if point == "stopped":
                    worker.send_signal(signal.SIGSTOP)
                    with self.started("work", "") as other:  # takes over what it holds
                        try:
                            await anyio.sleep(5)  # longer than its lease lasts
                            worker.send_signal(signal.SIGCONT)
                            await anyio.sleep(1)  # it meets what it has lost
                        finally:
                            other.kill()
            finally:
                worker.kill()

    def ran(self) -> dict[tuple[str, str], int]:
        """Under which claim each step ran last: the greatest of its tokens, for one that was stopped within a step may
        go through it, and note it, long after another has done so and recorded it.
        """
        last: dict[tuple[str, str], int] = {}
        for line in (self.folder / "notes.txt").read_text().splitlines():
            id_, name, token = line.split()
            last[id_, name] = max(int(token), last.get((id_, name), 0))
        return last


async def none_left(store: Store, tasks: TaskManager) -> None:
    """Sweep until what the killed have left to do is done; purge all, and sweep until nothing of any task is left."""
    sweep = tasks.durable.sweep()
    for families in ((HELD, TOLD, OUTBOX, CHILD, CUT), OF_TASKS):
        with anyio.move_on_after(60):
            while any(await store.count([family() for family in families])):
                await sweep.page()
                await anyio.sleep(0.02)  # some chores pause between their rounds
        assert not any(left := await store.count([family() for family in families])), (families, left)
        await purge(store, Purging(), is_dry_run=False)


def check(killing: Killing, ended: Sequence[Task], children: Counter[str], seed: int) -> None:
    ran = killing.ran()
    for task in ended:
        assert task.state == TaskState.COMPLETED, task
        result: Any = task.result
        assert result["tokens"] == [ran[task.id, f"s{n}"] for n in range(3)], f"a recorded step ran again; seed {seed}"
        assert result["payload"] == task.id, f"it was given another's signal; seed {seed}"
        assert result["result"] == ran[result["child"], "only"] and children[task.id] == 1, (children, seed)


@pytest.mark.timeout(7_200 if IS_FULL else 600)
@pytest.mark.parametrize("kind", ["file", "redis", "postgresql"])
async def test_nothing_is_lost_or_repeated_under_kills(
    kind: str, tmp_path: Path, redis_url: str, postgres_url: str
) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    url = {"file": f"file:{tmp_path / 'state.db'}", "redis": redis_url, "postgresql": postgres_url}[kind]
    network = "converge" if kind == "file" else f"n{uuid4().hex[:12]}"
    killing = Killing(url, network, tmp_path, chance)
    deck = [*(2 * POINTS if IS_FULL else POINTS), *(OTHERS if IS_FULL else ())]
    points = [point for _ in range(1 + FULL_KILLS // len(deck)) for point in chance.sample(deck, len(deck))]
    points = points[: FULL_KILLS if IS_FULL else KILLS[kind]]
    async with open_store(url, plugins=PLUGINS[kind], network=network) as store:
        tasks = TaskManager(store, poll_sec=0.2)
        await PoolManager(store).create_pool(Pool(id="p"))
        for at in range(0, len(points), A_ROUND):
            ids, some = list[str](), iter(points[at : at + A_ROUND])

            async def kill_some(ids: list[str] = ids, some: Iterator[str] = some) -> None:
                for point in some:
                    task = Task(pool_id="p", id=str(uuid4()), max_attempts=1_000)
                    id_ = await again(partial(tasks.submit, task))
                    ids.append(id_)
                    if not point.endswith(("signal", "park")):  # one without its signal is sure to be parked
                        await again(partial(tasks.signal, id_, "go", id_, key="k"))
                    await killing.kill(point, id_)

            async with anyio.create_task_group() as group:
                for _ in range(AT_ONCE if IS_FULL else 1):
                    group.start_soon(kill_some)
            with killing.started("work", "") as worker:  # ends the work
                try:
                    for id_ in ids:  # a repeat of those whose sender was killed
                        await tasks.signal(id_, "go", id_, key="k")
                    ended = [await tasks.result(id_, timeout=120) for id_ in ids]
                finally:
                    worker.kill()
            children = Counter(one.parent_id for one in await tasks.list(limit=10_000))
            check(killing, ended, children, seed)
            await none_left(store, tasks)


@pytest.mark.timeout(3_600 if IS_FULL else 600)
@pytest.mark.parametrize("kind", ["file", "redis", "postgresql"] if IS_FULL else ["file"])
async def test_virtual_agents_answer_each_message_once_and_in_order_under_kills(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A worker is killed around each write of an answer; what each agent was told says what it has handled."""
    servers = {"redis": "redis_url", "postgresql": "postgres_url"}
    url = request.getfixturevalue(servers[kind]) if kind in servers else f"file:{tmp_path / 'state.db'}"
    network = "converge" if kind == "file" else f"n{uuid4().hex[:12]}"
    killing = Killing(url, network, tmp_path, random.Random())
    told: dict[str, list[int]] = {"a": [], "b": []}
    async with open_store(url, plugins=PLUGINS[kind], network=network) as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        refs = AgentRefs(store)
        answers: list[Any] = []

        async def ask(key: str, message: int) -> None:
            answers.append((key, message, await refs.agent(key, pool="p").ask(message, timeout=240)))

        for number, point in enumerate((20 if IS_FULL else 1) * ("before:answer", "after:answer")):
            async with anyio.create_task_group() as group:
                for key, sent in told.items():
                    sent.append(number)
                    group.start_soon(ask, key, number)
                await killing.ended(killing.started("work", f"{point}:1"))
                with killing.started("work", "") as worker:  # answers what the killed one has left
                    try:
                        await wait_until(lambda least=2 * (number + 1): len(answers) >= least, timeout=240)  # type: ignore[misc]
                    finally:
                        worker.kill()
        assert sorted(answers) == sorted((key, n, sent[: n + 1]) for key, sent in told.items() for n in sent)
        for key, sent in told.items():
            assert await refs.agent(key, pool="p").state() == sent


@pytest.mark.timeout(600)
async def test_a_reader_that_is_killed_again_and_again_is_given_each_piece_once(tmp_path: Path) -> None:
    killing = Killing(f"file:{tmp_path / 'state.db'}", "converge", tmp_path, random.Random(1))
    async with open_store(killing.url) as store:
        tasks = TaskManager(store, poll_sec=0.2)
        await PoolManager(store).create_pool(Pool(id="p"))
        id_ = await tasks.submit(Task(pool_id="p", max_attempts=1_000))
        for point in 10 * ("before:chunk:2", "after:chunk:3") if IS_FULL else ("after:step:2", "before:park:1"):
            with killing.started("read", "", id_) as reader:
                try:
                    await killing.ended(killing.started("work", point))
                finally:
                    reader.kill()
        await tasks.cancel(id_)
        with killing.started("read", "", id_) as reader:
            assert await anyio.to_thread.run_sync(reader.wait, 120) == 0
        lines = (tmp_path / "read.txt").read_text().splitlines()
        seen = [f"{output.cursor} {output.data}" async for output in tasks.watch(id_) if output.kind == "data"]
        assert lines == seen and len(seen) >= 6
