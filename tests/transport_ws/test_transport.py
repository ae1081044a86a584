"""What is special to WebSocket: paths, the HTTP head, origins, redirects, TLS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from converge import Node
from converge.contracts.transport import Listener
from converge.errors import BadRecord, ConfigError, ConnectFailed, ConnectionLost, ListenFailed, MessageTooLarge
from converge.testing.proxy import host_and_port
from converge_transport_ws import WsOptions, WsTransport
from converge_transport_ws.connection import HEAD_BYTES, Head
from converge_transport_ws.framing import MESSAGE_BYTES, pack, unpack
from converge_transport_ws.transport import BACKLOG

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)


@pytest.fixture(params=["asyncio"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def listening(path: str = "/", connect_sec: float = 10.0) -> AsyncIterator[tuple[WsTransport, Listener]]:
    with anyio.fail_after(30):
        async with (
            WsTransport.open(WsOptions(connect_sec=connect_sec)) as transport,
            transport.listen(f"ws://127.0.0.1:0{path}") as listener,
        ):
            yield transport, listener


async def answer_to(listener: Listener, request: str) -> str:
    """The head of the answer to a request; nothing if the connection just ended."""
    host, port = host_and_port(listener.address)
    async with await anyio.connect_tcp(host, port) as stream:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            await stream.send(request.encode())
            return (await stream.receive()).decode()
    return ""


async def test_wss_needs_a_certificate_to_listen() -> None:
    async with WsTransport.open(WsOptions()) as transport:
        with pytest.raises(ListenFailed, match="set certificate and key"):
            async with transport.listen("wss://127.0.0.1:0/"):
                pass


async def test_another_path_of_the_port_is_somebody_elses() -> None:
    async with listening("/node") as (transport, listener):
        assert listener.address.endswith("/node")
        with pytest.raises(ConnectFailed, match="404"):
            await transport.connect(listener.address.replace("/node", "/other"))
        with pytest.raises(ConnectionLost, match="has not upgraded"):
            await (await listener.accept()).receive()
        near = await transport.connect(listener.address)
        far = await listener.accept()
        await near.send([b"here"])
        assert await far.receive() == [b"here"]


MISSING, ONLY, SCHEME = (
    "host or port is missing",
    "only ws://HOST:PORT/PATH is understood",
    "the scheme is not ws or wss",
)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ws://host", MISSING),
        ("ws://:1/", MISSING),
        ("http://host:1/", SCHEME),
        ("ws://user:secret@host:1/", ONLY),
        ("ws://host:1/?x=1", ONLY),
        ("ws://host:1/#x", ONLY),
        ("", SCHEME),
    ],
)
async def test_an_address_that_is_not_host_port_and_path_is_refused_on_both_sides(address: str, why: str) -> None:
    async with WsTransport.open(WsOptions()) as transport:
        with pytest.raises(ConnectFailed, match=why):
            await transport.connect(address)
        with pytest.raises(ListenFailed, match=why):
            async with transport.listen(address):
                pass


async def test_a_head_of_eight_kibibytes_is_the_longest() -> None:
    async with listening() as (_, listener):
        bare = len(UPGRADE.format(path="/", more="X: \r\n"))
        fits = UPGRADE.format(path="/", more="X: " + "y" * (HEAD_BYTES - bare) + "\r\n")
        assert len(fits) == HEAD_BYTES
        assert (await answer_to(listener, fits)).startswith("HTTP/1.1 101")
        assert (
            await answer_to(listener, UPGRADE.format(path="/", more="X: " + "y" * (HEAD_BYTES - bare + 1) + "\r\n"))
            == ""
        )
        assert await answer_to(listener, "GET / HTTP/1.1\r\n" + "X: yyyyyyyyyyyyyyyy\r\n" * 500) == ""


def test_a_head_is_measured_to_its_end_however_it_is_cut() -> None:
    head = b"x" * (HEAD_BYTES - 4) + b"\r\n\r\n"
    for cut in (1, 1_000, len(head) - 1, len(head)):
        watch = Head()
        pieces = [head[start : start + cut] for start in range(0, len(head), cut)]
        assert not any(watch.is_too_long(piece) for piece in pieces)
        # What follows are frames.
        assert not watch.is_too_long(bytes(100_000))
    assert not Head().is_too_long(head + bytes(100_000))
    assert Head().is_too_long(b"x" + head)
    assert Head().is_too_long(bytes(HEAD_BYTES + 1))


async def test_a_page_of_a_browser_gets_no_channel() -> None:
    async with listening() as (_, listener):
        answer = await answer_to(listener, UPGRADE.format(path="/", more="Origin: http://evil.example\r\n"))
        assert answer.startswith("HTTP/1.1 403")


async def test_compression_is_not_agreed() -> None:
    async with listening() as (_, listener):
        answer = await answer_to(
            listener, UPGRADE.format(path="/", more="Sec-WebSocket-Extensions: permessage-deflate\r\n")
        )
        assert answer.startswith("HTTP/1.1 101")
        assert "permessage-deflate" not in answer


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("426 Upgrade Required", "a proxy on the way drops the headers Upgrade and Connection"),
        ("502 Bad Gateway", "a proxy on the way does not reach the node behind it"),
        ("301 Moved Permanently", "no redirect is followed"),
        ("403 Forbidden", "a proxy on the way refuses nodes"),
        ("404 Not Found", "no node has this path"),
    ],
)
async def test_what_a_proxy_answers_in_place_of_a_node_is_told_as_the_reason(status: str, why: str) -> None:
    async def refuse(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    async with (
        listening() as (transport, _),
        await anyio.create_tcp_listener(local_host="127.0.0.1") as server,
        anyio.create_task_group() as group,
    ):
        group.start_soon(server.serve, refuse)
        with pytest.raises(ConnectFailed, match=f"{status[:3]}: .*{why}"):
            await transport.connect(f"ws://127.0.0.1:{server.extra(anyio.abc.SocketAttribute.local_port)}/")
        group.cancel_scope.cancel()


async def test_a_redirect_is_not_followed() -> None:
    async def redirect(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(f"HTTP/1.1 302 Found\r\nLocation: {target.address}\r\nContent-Length: 0\r\n\r\n".encode())

    async with listening() as (transport, target), await anyio.create_tcp_listener(local_host="127.0.0.1") as server:
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve, redirect)
            with pytest.raises(ConnectFailed, match="302"):
                await transport.connect(f"ws://127.0.0.1:{server.extra(anyio.abc.SocketAttribute.local_port)}/")
            group.cancel_scope.cancel()
        with anyio.move_on_after(0.1) as scope:
            await target.accept()
        assert scope.cancelled_caught


async def test_a_proxy_from_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "ws_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with listening() as (transport, listener):
        near = await transport.connect(listener.address)
        await near.send([b"here"])
        assert await (await listener.accept()).receive() == [b"here"]


async def test_an_upgrade_that_is_not_done_ends_in_time() -> None:
    async with listening(connect_sec=1.0) as (_, listener):
        host, port = host_and_port(listener.address)
        async with await anyio.connect_tcp(host, port) as stream:
            far = await listener.accept()
            assert far.peer == "{}:{}".format(*stream.extra(anyio.abc.SocketAttribute.local_address))
            with anyio.fail_after(10), pytest.raises(ConnectionLost, match="has not upgraded"):
                await far.receive()


async def test_the_subprotocol_is_agreed_and_its_absence_tolerated() -> None:
    async with listening() as (_, listener):
        offered = UPGRADE.format(path="/", more="Sec-WebSocket-Protocol: other, converge.v1\r\n")
        assert "Sec-WebSocket-Protocol: converge.v1" in await answer_to(listener, offered)
        answer = await answer_to(listener, UPGRADE.format(path="/", more=""))
        assert answer.startswith("HTTP/1.1 101") and "Sec-WebSocket-Protocol" not in answer


def test_the_frames_of_a_call_share_messages_within_the_limit() -> None:
    sent = [bytes(100)] * 3_000 + [bytes(65_535)] * 5
    messages = list(pack(sent, 65_535))
    assert [frame for message in messages for frame in unpack(message)] == sent
    assert max(map(len, messages)) <= MESSAGE_BYTES
    assert len(messages) < 10
    with pytest.raises(MessageTooLarge):
        pack([b"a", bytes(65_536)], 65_535)


@pytest.mark.parametrize(
    "message", [b"", b"\0", b"\0\0", b"\0\1", b"\0\1ab", b"\0\2a", b"\0\1a\0", b"\0\1a\0\0", b"\0\0\0\1a"]
)
def test_a_message_whose_lengths_do_not_add_up_is_refused(message: bytes) -> None:
    with pytest.raises(BadRecord):
        unpack(message)


async def test_connections_that_nobody_accepts_are_bounded() -> None:
    async with listening(connect_sec=20.0) as (transport, listener):
        channels = [await transport.connect(listener.address) for _ in range(BACKLOG)]
        with pytest.raises(ConnectFailed, match=r"ended|HTTP|closed"), anyio.fail_after(10):  # at once
            await transport.connect(listener.address)
        await channels[0].send([b"first"])
        assert await (await listener.accept()).receive() == [b"first"]


@pytest.mark.parametrize("written", ["/a%20b", "/%C3%BC", "/a//b/", "/~x/(1)", "/%22"])
async def test_a_path_is_dialled_as_it_is_written(written: str) -> None:
    async with listening(written) as (transport, listener):
        assert listener.address.endswith(written)
        near = await transport.connect(listener.address)
        far = await listener.accept()
        await near.send([b"hello"])
        assert await far.receive() == [b"hello"]


@pytest.mark.parametrize(
    ("setting", "path", "written"),
    [
        ("transport", "/a b", "/a%20b"),
        ("transport", "/ü", "/%C3%BC"),
        ("advertise", "/ü", "/%C3%BC"),
        ("advertise", '/"', "/%22"),
    ],
)
async def test_a_path_that_nobody_could_dial_is_refused_with_what_to_write(
    setting: str, path: str, written: str
) -> None:
    settings: dict[str, Any] = {
        "transport": "ws://127.0.0.1:0",
        setting: f"ws://127.0.0.1:{0 if setting == 'transport' else 9}{path}",
    }
    with pytest.raises(ConfigError, match=f"{setting}: .* has a character that no URL has; write {written}"):
        async with Node(plugins=["ws"], **settings):
            raise AssertionError("nobody could dial it")
