"""What do messages of 256 bytes cost between two processes over TCP, from a bare protocol up to `node.send` and
`node.ask`?

    python tests/bench/bench_messages.py [--rounds 3] [--pairs 200]

*floor A*: a bare asyncio Protocol on uvloop, one write a message, nothing sealed. *link*: `runtime/link.py`, one item a
call, sealed; what one loop step sends leaves in one record. *send* and *ask*: the whole path from agent to agent,
`--pairs` pairs at once, each with one message under way.
*send, one pair*: as many senders, all of one agent to one other. *one process*: both agents in the driving process, one
message at a time.
*ask, idle*: one pair, the time of one question and its answer. Everything of a round runs on uvloop in two fresh
processes; what counts are the ratios to floor A in the same round.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.lowlevel import checkpoint
from bench_transport import MESSAGE, drive_floor, serve_floor

from converge import Agent, Identity, Message, Node
from converge.env import SYSTEM
from converge.machines.records import MESSAGE as ITEM
from converge.machines.records import RECEIPT, Item
from converge.machines.secure import Terms
from converge.model.descriptor import network_tag
from converge.runtime.agents.background import Background
from converge.runtime.network.link import Link
from converge.runtime.network.links import Links
from converge_transport_tcp import TcpOptions, TcpTransport

STEP = 250
"""Messages that the link's sender gives in one loop step: about what a busy process has at hand."""

ASKS = 1_000
PAYLOAD = "x" * 256
ANY = "tcp://127.0.0.1:0"

Figures = dict[str, float]


class Echo(Agent):
    """Answers with what it gets."""

    async def on_message(self, message: Message) -> object:
        return message.payload


# The link alone.


@asynccontextmanager
async def links(on_items: Callable[[Link, list[Item]], Awaitable[None]]) -> AsyncIterator[tuple[Links, bytes, str]]:
    """Open links that listen; give them with the node's key and its endpoint."""
    identity = Identity.generate(SYSTEM.entropy)
    async with (
        TcpTransport.open(TcpOptions()) as transport,
        transport.listen(ANY) as listener,
        anyio.create_task_group() as group,
    ):
        terms = Terms(network=network_tag("bench"), identity=identity)
        own = Links(transport, terms, SYSTEM, Background(group, SYSTEM), on_items)
        group.start_soon(own.serve, listener)
        yield own, identity.public_key, listener.address
        group.cancel_scope.cancel()


async def serve_link(where: str, pairs: int) -> None:
    """Answer the message that says it is the last."""

    async def on_items(link: Link, items: list[Item]) -> None:
        if items[-1][1][:1] == b"!":
            await link.send([(RECEIPT, b"")])

    async with links(on_items) as (_, key, address):
        print(key.hex(), address, flush=True)
        await anyio.sleep_forever()


