"""The transport contract as tests, at least one for each clause; an author inherits them.

    class TestCarrier(TransportContract):
        backend = CARRIER

A transport over TCP connections inherits `StreamTransportContract` instead, which adds what is seen only on the wire.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

import anyio
import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converge.contracts.transport import FRAME_BYTES, WRITE_QUEUE_BYTES, Channel, Listener, Transport, TransportBackend
from converge.errors import ConnectFailed, ConnectionClosed, ConnectionLost, InvalidValue, ListenFailed, MessageTooLarge
from converge.testing._calls.waiting import blocking_calls, expect_no_waiting
from converge.testing._store.limits import TimeLimited, clause_of
from converge.testing._transport.ends import (
    CLOSE_SEC,
    END,
    QUIET_SEC,
    Ending,
    Flood,
    collect,
    collect_until,
    connected,
    in_time,
    is_end,
    leave,
    receive_all_into,
    receive_into,
    send_each,
    send_groups,
    turns,
)
from converge.testing.blocks import BlockRaised, leaves_nothing_open, passes_through
from converge.testing.clauses import check_case, expect, loops_of

BIG = bytes(range(256)) * 255 + bytes(255)
SEVERAL = 3
"""Channels of one listener or transport that is left: who closes one of them has not closed them all."""

sizes = st.one_of(st.integers(1, 300), st.integers(1, FRAME_BYTES), st.sampled_from([1, FRAME_BYTES - 1, FRAME_BYTES]))
# Hypothesis likes to draw what it finds in the code; the frame that ends a test is not for the middle.
drawn = st.one_of(st.binary(min_size=1, max_size=300), sizes.map(lambda size: (BIG * 2)[size % 256 :][:size]))
frames = drawn.filter(lambda frame: not is_end(frame))
# One class's test runs in many subclasses and event loops, each with fixtures of its own.
few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))

LOOPS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@attrs.frozen(kw_only=True)
class Pair:
    """A channel's two ends: `near` has connected, `far` was accepted."""

    transport: Transport
    listener: Listener
    near: Channel
    far: Channel


