"""The research team of the examples: in one process, and in three on Redis and TCP of which two are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import anyio
import preloaded
import pytest
from research_team.team import Critic, Lead, Worker

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.testing.fixtures import wait_until, wait_until_sync
from converge.testing.fleet import expire_leases

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
POOLS = {Lead: "team", Worker: "workers", Critic: "critics"}


class Model:
    """The server that stands in for the model, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url

    def seen(self) -> dict[str, Any]:
        """What it was asked, and what is published."""
        with urlopen(f"{self.url}/calls", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def asked(self, about: str) -> list[str]:
        """What it was asked in which the word is."""
        return [call for call in self.seen()["calls"] if about in call]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    file = tmp_path_factory.mktemp("model") / "url"
    command = [sys.executable, "-m", "research_team.model_server", str(file)]
    with preloaded.start(command, env=ENVIRONMENT) as process:
        try:
            wait_until_sync(file.exists)
            yield Model(file.read_text())
        finally:
            process.kill()


def job(words: str, tokens: int = 1_000) -> Task:
    return Task(pool_id="team", inputs={"question": words, "tokens": tokens}, max_attempts=100)


@asynccontextmanager
async def team(model: Model, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """All of them in this process."""
    monkeypatch.setenv("MODEL_URL", model.url)
    async with Node(store="memory:", poll_sec=0.2) as node:
        for kind, pool in POOLS.items():
            await node.spawn(kind, pool=pool)
        yield node


async def until_waiting(tasks: TaskManager, id_: str) -> None:
    async def is_waiting() -> bool:
        return (await tasks.get(id_)).waiting_for == "approval"

    await wait_until(is_waiting, timeout=60)


async def test_a_job_is_done_within_its_budget_and_not_beyond(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    async with team(model, monkeypatch) as node:
        id_ = await node.tasks.submit(job("alpha1 alpha2"))
        await until_waiting(node.tasks, id_)
        await node.tasks.signal(id_, "approval", {"ok": True})
        done = await node.tasks.result(id_, timeout=60)
        assert done.result["is_published"] and sorted(done.result["notes"]) == ["alpha1", "alpha2"], done.error
        assert done.result["tokens"] == 20 + 4 * 40 + 2 * 15
        poor = await node.tasks.result(await node.tasks.submit(job("beta11 beta22", tokens=25)), timeout=60)
        assert (poor.state, poor.error) == (TaskState.FAILED, "its budget of 25 tokens is used up")


async def test_a_job_that_is_cancelled_withdraws_and_its_workers_end(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with team(model, monkeypatch) as node:
        id_ = await node.tasks.submit(job("gamma1 gamma2"))
        await until_waiting(node.tasks, id_)
        await node.tasks.cancel(id_, grace_sec=30)
        assert (await node.tasks.result(id_, timeout=60)).state == TaskState.CANCELLED
        assert any(call.startswith("withdraw") for call in model.asked(id_))
        assert id_ not in str(model.seen()["published"])


def started(kind: type[Agent], redis_url: str, network: str, model: Model) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("converge")), "run", f"research_team.team:{kind.__name__}"]
    command += ["--pool", POOLS[kind], "--store", redis_url, "--network", network, "--transport", "tcp://127.0.0.1:0"]
    environment = {**ENVIRONMENT, "MODEL_URL": model.url}
    return preloaded.start(command, env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.timeout(300)
async def test_three_processes_lose_and_repeat_nothing_when_two_of_them_are_killed(
    redis_url: str, model: Model
) -> None:
    network = f"n{uuid4().hex[:12]}"
    topics = [f"{network}x{n}" for n in range(4)]
    async with open_store(redis_url, plugins=["redis"], network=network) as store, AsyncExitStack() as stack:
        tasks = TaskManager(store, poll_sec=0.5)
        for pool in POOLS.values():
            await PoolManager(store).create_pool(Pool(id=pool))
        id_ = await tasks.submit(job(" ".join(topics), tokens=5_000))

        def start(kind: type[Agent]) -> subprocess.Popen[bytes]:
            process = stack.enter_context(started(kind, redis_url, network, model))
            stack.callback(process.kill)
            return process

        running = {kind: start(kind) for kind in POOLS}
        for kind, about in ((Worker, "search"), (Lead, "critic")):  # killed once that was asked

            def is_asked(about: str = about) -> bool:
                return any(network in call for call in model.asked(about))

            await wait_until(is_asked, timeout=60)
            running[kind].kill()
            running[kind].wait()
            await expire_leases(store, running[kind].pid)
            running[kind] = start(kind)
        with anyio.fail_after(120):
            await until_waiting(tasks, id_)
            await tasks.signal(id_, "approval", {"ok": True})
            done = await tasks.result(id_, timeout=60)
        assert done.result["is_published"] and sorted(done.result["notes"]) == sorted(topics), done.error
        asked = Counter(call for call in model.asked(network) if not call.startswith("critic"))
        # A process of at most four tasks at a time was killed: as many calls may have come to an end without a record.
        again = sum(count - 1 for count in asked.values())
        assert again <= 4 and max(asked.values()) <= 2, asked
        assert asked[f"planner {json.dumps(' '.join(topics))}"] == 1, "a recorded step ran again"
        assert [key for key in model.seen()["published"] if id_ in key] == [f"{done.effect_key}/publish"]