async def drive_link(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Send one item a call; count until the last is answered."""
    key, endpoint = address.split()
    answered = anyio.Event()

    async def on_items(link: Link, items: list[Item]) -> None:
        answered.set()

    async with links(on_items) as (own, _, _):
        link = await own.to(bytes.fromhex(key), [endpoint])
        began = time.perf_counter()
        for number in range(messages):
            await link.send([(ITEM, MESSAGE)])
            if number % STEP == 0:
                await checkpoint()
        await link.send([(ITEM, b"!" + MESSAGE[1:])])
        await answered.wait()
        return {"link": messages / (time.perf_counter() - began)}


# The whole node.


async def serve_node(where: str, pairs: int) -> None:
    """Run one agent for each pair."""
    async with Node(store=f"file:{where}", transport=ANY, plugins=["tcp"]) as node:
        agents = await node.spawn(Echo, count=pairs)
        print(*(agent.id for agent in agents), flush=True)
        await anyio.sleep_forever()


async def drive_node(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Send and ask between all pairs at once, then ask one at a time."""
    others = address.split()
    async with Node(store=f"file:{where}", transport=ANY, plugins=["tcp"]) as node:
        own = await node.spawn(Echo, count=pairs)
        await node.ask(others[0], PAYLOAD)  # dialled, and every descriptor known
        each = messages // pairs

        async def send(agent: Agent, other: str) -> None:
            for _ in range(each):
                await agent.send(other, PAYLOAD)

        async def ask(agent: Agent, other: str) -> None:
            for _ in range(each):
                await agent.ask(other, PAYLOAD)

        found = {"send": await together(send, own, others, each), "ask": await together(ask, own, others, each)}
        # The pairs' number of senders on one pair: its messages are under way together, and arrive in order.
        found["send, one pair"] = await together(send, own[:1] * pairs, others[:1] * pairs, each)
        each *= pairs  # the next two have one sender that waits for each
        found["send, one process"] = await together(send, own[:1], [own[1].id], each)
        found["ask, one process"] = await together(ask, own[:1], [own[1].id], each)
        trips = []
        for _ in range(ASKS):
            began = time.perf_counter()
            await own[0].ask(others[0], PAYLOAD)
            trips.append(time.perf_counter() - began)
        return {**found, "ask, idle, us": statistics.median(trips) * 1e6}


async def together(
    work: Callable[[Agent, str], Coroutine[None, None, None]], own: Sequence[Agent], others: Sequence[str], each: int
) -> float:
    """Do the work for all pairs at once; return messages a second."""
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for agent, other in zip(own, others, strict=True):
            group.start_soon(work, agent, other)
    return len(own) * each / (time.perf_counter() - began)


# Floor A, and the processes.


async def serve_bare(where: str, pairs: int) -> None:
    """Serve floor A."""
    await serve_floor("floor")


async def drive_bare(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Drive floor A."""
    one, _, trip = await drive_floor("floor", address, messages)
    return {"floor A": one, "floor A, round trip, us": trip}


SERVE = {"floor": serve_bare, "link": serve_link, "node": serve_node}
DRIVE = {"floor": drive_bare, "link": drive_link, "node": drive_node}


def measure(kind: str, arguments: argparse.Namespace) -> Figures:
    """One kind in two fresh processes."""
    messages = arguments.sends if kind == "node" else arguments.messages
    with tempfile.TemporaryDirectory(prefix="bench-messages-", dir=Path.cwd()) as folder:
        command = [
            sys.executable,
            __file__,
            "--kind",
            kind,
            "--where",
            f"{folder}/store.db",
            "--pairs",
            str(arguments.pairs),
            "--messages",
            str(messages),
        ]
        command += ["--profile"] if arguments.profile else []
        with subprocess.Popen([*command, "--serve"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            try:
                done = subprocess.run(
                    [*command, "--drive", address], stdout=subprocess.PIPE, text=True, timeout=120, check=True
                )
            finally:
                server.kill()
    figures: Figures = json.loads(done.stdout)
    return figures


def child(arguments: argparse.Namespace) -> None:
    """Serve, or drive and print what was found."""
    uvloop = {"use_uvloop": True}
    if arguments.serve:
        anyio.run(SERVE[arguments.kind], arguments.where, arguments.pairs, backend_options=uvloop)
        return
    profile = cProfile.Profile()
    if arguments.profile:
        profile.enable()
    found = anyio.run(
        DRIVE[arguments.kind],
        arguments.drive,
        arguments.where,
        arguments.pairs,
        arguments.messages,
        backend_options=uvloop,
    )
    if arguments.profile:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--messages", type=int, default=200_000, help="of the floor and of the link")
    parser.add_argument("--sends", type=int, default=10_000, help="messages, and questions, of the node")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--profile", action="store_true", help="print where the driving process spends its time")
    parser.add_argument("--json", action="store_true")
    for name in ("--kind", "--where", "--drive"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        child(arguments)
        return
    if arguments.quick:
        arguments.rounds, arguments.messages, arguments.sends = 1, 50_000, 2_000
    rounds: list[Figures] = []
    for _ in range(arguments.rounds):
        rounds.append({name: value for kind in SERVE for name, value in measure(kind, arguments).items()})
    results = {}
    for name in rounds[0]:
        base = "floor A, round trip, us" if name.endswith("us") else "floor A"
        results[name] = {
            "value": round(statistics.median(one[name] for one in rounds)),
            "to_floor": round(statistics.median(one[name] / one[base] for one in rounds), 3),
        }
    if arguments.json:
        print(
            json.dumps(
                {
                    "v": 1,
                    "command": sys.argv,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "results": results,
                }
            )
        )
        return
    for name, found in results.items():
        print(f"{name:26}{found['value']:>12,}{found['to_floor']:>10.3f} of floor A")


if __name__ == "__main__":
    main()
