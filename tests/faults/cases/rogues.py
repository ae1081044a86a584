"""The processes of `test_rogues.py`: a node with agents, an honest one that asks them, a rogue that has a key of its
own and keeps no measure, and one that only burns as much of a core as the rogue did.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio

from converge import Agent, Message, Node
from converge.codec import encode
from converge.env import SYSTEM
from converge.errors import ChannelError, ConvergeError
from converge.machines import records
from converge.machines.records import Item
from converge.machines.secure import Initiator, Terms
from converge.model.descriptor import AgentDescriptor, network_tag, sign_descriptor
from converge.model.envelope import MessageHeader, pack, sign
from converge.model.identity import Identity
from converge.runtime.network.channel import SecureChannel, dial
from converge.services.messages.descriptors import DESCRIPTORS, _Question

LARGE = b'"' + b"x" * 900_000 + b'"'
PAUSE_SEC = 0.01
DIALS = 500
ARRIVE_SEC = 60.0
HELLO3_BYTES = 212
BYTE_SEC, AGAIN_SEC = 0.5, 5.0
"""Between two bytes of a slow client, and before a client comes again whose connection was closed."""


def say(**what: Any) -> None:
    """Write a line to the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Echo(Agent):
    """Answers with what it was sent."""

    async def on_message(self, message: Message) -> Any:
        return message.payload


class Slow(Agent):
    """Handles one message for ever: what comes after it waits."""

    topics = ("all",)

    async def on_message(self, message: Message) -> None:
        await anyio.sleep_forever()


def node(store: str) -> Node:
    """Return a node on the store, not yet entered."""
    return Node(store=store, transport="tcp://127.0.0.1:0", plugins=["tcp"], poll_sec=0.5, grace_sec=0)


async def victim(store: str) -> None:
    """Run the agents until standard input ends."""
    async with node(store) as one:
        echoes, slow = await one.spawn(Echo, count=2), await one.spawn(Slow, count=100)
        say(endpoint=one.network.endpoints[0], echo=[agent.id for agent in echoes], slow=slow[0].id)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def honest(store: str, to: str) -> None:
    """Ask an agent again and again; write how long each answer took, until standard input ends."""
    async with node(store) as one, anyio.create_task_group() as group:

        async def ask() -> None:
            while True:
                began = time.monotonic()
                error = ""
                try:
                    await one.ask(to, {"n": 1}, timeout=10)
                except ConvergeError as problem:
                    error = f"{type(problem).__name__}: {problem}"
                say(at=began, took=time.monotonic() - began, error=error)
                await anyio.sleep(PAUSE_SEC)

        group.start_soon(ask)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        group.cancel_scope.cancel()


