"""Certification: what connections do when their peer, or what is below them, suffers, and beside another release."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from converge.contracts.transport import Channel, Listener, Transport
from converge.errors import ChannelError
from converge.testing._check.given import current
from converge.testing._check.load import (
    LOADED,
    Note,
    Progress,
    first_line,
    forked_child,
    given,
    kill,
    recovers,
    release_in,
)
from converge.testing._check.transports import _Checked, is_on_the_wire
from converge.testing._processes.peers import name_of
from converge.testing.clauses import expect, expect_equal
from converge.testing.fixtures import wait_until
from converge.testing.proxy import byte_proxy

CUTS = 6
PAUSE_SEC = 0.05
"""How long who could not connect waits before the next try."""


class _Talk(Progress):
    """Asks one thing after another of a peer that echoes, and connects again where a channel ends."""

    def __init__(self, transport: Transport, address: str) -> None:
        super().__init__()
        self._transport, self._address = transport, address
        self.lost = 0

    async def run(self) -> None:
        for _ in range(1_000_000):
            try:
                channel = await self._transport.connect(self._address)
                try:
                    await self._ask(channel)
                finally:
                    await channel.close()
            except ChannelError:
                self.lost += 1
            except Exception as error:
                kind = f"{type(error).__module__}.{type(error).__qualname__}"
                expect("C-4", False, f"an error of the driver came out of a call: {kind}: {error}")
            await anyio.sleep(PAUSE_SEC)  # the peer may listen again at any time, and tells nobody

    async def _ask(self, channel: Channel) -> None:
        while True:
            frame = b"%d" % self.number
            await channel.send([frame])
            expect_equal("C-1", [*await channel.receive()], [frame], "what a peer echoed")
            self.tell()


async def _echo(listener: Listener) -> None:
    async def serve(channel: Channel) -> None:
        with suppress(ChannelError):
            while True:
                await channel.send(await channel.receive())

    async with anyio.create_task_group() as group:
        while True:
            group.start_soon(serve, await listener.accept())


@asynccontextmanager
async def _echoing(transport: Transport, address: str) -> AsyncIterator[str]:
    """Echo at an address while the block lasts; yield the address as bound."""
    async with transport.listen(address) as listener, anyio.create_task_group() as group:
        group.start_soon(_echo, listener)
        yield listener.address
        group.cancel_scope.cancel()


@asynccontextmanager
async def _talking(transport: Transport, address: str) -> AsyncIterator[_Talk]:
    """Talk to the peer at an address, from its first answer on until the block ends."""
    talk = _Talk(transport, address)
    async with anyio.create_task_group() as group:
        group.start_soon(talk.run)
        await talk.begun("C-1", "no frame is echoed by a peer that is well")
        yield talk
        group.cancel_scope.cancel()


ECHO = """import sys
from importlib import import_module
import anyio

def found(module, path):
    one = import_module(module)
    for name in path.split("."):
        one = getattr(one, name)
    return one

async def serve(channel):
    try:
        while True:
            await channel.send(await channel.receive())
    except Exception:  # its channel has ended, of which this side tells
        pass

async def main(address, opens, options):
    async with found(*opens)(found(*options)()) as transport, transport.listen(address) as listener:
        async with anyio.create_task_group() as group:
            print(listener.address, flush=True)
            while True:
                group.start_soon(serve, await listener.accept())

anyio.run(main, sys.argv[1], sys.argv[2:4], sys.argv[4:6])
"""


class TestCertification(_Checked):
    """Two that talk: after whatever befalls them they talk again within `near_sec`, and hear nothing wrong."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        """Return the event loop."""
        return "asyncio"

    @pytest.mark.anyio
    async def test_a_restarted_peer(self, address: str, options: Any, record_property: Note) -> None:
        """C-7: a peer ends, and listens again at its address."""
        async with (
            self.backend.open(options) as near,
            self.backend.open(options) as far,
            anyio.create_task_group() as group,
        ):
            async with _echoing(far, address) as where:
                talk = _Talk(near, where)
                group.start_soon(talk.run)
                await talk.begun("C-1", "no frame is echoed by a peer that is well")
            async with _echoing(far, where):
                await recovers("C-7", talk, "restart", record_property)
                group.cancel_scope.cancel()

    @pytest.mark.anyio
    async def test_connections_that_are_cut(self, address: str, options: Any, record_property: Note) -> None:
        """C-4: connections break again and again, in the midst of a frame of either direction."""
        _on_the_wire()
        async with (
            self.backend.open(options) as transport,
            _echoing(transport, address) as where,
            byte_proxy(where) as proxy,
            _talking(transport, proxy.address) as talk,
        ):
            for number in range(CUTS):
                way, before = ("up", "down")[number % 2], talk.lost
                setattr(proxy, f"cut_{way}_after", len(getattr(proxy, f"seen_{way}")) + 1)
                await wait_until(lambda: talk.lost > before, timeout=current().near_sec)  # noqa: B023  # awaited here
                setattr(proxy, f"cut_{way}_after", None)
                await recovers("C-4", talk, "cut", record_property)

    @pytest.mark.anyio
    async def test_a_forked_child(self, address: str, options: Any, record_property: Note) -> None:
        """C-9: a child that is forked, lives beside and ends holds up nobody."""
        async with (
            self.backend.open(options) as transport,
            _echoing(transport, address) as where,
            _talking(transport, where) as talk,
        ):
            async with forked_child():
                await recovers("C-9", talk, "fork", record_property)
            expect("C-9", await talk.goes_on(current().near_sec), "nothing is echoed after a forked child ended")

    @pytest.mark.anyio
    async def test_two_releases_side_by_side(self, address: str, options: Any, record_property: Note) -> None:
        """C-1: this release talks to another one."""
        python = given("other_python")
        _on_the_wire()
        opens, made = name_of(self.backend.open, "open"), name_of(type(options), "options")
        releases = [release_in(one, opens.module) for one in (sys.executable, python)]
        if releases[0] == releases[1]:
            pytest.skip(f"not tried: {python} has the same release, {releases[0]}")
        places = [address, opens.module, opens.attribute, made.module, made.attribute]
        command = [python, "-P", "-c", ECHO, *places]
        async with await anyio.open_process(command) as other:
            try:
                where, said = await first_line(other)
                expect("C-7", bool(where), f"another release does not listen: {said}")
                async with self.backend.open(options) as transport, _talking(transport, where):
                    pass
            finally:
                kill(other)
        record_property("releases", f"{' and '.join(releases)}: {LOADED} frames and more, both ways")


def _on_the_wire() -> None:
    if not is_on_the_wire():
        pytest.skip("not tried: seen between TCP connections without TLS alone, whose bench has `oversized`")
