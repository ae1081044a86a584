"""TLS on the transport's connections: verified both ways, read again when its files change, and seen by core."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, Message, Node
from converge.contracts.transport import NO_TLS, Channel
from converge.errors import ChannelError, ConfigError, ConnectionClosed, ListenFailed
from converge.testing._transport.certificates import Authority
from converge.testing.fixtures import wait_until
from converge_transport_tcp import TcpOptions, TcpTransport

WHERE = "tls://127.0.0.1:0"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "house")


@asynccontextmanager
async def pair(server: TcpOptions, client: TcpOptions) -> AsyncIterator[tuple[Channel, Channel]]:
    """Yield the two ends of a channel, after a frame has gone from the dialler to the other."""
    with anyio.fail_after(20):
        async with (
            TcpTransport.open(server) as there,
            TcpTransport.open(client) as here,
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
    async with (
        pair(TcpOptions(**server), TcpOptions(ca=authority.ca)) as (near, far),
        anyio.create_task_group() as group,
    ):
        assert near.tls_hash == far.tls_hash != NO_TLS
        group.start_soon(near.send, [big] * 40)
        group.start_soon(far.send, [big] * 40)
        for end in (near, far):
            got: list[bytes] = []
            while len(got) < 40:
                got += await end.receive()
            assert got == [big] * 40


async def test_nothing_is_kept_of_connections_that_have_ended_and_those_that_wait_end_with_their_transport(
    authority: Authority,
) -> None:
    ended: list[type[Exception]] = []

    async def receive(channel: Channel) -> None:
        try:
            await channel.receive()
        except ChannelError as error:
            ended.append(type(error))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            async with (
                TcpTransport.open(TcpOptions(**authority.issue("server"))) as there,
                TcpTransport.open(TcpOptions(ca=authority.ca)) as here,
                there.listen(WHERE) as listener,
            ):

                async def accept() -> None:
                    with suppress(ConnectionClosed):  # the listener's end
                        while True:
                            group.start_soon(receive, await listener.accept())

                group.start_soon(accept)
                for _ in range(3):
                    channel = await here.connect(listener.address)
                    assert len(here._channels) == 1
                    await channel.close()
                    assert not here._channels
                await wait_until(lambda: not listener._channels, what="the other side keeps none")  # type: ignore[attr-defined]  # of this transport
                assert len(ended) == 3
                for _ in range(2):
                    group.start_soon(receive, await here.connect(listener.address))
                await anyio.wait_all_tasks_blocked()
            await wait_until(lambda: len(ended) == 7, what="all have ended")
            group.cancel_scope.cancel()


async def test_mutual_tls_refuses_who_shows_nothing_and_takes_who_is_known(authority: Authority) -> None:
    server = TcpOptions(**authority.issue("server"), mutual=True)
    async with pair(server, TcpOptions(**authority.issue("client"))) as (near, far):
        await far.send([b"welcome"])
        assert await near.receive() == [b"welcome"]
    with pytest.raises((ChannelError, ExceptionGroup)):
        async with pair(server, TcpOptions(ca=authority.ca)) as (near, _):
            await near.receive()


async def test_a_changed_certificate_is_shown_from_the_next_connection_on(authority: Authority) -> None:
    server, client = TcpOptions(**authority.issue("server")), TcpOptions(ca=authority.ca)
    with anyio.fail_after(20):
        async with (
            TcpTransport.open(server) as there,
            TcpTransport.open(client) as here,
            there.listen(WHERE) as listener,
        ):
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


async def test_missing_files_are_told_when_listening_begins(tmp_path: Path) -> None:
    for options in (TcpOptions(), TcpOptions(certificate=str(tmp_path / "no.pem"), key=str(tmp_path / "no.pem"))):
        async with TcpTransport.open(options) as transport:
            with pytest.raises(ListenFailed, match=r"certificate|No such file"):
                async with transport.listen(WHERE):
                    pass


class Echo(Agent):
    async def on_message(self, message: Message) -> object:
        return message.payload


async def test_nodes_talk_over_tls_and_require_it(authority: Authority, tmp_path: Path) -> None:
    tls = {"tcp": authority.issue("server")}
    where: dict[str, Any] = {
        "store": f"file:{tmp_path / 'state.db'}",
        "plugins": ["tcp"],
        "grace_sec": 0.0,
        "require_tls": True,
    }
    with pytest.raises(ConfigError, match="require_tls"):
        async with Node(**where, transport="tcp://127.0.0.1:0"):
            pass
    async with Node(**where, transport=WHERE, options=tls) as one, Node(**where, transport=WHERE, options=tls) as two:
        (agent,) = await one.spawn(Echo)
        assert await two.ask(agent.id, "secret") == "secret"