class Rogue:
    """A peer with a key of its own, of which nothing is listed, and the node's agents that it knows."""

    def __init__(self, echo: str, other: str, slow: str) -> None:
        self.identity, self.tag = Identity.generate(SYSTEM.entropy), network_tag("converge")
        self.echo, self.other, self.slow = echo, other, slow
        self._sequence = time.time_ns() // 1_000

    def header(self, to: str, **more: Any) -> MessageHeader:
        """Return the header of a message of its own."""
        self._sequence += 1
        values: dict[str, Any] = {"sender": self.identity.id, "lease": "a1", "sequence": self._sequence} | more
        return MessageHeader(id=os.urandom(16).hex(), to=to, sent_at=time.time_ns() // 1_000, **values)

    def signed(self, to: str, payload: bytes, **more: Any) -> Item:
        """Return a message with its signature."""
        header = self.header(to, key=self.identity.public_key.hex(), **more)
        return records.SIGNED, sign(self.identity, self.tag, header, payload)

    def plain(self, to: str, **more: Any) -> Item:
        """Return a message that the connection alone vouches for."""
        return records.MESSAGE, pack(self.header(to, **more), b"1")

    def shown(self) -> Item:
        """Return a descriptor of an agent that it runs, as long as one may be."""
        one = Identity.generate(SYSTEM.entropy)
        topics = tuple(f"t{number}" for number in range(1_500))
        key, node_key = one.public_key.hex(), self.identity.public_key.hex()
        descriptor = AgentDescriptor(id=one.id, public_key=key, node_key=node_key, topics=topics, sequence=1)
        return records.SHOWN, sign_descriptor(one, descriptor, "converge")


WAYS: dict[str, Callable[[Rogue], list[Item]]] = {
    "signed": lambda one: [one.signed(one.echo, b"1") for _ in range(100)],
    "nobody": lambda one: [one.plain("cv1" + "a" * 52) for _ in range(200)],
    "tiny": lambda one: [(records.PONG, b"")] * 10_000,
    "ping": lambda one: [(records.PING, b"")] * 1_000,
    "another's name": lambda one: [one.plain(one.echo, sender=one.other) for _ in range(200)],
    "full inbox": lambda one: [one.signed(one.slow, LARGE)],
    "fan-out": lambda one: [one.signed("", LARGE, topic="all")],
    "unread answers": lambda one: [one.signed(one.echo, LARGE, wants="handled")],
    "shown": lambda one: [one.shown() for _ in range(4)],
    "asked": lambda one: [
        (records.MESSAGE, pack(one.header("", wants=DESCRIPTORS), encode(_Question(is_back=True)))) for _ in range(50)
    ],
}
"""What a rogue sends at full speed, by the way in which it keeps no measure; made once, and sent again and again."""


async def rogue(endpoint: str, *known: str) -> None:
    """For each line of standard input, a way and for how many seconds: send so at full speed under a new key, dialling
    again where the node ends the connection. Write how much was sent, and how much CPU it took.
    """
    say(ready=True)
    while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        way, _, sec = line.strip().rpartition(" ")
        one, before, sent, left = Rogue(*known), time.process_time(), 0, float(sec)
        for _ in range(DIALS):
            some, used = await _flood(one, way, endpoint, left)
            sent, left = sent + some, left - used
            if left <= 0:
                break
            await anyio.sleep(PAUSE_SEC)
        say(sent=sent, cpu=time.process_time() - before)


async def _flood(one: Rogue, way: str, endpoint: str, sec: float) -> tuple[int, float]:
    """Send over one connection until it ends, or for so long once it stands; return how many batches, and how long."""
    sent, began = 0, 0.0
    try:
        async with connected(one, endpoint) as secured, anyio.create_task_group() as group:
            began = time.monotonic()
            group.cancel_scope.deadline = anyio.current_time() + sec
            if way != "unread answers":
                group.start_soon(drain, secured)
            while True:
                sent += 1
                await secured.send(WAYS[way](one))
    except* (ChannelError, OSError):
        pass  # the node has ended the connection
    return sent, time.monotonic() - began if began else 0.0


@asynccontextmanager
async def connected(one: Rogue, endpoint: str) -> AsyncIterator[SecureChannel]:
    """Give a channel of the rogue's to the node."""
    from converge_transport_tcp.options import TcpOptions
    from converge_transport_tcp.transport import TcpTransport

    async with TcpTransport.open(TcpOptions()) as transport:
        channel = await transport.connect(endpoint)
        yield await dial(channel, Terms(network=one.tag, identity=one.identity), SYSTEM)


async def drain(secured: SecureChannel) -> None:
    """Read what the node answers."""
    while True:
        await secured.receive()


class Crowd:
    """Clients of other loopback addresses, none of which ever ends a handshake: some say nothing, some a byte at a
    time, some garbage, some a hello that is one, and some garbage after it.
    """

    def __init__(self, host: str, port: int, count: int) -> None:
        self.host, self.port, self.connected = host, port, 0
        self.missing = set(range(count))
        self.are_all_there = anyio.Event()
        terms = Terms(network=network_tag("converge"), identity=Identity.generate(SYSTEM.entropy))
        hello = Initiator(terms, SYSTEM.entropy).hello1()
        self._says = [b"", _framed(hello), _framed(os.urandom(48)), _framed(hello), _framed(hello)]

    async def client(self, number: int) -> None:
        """Connect again and again."""
        address = f"127.0.{1 + number // 250 % 200}.{1 + number % 250}"
        while True:
            with suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with await anyio.connect_tcp(self.host, self.port, local_host=address) as stream:
                    self._arrived(number)
                    kind = number % len(self._says)
                    says = self._says[kind]
                    for at in range(len(says)) if kind == 1 else ():
                        await stream.send(says[at : at + 1])
                        await anyio.sleep(BYTE_SEC)
                    if kind > 1:
                        await stream.send(says)
                    await stream.receive()
                    if kind == 4:
                        await stream.send(_framed(os.urandom(HELLO3_BYTES)))
                        await stream.receive()
            await anyio.sleep(AGAIN_SEC)

    def _arrived(self, number: int) -> None:
        self.connected += 1
        self.missing.discard(number)
        if not self.missing:
            self.are_all_there.set()


def _framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


async def crowd(endpoint: str, count: str, sec: str) -> None:
    """Be so many clients for so long, counted from when each has been connected once; write how much CPU that took."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    host, _, port = endpoint.rpartition("/")[2].rpartition(":")
    one = Crowd(host, int(port), int(count))
    async with anyio.create_task_group() as group:
        for number in range(int(count)):
            group.start_soon(one.client, number)
        with anyio.move_on_after(ARRIVE_SEC):
            await one.are_all_there.wait()
        await anyio.sleep(float(sec))
        group.cancel_scope.cancel()
    say(connected=one.connected, missing=len(one.missing), cpu=time.process_time())


async def newcomers(endpoint: str) -> None:
    """For each line of standard input, dial the node under a new key; write how long its answer took."""
    say(ready=True)
    while await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        began, error = time.monotonic(), ""
        try:
            async with connected(Rogue("", "", ""), endpoint):
                pass
        except (ChannelError, OSError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        say(took=time.monotonic() - began, error=error)


async def burner() -> None:
    """For each line of standard input, how many seconds and how much CPU in them: use that, and nothing else."""
    say(ready=True)
    while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        sec, left = map(float, line.split())
        until = time.monotonic() + sec
        while time.monotonic() < until:
            part = left / max(0.01, until - time.monotonic())
            began, enough = time.process_time(), min(1.0, part) * PAUSE_SEC
            while time.process_time() - began < enough and time.monotonic() < until:
                pass
            left -= time.process_time() - began
            await anyio.sleep(max(0.0, PAUSE_SEC - enough))
        say(left=left)


ROLES: dict[str, Callable[..., Awaitable[None]]] = {
    "victim": victim, "honest": honest, "rogue": rogue, "burner": burner, "crowd": crowd, "newcomers": newcomers
}  # fmt: skip

if __name__ == "__main__":
    anyio.run(ROLES[sys.argv[1]], *sys.argv[2:])
