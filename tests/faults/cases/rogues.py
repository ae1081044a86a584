"""The processes of `test_rogues.py`: a node with agents, an honest one that asks them, a rogue that has a key of its
own and keeps no measure, and one that only burns as much of a core as the rogue did.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from converge import Agent, Message, Node
from converge.codec import encode
from converge.env import SYSTEM
from converge.errors import ChannelError, ConvergeError
from converge.machines import records
from converge.machines.records import Item
from converge.machines.secure import Terms
from converge.model.descriptor import AgentDescriptor, network_tag, sign_descriptor
from converge.model.envelope import MessageHeader, pack, sign
from converge.model.identity import Identity
from converge.runtime.network.channel import SecureChannel, dial
from converge.services.messages.descriptors import DESCRIPTORS, _Question

LARGE = b'"' + b"x" * 900_000 + b'"'
PAUSE_SEC = 0.01
DIALS = 500


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
    "victim": victim, "honest": honest, "rogue": rogue, "burner": burner
}  # fmt: skip

if __name__ == "__main__":
    anyio.run(ROLES[sys.argv[1]], *sys.argv[2:])
