"""What is special to TCP: addresses, the time of a frame, what a cancelled send leaves, running out of descriptors."""

from __future__ import annotations

import errno
import os
import socket

import anyio
import anyio.lowlevel
import pytest

from converge.errors import BadRecord, ConnectFailed, ConnectionClosed, ConnectionLost, ListenFailed
from converge.net.sockets import show
from converge.plugins import PluginHost
from converge.testing.fixtures import wait_until
from converge_transport_tcp import TcpOptions, TcpTransport
from converge_transport_tcp.address import parse
from converge_transport_tcp.sockets import SocketChannel
from converge_transport_tcp.transport import TcpListener

MISSING, ONLY, SCHEME = "host or port is missing", "only tcp://HOST:PORT is understood", "the scheme is not tcp or tls"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://host", MISSING),
        ("tcp://:7000", MISSING),
        ("ws://host:1", SCHEME),
        ("tcp://user:secret@host:1", ONLY),
        ("tcp://host:1/path", ONLY),
        ("tcp://host:1?x=1", ONLY),
        ("tcp://host:1#x", ONLY),
        ("tcp://host:99999", "Port out of range"),
        ("tcp://a..b:1", "no host has such a name"),
        ("host:1", SCHEME),
        ("", SCHEME),
    ],
)
async def test_an_address_that_is_not_host_and_port_is_refused_on_both_sides(address: str, why: str) -> None:
    async with TcpTransport.open(TcpOptions()) as transport:
        with pytest.raises(ConnectFailed, match=why):
            await transport.connect(address)
        with pytest.raises(ListenFailed, match=why):
            async with transport.listen(address):
                pass


def test_ipv6_addresses_stand_in_brackets() -> None:
    assert parse("tcp://[::1]:7000") == ("::1", 7000)
    assert show(("::1", 7000, 0, 0)) == "[::1]:7000"
    assert show(("10.0.0.1", 7000)) == "10.0.0.1:7000"


async def test_a_name_is_looked_up() -> None:
    async with TcpTransport.open(TcpOptions()) as transport, transport.listen("tcp://127.0.0.1:0") as listener:
        near = await transport.connect(listener.address.replace("127.0.0.1", "localhost"))
        far = await listener.accept()
        await near.send([b"here"])
        assert await far.receive() == [b"here"]


async def test_many_short_frames_do_not_hide_one_that_stalls() -> None:
    async with (
        TcpTransport.open(TcpOptions(frame_sec=0.2)) as transport,
        transport.listen("tcp://127.0.0.1:0") as listener,
    ):
        host, port = parse(listener.address)
        async with await anyio.connect_tcp(host, port) as stream:
            far = await listener.accept()
            await stream.send(b"\0\0\0\1a" * 100 + b"\0\0\0\2b")
            assert await far.receive() == [b"a"] * 100
            with pytest.raises(BadRecord, match="not whole"), anyio.fail_after(30):
                await far.receive()


async def test_an_idle_channel_is_not_taken_for_a_stalled_one() -> None:
    async with (
        TcpTransport.open(TcpOptions(frame_sec=0.1)) as transport,
        transport.listen("tcp://127.0.0.1:0") as listener,
    ):
        near = await transport.connect(listener.address)
        far = await listener.accept()
        with anyio.move_on_after(0.3) as scope:
            await far.receive()
        assert scope.cancelled_caught
        await near.send([b"late"])
        assert await far.receive() == [b"late"]


async def test_a_frame_in_pieces_after_a_long_silence_has_its_whole_time() -> None:
    async with (
        TcpTransport.open(TcpOptions(frame_sec=2.0)) as transport,
        transport.listen("tcp://127.0.0.1:0") as listener,
    ):
        host, port = parse(listener.address)
        async with await anyio.connect_tcp(host, port) as stream, anyio.create_task_group() as group:
            far, got = await listener.accept(), list[bytes]()

            async def receive() -> None:
                got.extend(await far.receive())

            group.start_soon(receive)
            await anyio.sleep(2.1)  # the silence is what is tested: longer than a frame may take
            await stream.send(b"\0\0\0\2a")
            await wait_until(lambda: far._decoder.is_partial, what="a piece has come")  # type: ignore[attr-defined]  # of this transport
            await stream.send(b"b")
        assert got == [b"ab"]


