"""TLS on the transport's connections: verified both ways, read again when its files change, and seen by core."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from converge import Agent, Message, Node
from converge.contracts.transport import NO_TLS, Channel
from converge.errors import ChannelError, ConfigError, ListenFailed
from converge.testing._transport.certificates import Authority
from converge_transport_ws import WsOptions, WsTransport

WHERE = "wss://127.0.0.1:0/c"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The library runs on asyncio only."""
    return "asyncio"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "house")


@asynccontextmanager
async def pair(server: WsOptions, client: WsOptions) -> AsyncIterator[tuple[Channel, Channel]]:
    """Yield the two ends of a channel, after a frame has gone from the dialler to the other."""
    with anyio.fail_after(20):
        async with (
            WsTransport.open(server) as there,
            WsTransport.open(client) as here,
            there.listen(WHERE) as listener,
            anyio.create_task_group() as group,
        ):
            ends: list[Channel] = []

            async def accept() -> None:
                ends.append(await listener.accept())
                assert await ends[0].receive() == [b"hello"]

            group.start_soon(accept)
            near = await here.connect(listener.address)
            await near.send([b"hello"])
            while len(ends) < 1:
                await anyio.lowlevel.checkpoint()
            yield near, ends[0]
            group.cancel_scope.cancel()


async def test_frames_pass_and_both_sides_see_the_same_certificate(authority: Authority) -> None:
    server = authority.issue("server")
    big = bytes(range(256)) * 255
    async with pair(WsOptions(**server), WsOptions(ca=authority.ca)) as ends, anyio.create_task_group() as group:
        near, far = ends
        assert near.tls_hash == far.tls_hash != NO_TLS
        group.start_soon(near.send, [big] * 40)
        group.start_soon(far.send, [big] * 40)
        for end in (near, far):
            got: list[bytes] = []
            while len(got) < 40:
                got += await end.receive()
            assert got == [big] * 40


async def test_mutual_tls_refuses_who_shows_nothing_and_takes_who_is_known(authority: Authority) -> None:
    server = WsOptions(**authority.issue("server"), mutual=True)
    async with pair(server, WsOptions(**authority.issue("client"))) as (near, far):
        await far.send([b"welcome"])
        assert await near.receive() == [b"welcome"]
    with pytest.raises((ChannelError, ExceptionGroup)):
        async with pair(server, WsOptions(ca=authority.ca)) as (near, _):
            await near.receive()


async def test_a_changed_certificate_is_shown_from_the_next_connection_on(authority: Authority) -> None:
    server, client = WsOptions(**authority.issue("server")), WsOptions(ca=authority.ca)
    with anyio.fail_after(20):
        async with WsTransport.open(server) as there, WsTransport.open(client) as here, there.listen(WHERE) as listener:
            seen = []
            for _ in range(2):
                async with anyio.create_task_group() as group:

                    async def accept() -> None:
                        channel = await listener.accept()
                        assert await channel.receive() == [b"hello"]
                        seen.append(channel.tls_hash)

                    group.start_soon(accept)
                    near = await here.connect(listener.address)
                    await near.send([b"hello"])
                assert near.tls_hash == seen[-1]
                authority.issue("server")
            assert seen[0] != seen[1]


def leave(sock: socket.socket) -> None:
    """Reset the connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def talk(sock: socket.socket) -> None:
    sock.sendall(b"GET /c HTTP/1.1\r\n\r\n")


def be_silent(sock: socket.socket) -> None:
    """Let the upgrade's time run out."""


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": one}) for one in (False, True)], ids=str)
@pytest.mark.parametrize("behave", [leave, talk, be_silent])
async def test_who_speaks_no_tls_is_let_go_at_once_and_leaves_no_traceback(
    authority: Authority, behave: Callable[[socket.socket], None]
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    options = WsOptions(**authority.issue("server"), connect_sec=0.2)
    with anyio.fail_after(20):
        async with WsTransport.open(options) as there, there.listen(WHERE) as listener:
            port = int(listener.address.removesuffix("/c").rpartition(":")[2])
            with closing(socket.create_connection(("127.0.0.1", port))) as sock:
                channel = await listener.accept()
                behave(sock)
                with pytest.raises(ChannelError, match=r"no node|TLS failed"):
                    await channel.receive()
    del channel
    gc.collect()
    assert told == []


async def test_missing_files_are_told_when_listening_begins(tmp_path: Path) -> None:
    for options in (WsOptions(), WsOptions(certificate=str(tmp_path / "no.pem"), key=str(tmp_path / "no.pem"))):
        async with WsTransport.open(options) as transport:
            with pytest.raises(ListenFailed, match=r"certificate|No such file"):
                async with transport.listen(WHERE):
                    pass


class Echo(Agent):
    async def on_message(self, message: Message) -> object:
        return message.payload


async def test_nodes_talk_over_tls_and_require_it(authority: Authority, tmp_path: Path) -> None:
    tls = {"ws": authority.issue("server")}
    where: dict[str, Any] = {
        "store": f"file:{tmp_path / 'state.db'}",
        "plugins": ["ws"],
        "grace_sec": 0.0,
        "require_tls": True,
    }
    with pytest.raises(ConfigError, match="require_tls"):
        async with Node(**where, transport="ws://127.0.0.1:0/c"):
            pass
    async with Node(**where, transport=WHERE, options=tls) as one, Node(**where, transport=WHERE, options=tls) as two:
        (agent,) = await one.spawn(Echo)
        assert await two.ask(agent.id, "secret") == "secret"
