"""The clauses of the transport contract that are seen on the wire, for transports over TCP connections.

    class TestTcp(StreamTransportContract):
        backend = TCP
        oversized = b"\xff\xff\xff\xff"

A proxy stands between the two ends, and splits, delays, cuts and spoils the bytes.
"""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, ClassVar

import anyio
import anyio.abc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converge.contracts.transport import WRITE_QUEUE_BYTES
from converge.errors import BadRecord, ChannelError, ConnectFailed, ConnectionLost
from converge.testing._transport.ends import Ending, collect, connected, in_time, send_each, serve_all, turns
from converge.testing.fixtures import wait_until
from converge.testing.proxy import ByteProxy, byte_proxy, host_and_port
from converge.testing.transport import BIG, Pair, TransportContract, few


class StreamTransportContract(TransportContract):
    """The clauses that are seen on the wire, for transports over TCP connections.

    Attributes:
        oversized: Bytes that announce a frame over the limit to the accepting side, where a frame could begin (C-6).
        malformed: Bytes, by a name, that break the framing where a frame could begin (C-12).
        patience_sec: How long a channel may take to notice that a frame never becomes whole; shorten it by the
            backend's options.
    """

    oversized: ClassVar[bytes]
    malformed: ClassVar[Mapping[str, bytes]] = {}
    patience_sec: ClassVar[float] = 12.0

    @contextlib.asynccontextmanager
    async def proxied(self, options: Any, address: str) -> AsyncIterator[tuple[Pair, ByteProxy]]:
        """Yield a channel with a proxy in its middle."""
        with in_time(self.clause, self.limit_sec, self._hung):
            async with (
                self.open(options) as transport,
                transport.listen(address) as listener,
                byte_proxy(listener.address) as proxy,
            ):
                near, far = await connected(transport, listener, proxy.address)
                yield Pair(transport=transport, listener=listener, near=near, far=far), proxy

    @pytest.mark.parametrize(("chunk_bytes", "delay_sec"), [(1, 0.0), (7, 0.0), (100, 0.002)])
    async def test_c1_frames_survive_a_wire_that_splits_and_delays(
        self, options: Any, address: str, chunk_bytes: int, delay_sec: float
    ) -> None:
        """C-1: frames survive a wire that splits and delays."""
        sent = [b"a", bytes(range(256)), b"b" * 3, BIG[:700]]
        async with self.proxied(options, address) as (pair, proxy):
            proxy.chunk_bytes, proxy.delay_sec = chunk_bytes, delay_sec
            await send_each(pair.near, sent)
            await send_each(pair.far, sent)
            assert await collect(pair.far, len(sent)) == sent
            assert await collect(pair.near, len(sent)) == sent

    async def test_c4_a_connection_cut_in_the_middle_of_a_frame_gives_the_whole_ones_and_is_lost(
        self, options: Any, address: str
    ) -> None:
        """C-4: a connection cut in the middle of a frame gives the whole ones and is lost."""
        for cut in (1, 2, 5, 400):
            async with self.proxied(options, address) as (pair, proxy):
                before = len(proxy.seen_up)
                await pair.near.send([b"whole"])
                assert await collect(pair.far, 1) == [b"whole"]
                # What is cut arrives behind another whole one, which is as long on the wire as the first.
                proxy.cut_up_after = 2 * len(proxy.seen_up) - before + cut
                await pair.near.send([b"Whole"])
                await pair.near.send([BIG[:2_000]])
                with pytest.raises(ConnectionLost):
                    await pair.near.receive()
                assert await collect(pair.far, 1) == [b"Whole"]
                with pytest.raises(ConnectionLost):
                    await pair.far.receive()

    async def test_c6_a_frame_announced_over_the_limit_ends_the_channel_before_memory_is_taken(
        self, options: Any, address: str
    ) -> None:
        """C-6: a frame announced over the limit ends the channel before memory is taken."""
        async with self.proxied(options, address) as (pair, proxy):
            await pair.near.send([b"first"])
            assert await collect(pair.far, 1) == [b"first"]
            with traced() as peak_bytes:
                await proxy.inject(self.oversized + bytes(1_000))
                with pytest.raises(BadRecord):
                    await pair.far.receive()
                assert peak_bytes() < WRITE_QUEUE_BYTES

    async def test_c14_a_connection_is_accepted_with_its_peers_address_before_it_has_said_anything(
        self, options: Any, address: str
    ) -> None:
        """C-14: a connection is accepted with its peer's address before it has said anything."""
        async with self.open(options) as transport, transport.listen(address) as listener:
            host, port = host_and_port(listener.address)
            async with await anyio.connect_tcp(host, port) as stream:
                with in_time(self.clause, self.patience_sec):
                    far = await listener.accept()
                own = stream.extra(anyio.abc.SocketAttribute.local_address)
                assert far.peer == f"{own[0]}:{own[1]}"
                await far.close()

    @pytest.mark.parametrize(
        "banner",
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"],
    )
    async def test_c8_a_peer_that_speaks_something_else_is_noticed(
        self, options: Any, address: str, banner: bytes
    ) -> None:
        """C-8: a peer that speaks something else is noticed."""

        async def speak(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                with contextlib.suppress(anyio.BrokenResourceError):
                    await stream.send(banner)
                    async for _ in stream:
                        pass

        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as foreign,
            anyio.create_task_group() as group,
        ):
            group.start_soon(foreign.serve, speak)
            port = foreign.extra(anyio.abc.SocketAttribute.local_port)
            async with self.open(options) as transport:
                with pytest.raises((ConnectFailed, BadRecord, ConnectionLost)), in_time(self.clause, self.patience_sec):
                    channel = await transport.connect(address.replace(":0", f":{port}"))
                    await channel.receive()
            group.cancel_scope.cancel()

    async def test_c12_bytes_that_break_the_framing_end_that_channel_alone(self, options: Any, address: str) -> None:
        """C-12: bytes that break the framing end that channel alone."""
        for name, data in {"oversized": self.oversized, **self.malformed}.items():
            async with self.proxied(options, address) as (pair, proxy):
                honest, other = await connected(pair.transport, pair.listener, pair.listener.address)
                await pair.near.send([b"first"])
                assert await collect(pair.far, 1) == [b"first"]
                await proxy.inject(data)
                end = Ending()
                with anyio.move_on_after(self.patience_sec):
                    await end.of(pair.far.receive)
                assert isinstance(end.error, BadRecord | ConnectionLost), name
                await honest.send([b"still here"])
                assert await collect(other, 1) == [b"still here"]

    @few
    @given(
        garbage=st.one_of(
            st.binary(min_size=1, max_size=200),
            st.binary(min_size=1, max_size=4).map(lambda head: bytes(4 - len(head)) + head),
        )
    )
    async def test_c12_random_bytes_end_in_bounded_time_and_trouble_nobody(
        self, options: Any, address: str, garbage: bytes
    ) -> None:
        """C-12: random bytes end in bounded time and trouble nobody."""
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            endings: list[ChannelError] = []
            group.start_soon(serve_all, pair.listener, endings)
            host, port = host_and_port(pair.listener.address)
            async with await anyio.connect_tcp(host, port) as stream:
                await stream.send(garbage)
                await stream.send_eof()
                await pair.near.send([b"still here"])
                assert await collect(pair.far, 1) == [b"still here"]
                with (
                    in_time(self.clause, self.patience_sec),
                    contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError),
                ):
                    while True:
                        await stream.receive()
            group.cancel_scope.cancel()
        assert all(isinstance(error, BadRecord | ConnectionLost) for error in endings)

    async def test_c10_a_receive_cancelled_in_the_middle_of_a_frame_loses_nothing_of_it(
        self, options: Any, address: str
    ) -> None:
        """C-10: a receive cancelled in the middle of a frame loses nothing of it."""
        sent, held = BIG[:700], bytearray()
        async with self.proxied(options, address) as (pair, proxy):
            before = len(proxy.seen_up)
            await pair.near.send([sent])
            assert await collect(pair.far, 1) == [sent]
            size = len(proxy.seen_up) - before  # of the same frame on the wire

            def hold(offset: int, data: bytes) -> bytes:
                passed = data[: max(start + cut - offset, 0)]
                held.extend(data[len(passed) :])
                return passed

            proxy.change_up = hold
            for cut in (1, 3, 5, 400):
                start = len(proxy.seen_up)
                held.clear()
                await pair.near.send([sent])
                waited = Ending()
                async with anyio.create_task_group() as group:
                    group.start_soon(waited.of, pair.far.receive)
                    await wait_until(lambda missing=size - cut: len(held) >= missing, timeout=9.0)  # type: ignore[misc]  # bound now
                    await anyio.wait_all_tasks_blocked()
                    await turns(10)
                    group.cancel_scope.cancel()
                if waited.error is not None:
                    return  # the machine stood still for longer than a frame may take (C-12)
                await proxy.inject(bytes(held))
                assert await collect(pair.far, 1) == [sent]

    async def test_c12_a_frame_that_comes_a_byte_at_a_time_does_not_keep_its_channel(
        self, options: Any, address: str
    ) -> None:
        """C-12: a frame that comes a byte at a time does not keep its channel for as long as it likes."""
        async with self.proxied(options, address) as (pair, proxy), anyio.create_task_group() as group:
            begun = len(proxy.seen_up) + 20
            proxy.change_up = lambda offset, data: data[: max(begun - offset, 0)]
            await pair.near.send([BIG])

            async def drip() -> None:
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    while True:
                        # So slow that the frame would need hours.
                        await anyio.sleep(0.1)
                        await proxy.inject(b"x")

            group.start_soon(drip)
            with pytest.raises((BadRecord, ConnectionLost)):
                await pair.far.receive()
            group.cancel_scope.cancel()

    async def test_c12_a_frame_that_never_becomes_whole_ends_its_channel(self, options: Any, address: str) -> None:
        """C-12: a frame that never becomes whole ends its channel."""
        async with self.proxied(options, address) as (pair, proxy):
            sent = len(proxy.seen_up)
            proxy.change_up = lambda offset, data: data[: max(sent + 40 - offset, 0)]
            await pair.near.send([BIG[:1_000]])
            with pytest.raises((BadRecord, ConnectionLost)), in_time(self.clause, self.patience_sec):
                await pair.far.receive()


@contextlib.contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Yield the most memory that Python has taken since, while it may be traced already."""
    is_ours = not tracemalloc.is_tracing()
    if is_ours:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        if is_ours:
            tracemalloc.stop()