async def test_a_send_cancelled_in_the_middle_of_a_frame_closes_the_channel() -> None:
    async with TcpTransport.open(TcpOptions()) as transport, transport.listen("tcp://127.0.0.1:0") as listener:
        near = await transport.connect(listener.address)
        far = await listener.accept()
        with anyio.move_on_after(0.3):
            while True:
                await near.send([bytes(65_535)] * 10)
        with pytest.raises(ConnectionClosed, match="cancelled"):
            await near.send([b"next"])
        with pytest.raises(ConnectionLost):
            while True:
                assert set(await far.receive()) == {bytes(65_535)}


async def test_frames_sent_before_a_close_arrive_although_the_closer_had_unread_ones() -> None:
    async with TcpTransport.open(TcpOptions()) as transport, transport.listen("tcp://127.0.0.1:0") as listener:
        near = await transport.connect(listener.address)
        far = await listener.accept()
        await far.send([b"never read"] * 1_000)
        await near.send([b"goodbye"])
        await near.close()
        assert await far.receive() == [b"goodbye"]


async def test_a_listener_whose_socket_always_fails_does_not_keep_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    scope = anyio.CancelScope()

    class ShutDown:
        """As a listening socket that other code in the process has shut down."""

        tries = 0

        def accept(self) -> object:
            self.tries += 1
            if self.tries == 3:
                scope.cancel()
            assert self.tries <= 3, "nobody else has a turn"
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        def fileno(self) -> int:
            return 0

    async with TcpTransport.open(TcpOptions()) as transport, transport.listen("tcp://127.0.0.1:0") as listener:
        assert isinstance(listener, TcpListener)
        with monkeypatch.context() as patch, scope:
            patch.setattr(listener, "_sock", ShutDown())
            await listener.accept()
        assert scope.cancelled_caught


async def test_a_listener_survives_running_out_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def __init__(self, sock: socket.socket) -> None:
            self.sock, self.failures = sock, [errno.EMFILE, errno.ECONNABORTED]

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                raise OSError(self.failures.pop(), "not now")
            return self.sock.accept()

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

    async with TcpTransport.open(TcpOptions()) as transport, transport.listen("tcp://127.0.0.1:0") as listener:
        assert isinstance(listener, TcpListener)
        exhausted = Exhausted(listener._sock)
        monkeypatch.setattr(listener, "_sock", exhausted)
        near = await transport.connect(listener.address)
        with anyio.fail_after(30):
            far = await listener.accept()
        assert exhausted.failures == []
        await near.send([b"here"])
        assert await far.receive() == [b"here"]


def test_options_are_bounded_and_know_nothing_of_tls() -> None:
    for wrong in ({"connect_sec": 0.0}, {"frame_sec": 0.0}, {"backlog": 0}):
        with pytest.raises(ValueError):
            TcpOptions(**wrong)
    with pytest.raises(TypeError):
        TcpOptions(tls_certificate="server.pem")  # type: ignore[call-arg]  # what is tested


def test_the_plugin_is_found_by_its_name_and_by_its_scheme() -> None:
    assert PluginHost(["tcp"]).transport_backend("tcp") == PluginHost().transport_backend("tcp://127.0.0.1:0")


class CountingSocket(socket.socket):
    """Counts what is asked of it."""

    reads = 0

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """See the class."""
        self.reads += 1
        return super().recv(size, flags)


async def test_a_frame_that_is_waited_for_costs_one_read() -> None:
    near, far = (CountingSocket(fileno=one.detach()) for one in socket.socketpair())
    ends = []
    for sock in (near, far):
        sock.setblocking(False)
        ends.append(SocketChannel(sock, peer="", frame_sec=10, on_end=lambda channel: None))
    async with anyio.create_task_group() as group:

        async def echo() -> None:
            while True:
                await ends[1].send(await ends[1].receive())

        group.start_soon(echo)
        for number in range(100):
            await ends[0].send([b"%d" % number])
            assert await ends[0].receive() == [b"%d" % number]
        group.cancel_scope.cancel()
    assert near.reads <= 104 and far.reads <= 104
    for end in ends:
        await end.close()


async def test_what_came_for_a_cancelled_receive_is_received_next() -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    there = SocketChannel(far, peer="", frame_sec=10, on_end=lambda channel: None)
    for number in range(20):
        async with anyio.create_task_group() as group:
            group.start_soon(there.receive)
            await anyio.wait_all_tasks_blocked()
            near.send(b"\0\0\0\5")  # a frame that is not whole ends no call
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        near.send(b"abc%02d" % number)
        assert await there.receive() == [b"abc%02d" % number]
    await there.close()
    near.close()
