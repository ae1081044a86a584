"""Three processes of twenty agents each: all see each other, talk in every way with every receipt accounted for, and
share tasks, while one process is killed, another comes, and one is restarted.

With `FULL_TESTS=1` there are 10,000 messages and 2,000 tasks.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, Capability, DiscoveryQuery, Task
from converge.errors import MessageError
from converge.testing.fixtures import wait_until
from converge.testing.fleet import all_terminal, expire_leases
from converge.testing.place import Place

IS_FULL = os.environ.get("FULL_TESTS") == "1"
MESSAGES, TASKS = (10_000, 2_000) if IS_FULL else (600, 100)
AGENTS, SENDERS = 20, 20
FANOUTS = 50
"""One of so many messages goes to a topic, or to a pool."""

TALKERS = DiscoveryQuery(capabilities=["talk"])

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Sender(Agent):
    """Sends only."""


PAIRS = [("redis", "tls"), ("sql", "ws")] if IS_FULL else [("redis", "tcp")]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def place(request: pytest.FixtureRequest, place_of: Callable[[str, str], Place]) -> Place:
    """Each store with another transport, one of them with TLS."""
    return place_of(*request.param)


async def test_three_processes_of_twenty_agents_talk_and_work_through_a_kill_and_a_restart(
    place: Place, tmp_path: Path
) -> None:
    fleet = place.fleet(tmp_path)
    try:
        processes = [fleet.start("--transport", place.transport, agents=AGENTS) for _ in range(2)]
        async with place.node() as node:
            senders = await node.spawn(Sender, count=SENDERS)
            known = await _talkers(node, 2 * AGENTS)
            assert len({one.node_key for one in known}) == 2
            ids = await node.tasks.submit_many([Task(pool_id=place.pool, inputs={"n": n}) for n in range(TASKS)])
            outcomes: Counter[str] = Counter()
            fanned: Counter[str] = Counter()

            async def talk(sender: Agent, number: int) -> None:
                to: Any = Capability("talk") if number % 4 == 0 else known[number % len(known)].id
                try:
                    if number % FANOUTS == 1:
                        if number % (2 * FANOUTS) == 1:
                            told = await sender.publish("tests", {"do": "echo"}, timeout=20)
                        else:
                            told = await sender.broadcast(place.pool, {"do": "echo"}, timeout=20)
                        fanned.update("error" if one.error else "node" for one in told)
                        assert all(one.accepted + one.refused <= AGENTS for one in told)
                    elif number % 4 == 3:
                        await sender.ask(to, {"do": "echo", "say": number}, timeout=20)
                    else:
                        await sender.send(to, {"do": "note", "number": number}, timeout=20)
                    outcomes["receipt"] += 1
                except MessageError as error:
                    outcomes[type(error).__name__] += 1

            async def talk_on(first: int) -> None:
                for number in range(first, MESSAGES, SENDERS):
                    await talk(senders[first], number)

            async with anyio.create_task_group() as group:
                for first in range(SENDERS):
                    group.start_soon(talk_on, first)
                await wait_until(lambda: outcomes.total() > MESSAGES // 3, timeout=60, what="a third is sent")
                processes[0].send_signal(signal.SIGKILL)
                await anyio.to_thread.run_sync(processes[0].wait)
                await expire_leases(node.store, processes[0].pid)
                fleet.start("--transport", place.transport, agents=AGENTS)
                await wait_until(lambda: outcomes.total() > MESSAGES // 2, timeout=60, what="a half is sent")
                processes[1].send_signal(signal.SIGTERM)  # and one is restarted
                await anyio.to_thread.run_sync(processes[1].wait)
                fleet.start("--transport", place.transport, agents=AGENTS)
            assert fanned["node"], "topic and pool were sent to"
            assert outcomes.total() == MESSAGES, "each send ended in a receipt or a typed error"
            assert outcomes["receipt"] >= MESSAGES // 3
            assert set(outcomes) <= {"receipt", "DeliveryTimeout", "Undeliverable", "Dropped", "HandlerFailed"}
            await all_terminal(node.tasks, ids, timeout=90)
            after = await _talkers(node, 2 * AGENTS)
            assert len({one.node_key for one in after}) == 2
            for topic_or_pool in (await node.publish("tests", {"do": "echo"}), await node.broadcast(place.pool, 1)):
                assert [(one.accepted, one.error) for one in topic_or_pool] == [(AGENTS, "")] * 2
    finally:
        fleet.kill_all()


async def _talkers(node: Any, count: int) -> list[Any]:
    found: list[Any] = []

    async def are_there() -> bool:
        found[:] = await node.discovery.query(TALKERS)
        return len(found) == count

    await wait_until(are_there, timeout=60, what=f"{count} talkers are known")
    return found
