"""What do links cost between two processes, below the agents: as shares of what does the same without a link?

    python tests/bench/bench_links.py [--rounds 7]

*link, one by one* and *link, coalesced*: message objects of 256 bytes, packed, sealed, opened and unpacked; each in a
step of the event loop of its own, and 64 a step. Their floor is a bare asyncio Protocol, one system call a message.
*link, signed* and *link, signed together*: the same, 64 a step, each with a signature of its own and all of a step with
one, verified; their floor is what this core verifies of Ed25519 signatures.
*link, 16 KiB x 8*: items of 16 KiB over eight connections at once, against eight bare Protocols. *ws, one* and
*ws, many*: frames of 256 bytes over our WebSocket transport, one a call and 32 a call, against the websockets library
alone. Everything runs on uvloop in two fresh processes; what counts are ratios of the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
from bench_messages import ANY, Drive, Figures, Sent, Serve, child, drive_bare, measure, serve_bare, tell
from msgspec import structs

from converge import Identity
from converge.env import SYSTEM
from converge.errors import ConnectionLost
from converge.machines.records import MESSAGE as ITEM
from converge.machines.records import RECEIPT, SIGNED, SIGNED_TOGETHER, Item
from converge.machines.secure import Terms
from converge.model.descriptor import network_tag
from converge.model.envelope import TOGETHER, MessageHeader, open_signed, pack, unpack
from converge.model.together import Together
from converge.runtime.agents.background import Background
from converge.runtime.network.link import Link
from converge.runtime.network.links import Links
from converge.services.messages.under_way import Signer
from converge_transport_tcp import TcpOptions, TcpTransport
from converge_transport_ws import WsOptions, WsTransport

HEADER = MessageHeader("0" * 32, "cv1" + "a" * 52, "cv1" + "b" * 52, "0" * 16, 1, 1_700_000_000_000_000)
PAYLOAD, LAST = b'"' + b"x" * 254 + b'"', b'"' + b"z" * 254 + b'"'
AT_ONCE, CONNECTIONS, LARGE, WS_GROUP = 64, 8, 16_384, 32


# Links.


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
    """Unpack what comes; answer the message that says it is the last."""

    together = Together(network_tag("bench"))
    opens: dict[int, Callable[[bytes], Any]] = {
        ITEM: lambda body: unpack(body, MessageHeader),
        SIGNED: lambda body: open_signed(body, network_tag("bench")),
        SIGNED_TOGETHER: together.open,
    }

    async def on_items(link: Link, items: list[Item]) -> None:
        for kind, body in items:
            if len(body) < LARGE:
                _, payload = opens[kind](body)
                if payload == LAST:
                    link.post([(RECEIPT, b"")])

    async with links(on_items) as (_, key, address):
        print(os.getpid(), key.hex(), address, flush=True)
        await anyio.sleep_forever()


async def drive_link(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Send message objects in each way."""
    pid, key, endpoint = address.split()
    sent = Sent(int(pid), Figures())
    answered = [anyio.Event()]

    async def on_items(link: Link, items: list[Item]) -> None:
        answered[0].set()

    async def send(link: Link, step: int, made: Callable[[], Item], count: int) -> None:
        for number in range(count):
            item = made()
            if not link.offer(item):
                await link.send([item])
            if number % step == step - 1:
                await asyncio.sleep(0)  # as the floor does

    async def answer(link: Link) -> None:
        answered[0] = anyio.Event()
        await link.send([(ITEM, pack(HEADER, LAST))])
        await answered[0].wait()

    async def objects(link: Link, step: int) -> None:
        await send(link, step, lambda: (ITEM, pack(HEADER, PAYLOAD)), messages)
        await answer(link)

    identity = Identity.generate(SYSTEM.entropy)
    signer = Signer(identity, network_tag("bench"), lambda: HEADER.sent_at)
    header = structs.replace(HEADER, sender=identity.id)

    async def signed(link: Link, features: int, count: int) -> None:
        await send(link, AT_ONCE, lambda: signer.item(header, PAYLOAD, features), count)
        await answer(link)

    async def large(all_: list[Link]) -> None:
        body = bytes(LARGE)
        async with anyio.create_task_group() as group:
            for link in all_:
                group.start_soon(send, link, 4, lambda: (ITEM, body), messages // 16 // CONNECTIONS)
        for link in all_:
            await answer(link)

    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(links(on_items)) for _ in range(CONNECTIONS)]
        all_ = [await own.to(bytes.fromhex(key), [endpoint]) for own, _, _ in opened]
        await sent.measure("link, one by one", messages, lambda: objects(all_[0], 1))
        await sent.measure("link, coalesced", messages, lambda: objects(all_[0], AT_ONCE))
        for name, features, part in (("link, signed", 0, 20), ("link, signed together", TOGETHER, 2)):
            await sent.measure(name, messages // part, partial(signed, all_[0], features, messages // part))
        await sent.measure("link, 16 KiB x 8", messages // 16, lambda: large(all_))
    return sent.found


# Bare Protocols with 16 KiB.


class Counting(asyncio.Protocol):
    """Counts bytes, and answers when all are there."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            self.answered.set_result(None)
            return
        self.left -= len(data)
        if self.left == 0:
            self.transport.write(b"!")


async def serve_large(where: str, messages: int) -> None:
    """Serve eight connections. `messages`: of all of them."""
    size = messages // 16 // CONNECTIONS * LARGE
    server = await asyncio.get_running_loop().create_server(lambda: Counting(size), "127.0.0.1", 0)
    print(os.getpid(), "{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await anyio.sleep_forever()


async def drive_large(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Write to eight connections."""
    pid, address = address.split()
    host, port = address.split(":")
    sent, body = Sent(int(pid), Figures()), bytes(LARGE)

    async def one() -> None:
        _, raw = await asyncio.get_running_loop().create_connection(lambda: Counting(-1), host, int(port))
        for _ in range(messages // 16 // CONNECTIONS):
            raw.transport.write(body)
            await asyncio.sleep(0)
            await raw.writable.wait()
        await raw.answered

    async def all_() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(CONNECTIONS):
                group.start_soon(one)

    await sent.measure("bare, 16 KiB x 8", messages // 16, all_)
    return sent.found


# WebSockets.


async def serve_ws(where: str, pairs: int) -> None:
    """Serve the library alone, and our transport on it."""
    from websockets.asyncio.server import ServerConnection, serve

    async def bare(connection: ServerConnection) -> None:
        async for message in connection:
            if message == LAST:
                await connection.send(b"!")

    async with (
        serve(bare, "127.0.0.1", 0, compression=None) as server,
        WsTransport.open(WsOptions()) as transport,
        transport.listen("ws://127.0.0.1:0") as listener,
    ):
        print(os.getpid(), server.sockets[0].getsockname()[1], listener.address, flush=True)
        channel = await listener.accept()
        with suppress(ConnectionLost):  # when the other process is done
            while True:
                if (await channel.receive())[-1] == LAST:
                    await channel.send([b"!"])
        await anyio.sleep_forever()


async def drive_ws(address: str, where: str, pairs: int, messages: int) -> Figures:
    """Send frames with the library alone, and with our transport."""
    from websockets.asyncio.client import connect

    pid, port, endpoint = address.split()
    sent = Sent(int(pid), Figures())

    async def each(send: Callable[[list[bytes]], Awaitable[None]], receive: Callable[[], Any], group: int) -> None:
        frames = [PAYLOAD] * group
        for _ in range(messages // group):
            await send(frames)
        await send([LAST])
        await receive()

    async with connect(f"ws://127.0.0.1:{port}", compression=None) as bare:

        async def send_bare(frames: list[bytes]) -> None:
            await bare.send(frames[0])

        await sent.measure("bare ws", messages, lambda: each(send_bare, bare.recv, 1))
    async with WsTransport.open(WsOptions()) as transport:
        channel = await transport.connect(endpoint)
        await sent.measure("ws, one", messages, lambda: each(channel.send, channel.receive, 1))
        await sent.measure("ws, many", messages, lambda: each(channel.send, channel.receive, WS_GROUP))
        await channel.close()
    return sent.found


SERVE: dict[str, Serve] = {"floor": serve_bare, "link": serve_link, "large": serve_large, "ws": serve_ws}
DRIVE: dict[str, Drive] = {"floor": drive_bare, "link": drive_link, "large": drive_large, "ws": drive_ws}


def to_floor(name: str, one: Figures) -> float:
    """Return a figure's share of the floor that it is compared with, in the same round."""
    what, _, part = name.partition("; ")
    kinds = {"ws": "bare ws", "16 KiB": "bare, 16 KiB x 8", "signed": "Ed25519 verifications"}
    floor = next((floor for kind, floor in kinds.items() if kind in what), "floor A")
    return one[name] / one.get(f"{floor}; {part}" if part else floor, one[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", action="store_true")
    for name in ("--kind", "--where", "--drive", "--profile"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        serve = {**SERVE, "large": lambda where, pairs: serve_large(where, arguments.messages)}
        child(arguments, serve, DRIVE)
        return
    if arguments.quick:
        arguments.rounds, arguments.messages = 1, 20_000
    rounds: list[Figures] = []
    for _ in range(arguments.rounds):
        one = Figures()
        for kind in SERVE:
            one |= measure(__file__, kind, arguments, arguments.messages)
        rounds.append(one)
    tell(rounds, to_floor, as_json=arguments.json)


if __name__ == "__main__":
    main()