class TransportContract(TimeLimited):
    """Clauses C-1 to C-11 as far as they can be seen from both ends of a channel.

    Attributes:
        backend: The declaration under test.
        loops: Event loops to run on, of `LOOPS`; trio is left out where the backend is ASYNCIO_ONLY.
        carrier_bytes: What may be under way below the channel, such as in the kernel's buffers, when send begins to
            wait.
        limit_sec: The longest that one test may take on a slow machine.
    """

    pytestmark = pytest.mark.anyio

    backend: ClassVar[TransportBackend]
    loops: ClassVar[tuple[str, ...]] = ("asyncio", "trio")
    carrier_bytes: ClassVar[int] = 16_777_216
    limit_sec: ClassVar[float] = 30.0
    clause = "?"
    """Of the test that runs."""
    _hung: list[str]
    """What is said of the example of the test that runs which did not end in time."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check_case(cls)
        if not hasattr(cls, "backend"):
            return
        cls.anyio_backend = pytest.fixture(scope="module", params=loops_of(cls))(classmethod(_loop))  # type: ignore[arg-type, attr-defined]  # pytest takes it; its types lag

    @pytest.fixture(autouse=True)
    def named_clause(self, request: pytest.FixtureRequest) -> None:
        """Note the clause that the test is about, for one that hangs."""
        vars(self).update(clause=clause_of(request), _hung=[])

    @pytest.fixture
    def options(self) -> Any:
        """Return the backend's options; override it for others than the defaults."""
        return self.backend.options()

    @pytest.fixture
    def address(self) -> str:
        """Return where to listen; the address must draw a free port or name."""
        return f"{self.backend.schemes[0]}://127.0.0.1:0"

    @pytest.fixture
    def foreign_address(self) -> str:
        """Return an address that is not this host's; TEST-NET-1 belongs to nobody."""
        return f"{self.backend.schemes[0]}://192.0.2.1:1"

    @pytest.fixture
    def unknown_address(self) -> str:
        """Return an address that cannot be found."""
        return f"{self.backend.schemes[0]}://nobody.invalid:1"

    def open(self, options: Any) -> AbstractAsyncContextManager[Transport]:
        """Open the transport under test."""
        return self.backend.open(options)

    @contextlib.asynccontextmanager
    async def pair(self, options: Any, address: str) -> AsyncIterator[Pair]:
        """Yield a connected channel."""
        with in_time(self.clause, self.limit_sec, self._hung):
            async with self.open(options) as transport, transport.listen(address) as listener:
                near, far = await connected(transport, listener, listener.address)
                yield Pair(transport=transport, listener=listener, near=near, far=far)

    # C-1: whole, unchanged, in order, once.

    @few
    @given(sent=st.lists(frames, min_size=1, max_size=20))
    async def test_c1_frames_arrive_whole_and_in_order(self, options: Any, address: str, sent: list[bytes]) -> None:
        """C-1: frames arrive whole and in order."""
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            group.start_soon(send_each, pair.near, [*sent, END])
            group.start_soon(send_each, pair.far, [*sent[::-1], END])
            assert await collect_until(pair.far, is_end) == [*sent, END]
            assert await collect_until(pair.near, is_end) == [*sent[::-1], END]

    async def test_c1_the_longest_and_the_shortest_frame_arrive_with_every_byte_value(
        self, options: Any, address: str
    ) -> None:
        """C-1: the longest and the shortest frame arrive with every byte value."""
        sent = [bytes([value]) for value in range(256)] + [BIG[:FRAME_BYTES], BIG[1:FRAME_BYTES]]
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            group.start_soon(send_each, pair.near, sent)
            assert await collect(pair.far, len(sent)) == sent

    # C-2: many at once.

    @few
    @given(groups=st.lists(st.lists(frames, max_size=8), min_size=1, max_size=8))
    async def test_c2_boundaries_between_the_frames_of_one_call_are_kept(
        self, options: Any, address: str, groups: list[list[bytes]]
    ) -> None:
        """C-2: boundaries between the frames of one call are kept."""
        sent = [frame for frames in groups for frame in frames] + [END]
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            group.start_soon(send_groups, pair.near, [*groups, [END]])
            assert await collect_until(pair.far, is_end) == sent

    async def test_c2_receive_answers_what_has_already_arrived(self, options: Any, address: str) -> None:
        """C-2: receive answers what has already arrived."""
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            group.start_soon(send_groups, pair.near, [[b"%d" % number for number in range(1_000)], [END]])
            got = list[Sequence[bytes]]()
            while not got or got[-1][-1] != END:
                await turns(10)  # a channel may hold few frames: the sender fills it again
                got.append(await pair.far.receive())
            assert sum(map(len, got)) == 1_001
            assert len(got) <= 500

    @pytest.mark.parametrize(("count", "size"), [(5_000, 1), (WRITE_QUEUE_BYTES // FRAME_BYTES * 3, FRAME_BYTES)])
    async def test_c2_a_call_may_have_thousands_of_frames_or_more_bytes_than_a_channel_holds(
        self, options: Any, address: str, count: int, size: int
    ) -> None:
        """C-2: a call may have thousands of frames, or more bytes than a channel holds."""
        sent = [bytes([number % 251]) * size for number in range(count)]
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            group.start_soon(pair.near.send, sent)
            assert await collect(pair.far, count) == sent

    # C-3: back-pressure.

    async def test_c3_send_waits_while_the_peer_does_not_read(self, options: Any, address: str) -> None:
        """C-3: send waits while the peer does not read."""
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            flood = Flood(pair.near)
            group.start_soon(flood.run)
            bound = WRITE_QUEUE_BYTES + self.carrier_bytes
            await flood.wait_until_stuck(bound * 2)
            assert flood.accepted_bytes <= bound
            flood.stop()
            got = await collect_until(pair.far, lambda frame: frame[0] == 1)
            assert [frame[1:9] for frame in got[:-1]] == [number.to_bytes(8, "big") for number in range(len(got) - 1)]

    # C-4: the end of the peer.

    async def test_c4_frames_sent_before_an_orderly_close_arrive_and_then_the_connection_is_lost(
        self, options: Any, address: str
    ) -> None:
        """C-4: frames sent before an orderly close arrive and then the connection is lost."""
        sent = [bytes([number]) * 1_000 for number in range(50)]
        async with self.pair(options, address) as pair:
            await send_each(pair.near, sent)
            await leave(pair.near)
            assert await collect(pair.far, len(sent)) == sent
            for _ in range(2):
                with pytest.raises(ConnectionLost):
                    await pair.far.receive()

    async def test_c4_a_waiting_receive_learns_of_the_close(self, options: Any, address: str) -> None:
        """C-4: a waiting receive learns of the close."""
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            end = Ending()
            group.start_soon(end.of, pair.far.receive)
            await anyio.wait_all_tasks_blocked()
            await leave(pair.near)
            await end.known()
            assert type(end.error) is ConnectionLost

    async def test_c4_send_to_a_peer_that_has_closed_fails(self, options: Any, address: str) -> None:
        """C-4: send to a peer that has closed fails."""
        async with self.pair(options, address) as pair:
            await leave(pair.near)
            with pytest.raises(ConnectionLost), in_time(self.clause, 5):
                while True:
                    await pair.far.send([bytes(1_000)])
                    await anyio.sleep(0.001)

    # C-5: close.

    async def test_c5_close_wakes_a_waiting_send_and_a_waiting_receive(self, options: Any, address: str) -> None:
        """C-5: close wakes a waiting send and a waiting receive."""
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            receiving, flood = Ending(), Flood(pair.near)
            group.start_soon(flood.run)
            group.start_soon(receiving.of, pair.near.receive)
            await flood.wait_until_stuck(self.carrier_bytes)
            with in_time(self.clause, CLOSE_SEC):
                await pair.near.close()
            await receiving.known()
            await flood.ending.known()
            assert (type(receiving.error), type(flood.ending.error)) == (ConnectionClosed, ConnectionClosed)

    async def test_c5_close_is_idempotent_and_final(self, options: Any, address: str) -> None:
        """C-5: close is idempotent and final."""
        async with self.pair(options, address) as pair:
            await pair.far.send([b"never read"])
            with in_time(self.clause, 2 * CLOSE_SEC):
                await pair.near.close()
                await pair.near.close()
            with pytest.raises(ConnectionClosed):
                await pair.near.receive()
            with pytest.raises(ConnectionClosed):
                await pair.near.send([b"late"])

    # C-6: the limit.

    async def test_c6_a_frame_over_the_limit_is_refused_before_any_byte_of_the_call(
        self, options: Any, address: str
    ) -> None:
        """C-6: a frame over the limit is refused before any byte of the call."""
        async with self.pair(options, address) as pair:
            with pytest.raises(MessageTooLarge):
                await pair.near.send([b"with it", bytes(pair.near.frame_bytes + 1)])
            with pytest.raises(InvalidValue):
                await pair.near.send([b"with it", b""])
            await pair.near.send([b"next"])
            assert await collect(pair.far, 1) == [b"next"]

    # C-7: listening.

    async def test_c7_the_address_of_a_listener_can_be_connected_to(self, options: Any, address: str) -> None:
        """C-7: the address of a listener can be connected to."""
        async with self.open(options) as transport, transport.listen(address) as one, transport.listen(address) as two:
            assert len({address, one.address, two.address}) == 3
            near, far = await connected(transport, two, two.address)
            await near.send([b"here"])
            assert await collect(far, 1) == [b"here"]

    async def test_c7_an_address_in_use_is_refused_at_once_and_free_afterwards(
        self, options: Any, address: str
    ) -> None:
        """C-7: an address in use is refused at once and free afterwards."""
        async with self.open(options) as transport:
            async with transport.listen(address) as listener:
                with pytest.raises(ListenFailed), in_time(self.clause, 5):
                    async with transport.listen(listener.address):
                        pass
            async with transport.listen(listener.address) as again:
                assert again.address == listener.address

    async def test_c7_an_address_that_is_not_ours_is_refused(self, options: Any, foreign_address: str) -> None:
        """C-7: an address that is not ours is refused."""
        async with self.open(options) as transport:
            for bad in (foreign_address, "nonsense", ""):
                with pytest.raises(ListenFailed), in_time(self.clause, 5):
                    async with transport.listen(bad):
                        pass

    async def test_c7_who_connects_before_anybody_accepts_is_served(self, options: Any, address: str) -> None:
        """C-7: who connects before anybody accepts is served."""
        with in_time(self.clause, self.limit_sec):
            async with self.open(options) as transport, transport.listen(address) as listener:
                sent = anyio.Event()

                async def connect() -> None:
                    near = await transport.connect(listener.address)
                    await near.send([b"here"])
                    sent.set()

                async with anyio.create_task_group() as group:
                    group.start_soon(connect)
                    with anyio.move_on_after(QUIET_SEC):  # one that waits for the other side goes on with accept
                        await sent.wait()
                    far = await listener.accept()
                    assert await collect(far, 1) == [b"here"]

    async def test_c7_the_declarations_own_checks_allow_what_can_be_listened_on(
        self, options: Any, address: str
    ) -> None:
        """C-7: the declaration's own checks allow what can be listened on."""
        async with self.open(options) as transport, transport.listen(address) as listener:
            for url in (address, listener.address):
                if self.backend.check_address is not None:
                    self.backend.check_address(url)
                if self.backend.check_listening is not None:
                    self.backend.check_listening(url, options)

    # C-8: connecting.

    async def test_c8_connecting_where_nobody_listens_fails(
        self, options: Any, address: str, unknown_address: str
    ) -> None:
        """C-8: connecting where nobody listens fails."""
        async with self.open(options) as transport:
            async with transport.listen(address) as listener:
                closed = listener.address
            for bad in (closed, unknown_address, "nonsense", ""):
                with pytest.raises(ConnectFailed), in_time(self.clause, self.limit_sec):
                    await transport.connect(bad)

    # C-9: independent channels.

    async def test_c9_a_channel_that_does_not_read_stops_no_other(self, options: Any, address: str) -> None:
        """C-9: a channel that does not read stops no other."""
        async with self.pair(options, address) as pair, anyio.create_task_group() as group:
            flood = Flood(pair.near)
            group.start_soon(flood.run)
            others = [await connected(pair.transport, pair.listener, pair.listener.address) for _ in range(20)]
            await flood.wait_until_stuck(self.carrier_bytes)
            for number, (near, far) in enumerate(others):
                await near.send([b"%d" % number])
                await far.send([b"back %d" % number])
            for number, (near, far) in enumerate(others):
                assert (await collect(far, 1), await collect(near, 1)) == ([b"%d" % number], [b"back %d" % number])
            group.cancel_scope.cancel()

    # C-10: cancellation.

    async def test_c10_a_cancelled_receive_loses_no_frame(self, options: Any, address: str) -> None:
        """C-10: a cancelled receive loses no frame."""
        async with self.pair(options, address) as pair:
            got: list[bytes] = []
            for number in range(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(receive_into, pair.far, got)
                    await turns(5)
                    await pair.near.send([b"%d" % number])
                    await turns(number % 12)
                    group.cancel_scope.cancel()
            await pair.near.send([END])
            got += await collect_until(pair.far, is_end)
            assert got == [*(b"%d" % number for number in range(60)), END]

    async def test_c10_a_cancelled_send_leaves_whole_frames_and_a_usable_or_closed_channel(
        self, options: Any, address: str
    ) -> None:
        """C-10: a cancelled send leaves whole frames and a usable or closed channel."""
        async with self.pair(options, address) as pair:
            flood = Flood(pair.near)
            async with anyio.create_task_group() as group:
                group.start_soon(flood.run)
                await flood.wait_until_stuck(self.carrier_bytes)
                group.cancel_scope.cancel()
            got: list[bytes] = []
            async with anyio.create_task_group() as group:
                group.start_soon(receive_all_into, pair.far, got)
                with contextlib.suppress(ConnectionClosed):
                    await pair.near.send([b"\1" + bytes(8)])
                await leave(pair.near)
            numbers = [int.from_bytes(frame[1:9], "big") for frame in got if frame[0] == 0]
            assert {len(frame) for frame in got if frame[0] == 0} == {Flood.FRAME_BYTES}
            assert numbers == list(range(len(numbers)))
            assert flood.sent <= len(numbers) <= flood.sent + 1

    # C-11: the end of a listener.

    async def test_c11_leaving_the_listener_closes_it_and_its_channels(self, options: Any, address: str) -> None:
        """C-11: leaving the listener closes it and its channels."""
        async with self.open(options) as transport, anyio.create_task_group() as group:
            accepting = Ending()
            with in_time(self.clause, self.limit_sec):
                async with transport.listen(address) as listener:
                    ends = [await connected(transport, listener, listener.address) for _ in range(SEVERAL)]
                    group.start_soon(accepting.of, listener.accept)
                    await anyio.wait_all_tasks_blocked()
                await accepting.known()
                assert type(accepting.error) is ConnectionClosed
                for near, far in ends:
                    with pytest.raises(ConnectionClosed):
                        await far.receive()
                    with pytest.raises(ConnectionLost):
                        await near.receive()
                with pytest.raises(ConnectFailed):
                    await transport.connect(listener.address)

    @pytest.mark.parametrize("is_cancelled", [False, True])
    async def test_c11_a_listener_left_by_an_error_or_a_cancellation_is_closed_too(
        self, options: Any, address: str, is_cancelled: bool
    ) -> None:
        """C-11: a listener that is left by an error or a cancellation is closed, too."""
        async with self.open(options) as transport:
            with (
                in_time(self.clause, self.limit_sec),
                contextlib.suppress(Exception),  # what comes out of the block is the matter of C-13
                anyio.CancelScope() as scope,
            ):
                async with transport.listen(address) as one, transport.listen(address) as two:
                    near, far = await connected(transport, one, one.address)
                    if is_cancelled:
                        scope.cancel()
                        await anyio.sleep_forever()
                    raise BlockRaised
            with pytest.raises(ConnectionClosed), in_time(self.clause, self.limit_sec):
                await far.receive()
            with pytest.raises(ConnectionLost), in_time(self.clause, self.limit_sec):
                await near.receive()
            async with transport.listen(two.address) as again:
                assert again.address == two.address

    async def test_c11_leaving_the_transport_closes_what_it_connected(self, options: Any, address: str) -> None:
        """C-11: leaving the transport closes what it connected."""
        with in_time(self.clause, self.limit_sec):
            async with self.open(options) as serving, serving.listen(address) as listener:
                async with self.open(options) as transport:
                    ends = [await connected(transport, listener, listener.address) for _ in range(SEVERAL)]
                for near, far in ends:
                    with pytest.raises(ConnectionClosed):
                        await near.receive()
                    with pytest.raises(ConnectionLost):
                        await far.receive()

    async def test_c11_what_was_left_leaves_nothing_open(self, options: Any, address: str) -> None:
        """C-11: no descriptor is left open."""

        async def use() -> None:
            async with self.pair(options, address) as pair:
                await pair.near.send([b"a"])
                await pair.far.receive()
                for number in range(6):  # who waits for a connection may be cancelled
                    async with anyio.create_task_group() as group:
                        group.start_soon(pair.transport.connect, pair.listener.address)
                        await turns(number)
                        group.cancel_scope.cancel()

        await leaves_nothing_open("C-11", "listeners and channels", use)

    async def test_c9_no_call_keeps_the_event_loop_waiting(self, options: Any, address: str) -> None:
        """C-9: what waits does so in another thread."""
        with blocking_calls() as seen:
            async with self.pair(options, address) as pair:
                for one, other in ((pair.near, pair.far), (pair.far, pair.near)):
                    await one.send([BIG[:2_000]])
                    await collect(other, 1)
        expect_no_waiting("C-9", seen)

    async def test_c14_what_a_channel_says_of_itself_has_the_types_that_core_reads(
        self, options: Any, address: str
    ) -> None:
        """C-14: what a channel says of itself has the types that core reads."""
        async with self.pair(options, address) as pair:
            for channel in (pair.near, pair.far):
                said = (channel.frame_bytes, channel.tls_hash, channel.peer)
                expect("C-14", tuple(map(type, said)) == (int, bytes, str), f"frame_bytes, tls_hash, peer are {said}")

    # C-13: what a block raised.

    async def test_c13_what_a_block_raised_comes_out_of_it(self, options: Any, address: str) -> None:
        """C-13: what a block raised comes out of it as it is."""
        await passes_through("C-13", lambda: self.open(options))
        async with self.open(options) as transport:
            await passes_through("C-13", lambda: transport.listen(address))


def _loop(cls: type, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return LOOPS[request.param]
