"""Workers of durable tasks are killed at random: no recorded step runs again, no signal or child is lost or doubled."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.model.keys import CHILD, HELD, OUTBOX, TOLD

KILLS = 500 if os.environ.get("FULL_TESTS") == "1" else 4
TASKS = 6
WORKER = Path(__file__).parent / "cases/durable_worker.py"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def started(url: str, notes: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(WORKER), url, str(notes)])


@pytest.mark.timeout(3_600)
async def test_no_recorded_step_runs_again_and_nothing_is_lost_under_kills(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    chance, notes, url = random.Random(seed), tmp_path / "notes.txt", f"file:{tmp_path / 'state.db'}"
    async with open_store(url) as store:
        tasks = TaskManager(store)
        await PoolManager(store).create_pool(Pool(id="p"))
        rounds = max(1, KILLS // 4)
        for _ in range(rounds):
            ids = await tasks.submit_many([Task(pool_id="p", max_attempts=1_000) for _ in range(TASKS)])
            sent = 0
            for kill in range(5):
                with started(url, notes) as worker:
                    try:
                        if kill == 4:  # the last one ends the work
                            for at, id_ in enumerate(ids[sent:], sent):
                                await tasks.signal(id_, "go", at, key="k")
                            ended = [await tasks.result(id_, timeout=120) for id_ in ids]
                        else:
                            await anyio.sleep(chance.uniform(0.6, 1.6))  # when it is killed is left to chance
                            await tasks.signal(ids[sent], "go", sent, key="k")
                            sent += 1
                    finally:
                        worker.kill()
            ran = dict[tuple[str, str], int]()
            for line in notes.read_text().splitlines():
                id_, name, token = line.split()
                ran[id_, name] = int(token)
            for at, task in enumerate(ended):
                assert task.state == TaskState.COMPLETED, task
                last = [ran[task.id, f"s{n}"] for n in range(3)]
                assert task.result["tokens"] == last, f"a recorded step ran again; seed {seed}"
                assert task.result["payload"] == at
                assert task.result["result"] == ran[task.result["child"], "only"]
            parents = Counter(entry_task.parent_id for entry_task in await tasks.list(limit=10_000))
            assert all(parents[id_] == 1 for id_ in ids), parents
        assert list(await store.count([TOLD(), OUTBOX()])) == [0, 0]
        assert (await store.count([CHILD(), HELD()]))[1] == 0
