"""What do messages of 256 bytes cost between two nodes over TCP, as shares of a bare protocol in the same run?

    python tests/bench/bench_messages.py [--rounds 7] [--pairs 200]

*floor A*: a bare asyncio Protocol on uvloop, one system call a message, nothing sealed. Of the others, acknowledged,
authenticated and encrypted, *send, 64 in flight* and *ask, 64 in flight* are `node.send` and `node.ask` to one agent;
*ack=None* is the same with nothing acknowledged, counted until the last was handled; *send, pairs* and *ask, pairs* are
agents' own, `--pairs` pairs with one message under way each; *send, one in flight* is `node.send` alone, its round trip
against that of the floor. *signed* is `node.send` with `proof="signed"`, against this core's Ed25519 verifications.

Everything of a round runs on uvloop in two fresh processes. What counts are ratios of the same round; since a machine
that is busy with something else takes turns away from both processes, the CPU time of each side is told as well.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import anyio
from bench_transport import LAST, MESSAGE, Raw, serve_floor

from converge import Agent, Identity, Message, Node
from converge.env import SYSTEM
from converge.model.identity import verify
from converge.operations.run import tune_interpreter

PAYLOAD = "x" * 256
ANY = "tcp://127.0.0.1:0"
AT_ONCE = 64
FRAME_HEAD = b"\0\0\1\0"
TRIPS = 3_000
DRIVE_SEC = 300

Figures = dict[str, float]
Serve = Callable[[str, int], Coroutine[Any, Any, None]]
Drive = Callable[[str, str, int, int], Coroutine[Any, Any, Figures]]


class Echo(Agent):
    """Answers with what it gets."""

    async def on_message(self, message: Message) -> object:
        return message.payload


class Sent:
    """CPU time of this process and of another one while messages pass between them."""

    def __init__(self, other: int, found: Figures) -> None:
        self._other, self.found = other, found

    async def measure(self, name: str, messages: int, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work; note messages a second, and microseconds of CPU a message here and there."""
        there, here, began = cpu_sec(self._other), time.process_time(), time.perf_counter()
        await work()
        self.found[name] = messages / (time.perf_counter() - began)
        self.found[f"{name}; CPU here, us"] = (time.process_time() - here) / messages * 1e6
        self.found[f"{name}; CPU there, us"] = (cpu_sec(self._other) - there) / messages * 1e6


def cpu_sec(pid: int) -> float:
    """Return the CPU time of all threads of a process; 0 where the system does not tell."""
    spent = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        spent += int(thread.read_text().split()[0])
    return spent / 1e9


async def together(works: Sequence[Callable[[], Coroutine[None, None, None]]]) -> None:
    """Do all of this at once."""
    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(work)


async def serve_node(where: str, pairs: int) -> None:
    """Run one agent for each pair."""
    async with Node(store=f"file:{where}", transport=ANY, plugins=["tcp"]) as node:
        agents = await node.spawn(Echo, count=pairs)
        print(os.getpid(), *(agent.id for agent in agents), flush=True)
        await anyio.sleep_forever()


