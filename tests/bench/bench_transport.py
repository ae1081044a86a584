"""How many messages of 256 bytes a second pass between two processes, and how long is a round trip?

    python tests/bench/bench_transport.py [--rounds 3] [--messages 200000]

Floors: a bare asyncio Protocol on uvloop. A writes each message by itself, in a step of the event loop of its own: what
one step writes, uvloop joins into one system call. B writes 64 at once. Each channel sends one frame a call, and 32; a
sealed one sends messages as items of the secure channel, 32 in a record.
What counts are ratios to floor A in the same round; the medians of the rounds are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import anyio

from converge.contracts.transport import Channel, Transport
from converge.env import SYSTEM, Env
from converge.machines.records import MESSAGE as MESSAGE_KIND
from converge.machines.secure import Terms
from converge.model.descriptor import network_tag
from converge.model.identity import Identity
from converge.runtime.network.channel import SecureChannel, accept, dial

MESSAGE = bytes(256)
LAST = b"\1" * 256
ROUND_TRIPS = 3_000
# Messages between two pauses of the senders of floor B and of the channels: what an event loop step may hold.
STEP = 1_000

Result = tuple[float, float]
KINDS = (
    "tcp uvloop",
    "tcp asyncio",
    "tcp trio",
    "ws uvloop",
    "sealed tcp uvloop",
    "sealed tcp trio",
    "sealed ws uvloop",
)


def backend_of(kind: str) -> tuple[str, dict[str, bool]]:
    return ("trio", {}) if kind.endswith("trio") else ("asyncio", {"use_uvloop": "uvloop" in kind})


@asynccontextmanager
async def opened(kind: str) -> AsyncIterator[tuple[Transport, str]]:
    if "ws" in kind.split():
        from converge_transport_ws import WsOptions, WsTransport

        async with WsTransport.open(WsOptions()) as ws:
            yield ws, "ws://127.0.0.1:0"
        return
    from converge_transport_tcp import TcpOptions, TcpTransport

    async with TcpTransport.open(TcpOptions()) as tcp:
        yield tcp, "tcp://127.0.0.1:0"


class Sealed(Channel):
    """Frames as items of a secure channel."""

    def __init__(self, channel: SecureChannel) -> None:
        self._channel = channel

    async def send(self, frames: Sequence[bytes]) -> None:
        await self._channel.send([(MESSAGE_KIND, frame) for frame in frames])

    async def receive(self) -> Sequence[bytes]:
        return [body for _, body in await self._channel.receive()]

    async def close(self) -> None:
        await self._channel.close()


async def secured(
    kind: str, channel: Channel, side: Callable[[Channel, Terms, Env], Awaitable[SecureChannel]]
) -> Channel:
    if not kind.startswith("sealed"):
        return channel
    return Sealed(
        await side(channel, Terms(network=network_tag("bench"), identity=Identity.generate(SYSTEM.entropy)), SYSTEM)
    )


async def serve_channel(kind: str) -> None:
    async with opened(kind) as (transport, address), transport.listen(address) as listener:
        print(listener.address, flush=True)
        for _ in range(3):
            channel = await secured(kind, await listener.accept(), accept)
            while True:
                try:
                    frames = await channel.receive()
                except Exception:
                    break
                # A stream of messages is answered once, at its end; a single round trip ends each time.
                if frames[-1] == LAST:
                    await channel.send([LAST])
            await channel.close()


async def drive_channel(kind: str, address: str, messages: int) -> tuple[float, float, float]:
    async with opened(kind) as (transport, _):
        rates = []
        for group in (1, 32):
            channel = await secured(kind, await transport.connect(address), dial)
            frames = [MESSAGE] * group
            began = time.perf_counter()
            for _ in range(messages // group):
                await channel.send(frames)
            await channel.send([LAST])
            await channel.receive()
            rates.append(messages / (time.perf_counter() - began))
            await channel.close()
        channel = await secured(kind, await transport.connect(address), dial)
        trips = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            await channel.send([LAST])
            await channel.receive()
            trips.append(time.perf_counter() - began)
        await channel.close()
        return rates[0], rates[1], statistics.median(trips) * 1e6


class Raw(asyncio.Protocol):
    """The floor: messages of 260 bytes, counted, the last one answered."""

    def __init__(self) -> None:
        self.rest = b""
        self.waiter: asyncio.Future[None] | None = None
        self.is_server = True
        self.resumed = asyncio.Event()
        self.resumed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self.resumed.clear()

    def resume_writing(self) -> None:
        self.resumed.set()

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data = self.rest + data
        size = 4 + len(MESSAGE)
        end = len(data) - len(data) % size
        frames = [data[start + 4 : start + size] for start in range(0, end, size)]
        self.rest = data[end:]
        if frames and frames[-1] == LAST:
            if self.is_server:
                self.transport.write(b"\0\0\1\0" + LAST)
            elif self.waiter is not None:
                self.waiter.set_result(None)


async def serve_floor(kind: str) -> None:
    server = await asyncio.get_running_loop().create_server(Raw, "127.0.0.1", 0)
    print("{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await asyncio.get_running_loop().create_future()


async def drive_floor(kind: str, address: str, messages: int) -> tuple[float, float, float]:
    host, port = address.split(":")
    loop = asyncio.get_running_loop()
    rates = []
    for group in (1, 64):
        _, raw = await loop.create_connection(Raw, host, int(port))
        raw.is_server = False
        one = b"\0\0\1\0" + MESSAGE
        began = time.perf_counter()
        for number in range(messages // group):
            raw.transport.write(one if group == 1 else b"".join([one] * group))
            if group == 1 or number % (STEP // group) == 0:
                await asyncio.sleep(0)
                await raw.resumed.wait()
        raw.waiter = loop.create_future()
        raw.transport.write(b"\0\0\1\0" + LAST)
        await raw.waiter
        rates.append(messages / (time.perf_counter() - began))
    trips = []
    for _ in range(ROUND_TRIPS):
        raw.waiter = loop.create_future()
        began = time.perf_counter()
        raw.transport.write(b"\0\0\1\0" + LAST)
        await raw.waiter
        trips.append(time.perf_counter() - began)
    return rates[0], rates[1], statistics.median(trips) * 1e6


Drive = Callable[[str, str, int], Awaitable[tuple[float, float, float]]]


def measure(kind: str, messages: int) -> tuple[float, float, float]:
    """One kind in two fresh processes: this one's child serves, another child drives."""
    command = [sys.executable, __file__, "--kind", kind, "--messages", str(messages)]
    with subprocess.Popen([*command, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        try:
            done = subprocess.run(
                [*command, "--drive", address], capture_output=True, text=True, timeout=120, check=True
            )
        finally:
            server.terminate()
    one, many, trip = (float(word) for word in done.stdout.split())
    return one, many, trip


def child(arguments: argparse.Namespace) -> None:
    kind = arguments.kind
    name, options = backend_of("uvloop" if kind == "floor" else kind)
    if arguments.serve:
        anyio.run(serve_floor if kind == "floor" else serve_channel, kind, backend=name, backend_options=options)
        return
    drive: Drive = drive_floor if kind == "floor" else drive_channel
    print(*anyio.run(drive, kind, arguments.drive, arguments.messages, backend=name, backend_options=options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        child(arguments)
        return
    print(
        f"{platform.platform()}, {platform.python_implementation()} {platform.python_version()}; 256 B, two processes, "
        "one connection"
    )
    rounds: list[dict[str, tuple[float, float, float]]] = []
    for _ in range(arguments.rounds):
        rounds.append({kind: measure(kind, arguments.messages) for kind in ("floor", *arguments.kinds)})
    print(f"{'':24}{'one a call':>12}{'/ A':>7}{'many a call':>13}{'/ A':>7}{'/ B':>7}{'round trip us':>15}")
    for kind in ("floor", *arguments.kinds):
        one, many, trip = (statistics.median(round_[kind][part] for round_ in rounds) for part in range(3))
        to_a = [statistics.median(round_[kind][part] / round_["floor"][0] for round_ in rounds) for part in range(2)]
        to_b = statistics.median(round_[kind][1] / round_["floor"][1] for round_ in rounds)
        print(f"{kind:24}{one:12,.0f}{to_a[0]:7.2f}{many:13,.0f}{to_a[1]:7.2f}{to_b:7.2f}{trip:15.0f}")


if __name__ == "__main__":
    main()