async def drive_node(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Send and ask in each way."""
    pid, *others = address.split()
    to, found = others[0], Figures()
    sent = Sent(int(pid), found)
    async with Node(store=f"file:{where}", transport=ANY, plugins=["tcp"]) as node:
        own = await node.spawn(Echo, count=pairs)
        await node.ask(to, PAYLOAD)  # dialled, and every descriptor known

        async def each(count: int, call: Callable[[], Awaitable[object]]) -> None:
            for _ in range(count):
                await call()

        def flight(call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
            return lambda: together([lambda: each(messages // AT_ONCE, call)] * AT_ONCE)

        async def unacknowledged() -> None:
            await flight(lambda: node.send(to, PAYLOAD, ack=None))()
            await node.ask(to, "last")

        def of_pairs(send: Callable[[Agent, str], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
            works = [
                lambda a=a, b=b: each(messages // pairs, lambda: send(a, b)) for a, b in zip(own, others, strict=True)
            ]
            return lambda: together(works)

        trips = list[float]()

        async def trip() -> None:
            began = time.perf_counter()
            await node.send(to, PAYLOAD)
            trips.append(time.perf_counter() - began)

        few = messages // 10
        await sent.measure("send, 64 in flight", messages, flight(lambda: node.send(to, PAYLOAD)))
        await sent.measure("ask, 64 in flight", messages, flight(lambda: node.ask(to, PAYLOAD)))
        await sent.measure("ack=None", messages, unacknowledged)
        await sent.measure("send, pairs", messages, of_pairs(lambda a, b: a.send(b, PAYLOAD)))
        await sent.measure("ask, pairs", messages, of_pairs(lambda a, b: a.ask(b, PAYLOAD)))
        await sent.measure("send, one in flight", few, lambda: each(few, trip))
        found["send, one in flight; p50, us"] = statistics.median(trips) * 1e6
        await sent.measure("signed", messages, flight(lambda: node.send(to, PAYLOAD, proof="signed")))
    return found


async def serve_bare(where: str, pairs: int) -> None:
    """Serve floor A."""
    print(os.getpid(), end=" ")
    await serve_floor("floor")


async def drive_bare(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Drive floor A, and see how fast this core verifies signatures."""
    pid, address = address.split()
    host, port = address.split(":")
    loop, sent = asyncio.get_running_loop(), Sent(int(pid), Figures())
    _, raw = await loop.create_connection(Raw, host, int(port))
    raw.is_server = False

    async def last() -> None:
        raw.waiter = loop.create_future()
        raw.transport.write(FRAME_HEAD + LAST)
        await raw.waiter

    async def one_by_one() -> None:
        for _ in range(messages):
            raw.transport.write(FRAME_HEAD + MESSAGE)
            await asyncio.sleep(0)  # uvloop joins what one step writes into one system call
            await raw.resumed.wait()
        await last()

    trips = list[float]()

    async def trip() -> None:
        for _ in range(TRIPS):
            began = time.perf_counter()
            await last()
            trips.append(time.perf_counter() - began)

    await sent.measure("floor A", messages, one_by_one)
    await sent.measure("floor A, one in flight", TRIPS, trip)
    found = sent.found | {"floor A, one in flight; p50, us": statistics.median(trips) * 1e6}
    identity, count = Identity.generate(SYSTEM.entropy), 2_000
    signature = identity.sign(MESSAGE)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(count):
        verify(identity.public_key, signature, MESSAGE)
    cpu_us = (time.process_time() - cpu_began) / count * 1e6
    found["Ed25519 verifications"] = count / (time.perf_counter() - began)
    return found | {"Ed25519 verifications; CPU here, us": cpu_us, "Ed25519 verifications; CPU there, us": cpu_us}


SERVE: dict[str, Serve] = {"floor": serve_bare, "node": serve_node}
DRIVE: dict[str, Drive] = {"floor": drive_bare, "node": drive_node}


def measure(script: str, kind: str, arguments: argparse.Namespace, messages: int) -> Figures:
    """One kind in two fresh processes that run the script."""
    with tempfile.TemporaryDirectory(prefix="bench-messages-", dir=Path.cwd()) as folder:
        words = ["--kind", kind, "--where", f"{folder}/store.db", "--pairs", str(arguments.pairs)]
        command = [sys.executable, script, *words, "--messages", str(messages)]
        command += ["--profile", arguments.profile] if arguments.profile else []
        with subprocess.Popen([*command, "--serve"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            try:
                done = subprocess.run(
                    [*command, "--drive", address], stdout=subprocess.PIPE, text=True, timeout=DRIVE_SEC, check=True
                )
            finally:
                server.terminate()
    figures: Figures = json.loads(done.stdout)
    return figures


def child(arguments: argparse.Namespace, serve: dict[str, Serve], drive: dict[str, Drive]) -> None:
    """Serve, or drive and print what was found."""
    tune_interpreter()
    uvloop = {"use_uvloop": True}
    side = "serve" if arguments.serve else "drive"
    profile = cProfile.Profile()
    if arguments.profile == side:
        profile.enable()
    try:
        if arguments.serve:
            anyio.run(serve[arguments.kind], arguments.where, arguments.pairs, backend_options=uvloop)
            return
        found = anyio.run(
            drive[arguments.kind],
            arguments.drive,
            arguments.where,
            arguments.pairs,
            arguments.messages,
            backend_options=uvloop,
        )
        print(json.dumps(found))
    finally:
        profile.disable()
        if arguments.profile == side:
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(60)


def to_floor(name: str, one: Figures) -> float:
    """Return a figure's share of the floor that it is compared with, in the same round."""
    what, _, part = name.partition("; ")
    floor = "Ed25519 verifications" if what.startswith(("signed", "Ed25519")) else "floor A"
    floor += ", one in flight" if what.endswith("one in flight") else ""
    return one[name] / one[f"{floor}; {part}" if part else floor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--messages", type=int, default=200_000, help="of the floor")
    parser.add_argument("--sends", type=int, default=20_000, help="messages, and questions, of the node")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--profile", choices=SIDES, help="print where one side spends its time")
    parser.add_argument("--json", action="store_true")
    for name in ("--kind", "--where", "--drive"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        child(arguments, SERVE, DRIVE)
        return
    if arguments.quick:
        arguments.rounds, arguments.messages, arguments.sends = 1, 50_000, 4_000
    rounds: list[Figures] = []
    for _ in range(arguments.rounds):
        one = Figures()
        for kind in SERVE:
            one |= measure(__file__, kind, arguments, arguments.sends if kind == "node" else arguments.messages)
        rounds.append(one)
    tell(rounds, to_floor, as_json=arguments.json)


def tell(rounds: list[Figures], to_floor: Callable[[str, Figures], float], *, as_json: bool) -> None:
    """Print the medians of the rounds, and of the ratios of each."""
    results = {}
    for name in rounds[0]:
        shares = sorted(to_floor(name, one) for one in rounds)
        results[name] = {
            "value": round(statistics.median(one[name] for one in rounds), 1),
            "to_floor": round(statistics.median(shares), 3),
            "least": round(shares[0], 3),
            "greatest": round(shares[-1], 3),
        }
    if as_json:
        head = {"v": 1, "command": sys.argv, "python": platform.python_version(), "machine": platform.machine()}
        print(json.dumps(head | {"load": os.getloadavg()[0], "results": results}))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {len(rounds)} rounds; medians")
    for name, found in results.items():
        print(
            f"{name:36}{found['value']:>12,.1f}{found['to_floor']:>10.3f} of its floor "
            f"({found['least']:.3f}-{found['greatest']:.3f})"
        )


SIDES = ("serve", "drive")

if __name__ == "__main__":
    main()
