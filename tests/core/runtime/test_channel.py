"""The secure channel over real transports: handshake, records, what a stranger in the middle can do."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import anyio
import attrs
import pytest

from converge.builtin.local import LocalOptions, LocalTransport
from converge.contracts.transport import Channel, Listener, Transport
from converge.env import SYSTEM
from converge.errors import (
    BadRecord,
    ChannelError,
    ConnectionClosed,
    ConnectionLost,
    HandshakeFailed,
    HandshakeRefused,
    NetworkMismatch,
    PeerMismatch,
)
from converge.machines import records
from converge.machines.records import Item
from converge.machines.secure import Terms
from converge.model.descriptor import network_tag
from converge.model.identity import Identity
from converge.runtime.network import channel as module
from converge.runtime.network.channel import SecureChannel, accept, dial
from converge.testing.proxy import ByteProxy, byte_proxy
from converge_transport_tcp import TcpOptions, TcpTransport
from converge_transport_ws import WsOptions, WsTransport

NETWORK = network_tag("test")
LIMIT_SEC = 60.0
CARRIERS: dict[str, tuple[Callable[[], AbstractAsyncContextManager[Transport]], str]] = {
    "local": (lambda: LocalTransport.open(LocalOptions()), "local:"),
    "tcp": (lambda: TcpTransport.open(TcpOptions()), "tcp://127.0.0.1:0"),
    "ws": (lambda: WsTransport.open(WsOptions()), "ws://127.0.0.1:0/node"),
}
# The library of WebSocket runs on asyncio alone.
MATRIX = [(carrier, loop) for carrier in CARRIERS for loop in ("asyncio", "trio") if (carrier, loop) != ("ws", "trio")]


@pytest.fixture(params=MATRIX, ids="-".join, scope="module")
def _run_on(request: pytest.FixtureRequest) -> tuple[str, str]:
    carrier, loop = request.param
    return str(carrier), str(loop)


@pytest.fixture(scope="module")
def carrier(_run_on: tuple[str, str]) -> str:
    return _run_on[0]


@pytest.fixture(scope="module")
def anyio_backend(_run_on: tuple[str, str]) -> str:
    return _run_on[1]


def terms(network: bytes = NETWORK) -> Terms:
    return Terms(network=network, identity=Identity.generate(os.urandom))


def message(number: int) -> Item:
    return records.MESSAGE, b"\0\0" + b"message %d" % number


@attrs.frozen(kw_only=True)
class Sides:
    near: SecureChannel
    far: SecureChannel
    near_channel: Channel
    far_channel: Channel


@contextlib.asynccontextmanager
async def channels(
    carrier: str, wrap: Callable[[Channel], Channel] = lambda channel: channel
) -> AsyncIterator[tuple[Channel, Channel]]:
    """A bare channel's two ends."""
    opened, address = CARRIERS[carrier]
    with anyio.fail_after(LIMIT_SEC):
        async with opened() as transport, transport.listen(address) as listener:
            near, far = await both(transport, listener, listener.address)
            yield wrap(near), far


@contextlib.asynccontextmanager
async def proxied(carrier: str) -> AsyncIterator[tuple[Channel, Channel, ByteProxy]]:
    """A bare channel with a proxy of bytes in its middle."""
    opened, address = CARRIERS[carrier]
    with anyio.fail_after(LIMIT_SEC):
        async with opened() as transport, transport.listen(address) as listener, byte_proxy(listener.address) as proxy:
            near, far = await both(transport, listener, proxy.address)
            yield near, far, proxy


async def both(transport: Transport, listener: Listener, address: str) -> tuple[Channel, Channel]:
    near: list[Channel] = []

    async def connect() -> None:
        near.append(await transport.connect(address))

    async with anyio.create_task_group() as group:
        group.start_soon(connect)
        far = await listener.accept()
    return near[0], far


async def shake(
    near: Channel, far: Channel, one: Terms | None = None, two: Terms | None = None, *, expected: bytes | None = None
) -> tuple[SecureChannel | ChannelError, SecureChannel | ChannelError]:
    """Run both sides of the handshake; an error is an answer, too."""
    answers: dict[str, SecureChannel | ChannelError] = {}

    async def run(side: str, call: Callable[[], AbstractAsyncContextManager[SecureChannel]]) -> None:
        try:
            async with call() as secured:
                answers[side] = secured
        except ChannelError as error:
            answers[side] = error

    @contextlib.asynccontextmanager
    async def dialled() -> AsyncIterator[SecureChannel]:
        yield await dial(near, one or terms(), SYSTEM, expected=expected)

    @contextlib.asynccontextmanager
    async def accepted() -> AsyncIterator[SecureChannel]:
        yield await accept(far, two or terms(), SYSTEM)

    async with anyio.create_task_group() as group:
        group.start_soon(run, "near", dialled)
        group.start_soon(run, "far", accepted)
    return answers["near"], answers["far"]


@contextlib.asynccontextmanager
async def secured(carrier: str, wrap: Callable[[Channel], Channel] = lambda channel: channel) -> AsyncIterator[Sides]:
    async with channels(carrier, wrap) as (near_channel, far_channel):
        near, far = await shake(near_channel, far_channel)
        assert isinstance(near, SecureChannel) and isinstance(far, SecureChannel)
        yield Sides(near=near, far=far, near_channel=near_channel, far_channel=far_channel)


async def collect(channel: SecureChannel, wanted: int) -> list[Item]:
    got: list[Item] = []
    while len(got) < wanted:
        got += await channel.receive()
    return got


class Meddler(Channel):
    """Changes what one side sends, frame by frame, once it is told to."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.peer = channel.peer
        self.change: Callable[[list[bytes]], Sequence[bytes]] = list

    async def send(self, frames: Sequence[bytes]) -> None:
        await self._channel.send(self.change(list(frames)))

    async def receive(self) -> Sequence[bytes]:
        return await self._channel.receive()

    async def close(self) -> None:
        await self._channel.close()


async def test_ten_thousand_items_pass_both_ways_in_order(carrier: str) -> None:
    sent = [message(number) for number in range(10_000)]

    async def send(channel: SecureChannel) -> None:
        for start in range(0, len(sent), 40):
            await channel.send(sent[start : start + 40])

    async with secured(carrier) as sides, anyio.create_task_group() as group:
        group.start_soon(send, sides.near)
        group.start_soon(send, sides.far)
        got: list[list[Item]] = [[], []]

        async def receive(channel: SecureChannel, into: list[Item]) -> None:
            into += await collect(channel, len(sent))

        group.start_soon(receive, sides.near, got[0])
        await receive(sides.far, got[1])
    assert got == [sent, sent]


async def test_a_message_of_a_megabyte_passes_and_each_side_knows_the_other(carrier: str) -> None:
    one, two = terms(), terms()
    large = (records.MESSAGE, os.urandom(1_048_576))
    async with channels(carrier) as (near_channel, far_channel), anyio.create_task_group() as group:
        near, far = await shake(near_channel, far_channel, one, two, expected=two.identity.public_key)
        assert isinstance(near, SecureChannel) and isinstance(far, SecureChannel)
        assert (near.peer, far.peer) == (two.identity.public_key, one.identity.public_key)
        group.start_soon(near.send, [large, message(1)])
        assert await collect(far, 2) == [large, message(1)]


async def test_another_node_than_the_expected_one_learns_nothing_of_the_dialler(carrier: str) -> None:
    seen: list[bytes] = []

    def keep(frames: list[bytes]) -> list[bytes]:
        seen.extend(frames)
        return frames

    def meddled(channel: Channel) -> Channel:
        meddler = Meddler(channel)
        meddler.change = keep
        return meddler

    async with channels(carrier, meddled) as (near_channel, far_channel):
        near, far = await shake(near_channel, far_channel, expected=terms().identity.public_key)
    assert isinstance(near, PeerMismatch)
    assert isinstance(far, ConnectionLost)
    # hello1 alone has left; the dialler's identity stands in hello3.
    assert len(seen) == 1


async def test_another_network_is_refused_and_told_so(carrier: str) -> None:
    async with channels(carrier) as (near_channel, far_channel):
        near, far = await shake(near_channel, far_channel, terms(network_tag("another")), terms())
    assert isinstance(near, HandshakeRefused)
    assert isinstance(far, NetworkMismatch)


async def test_a_node_does_not_talk_to_itself(carrier: str) -> None:
    own = terms()
    async with channels(carrier) as (near_channel, far_channel):
        near, _ = await shake(near_channel, far_channel, own, own)
    assert isinstance(near, PeerMismatch)


async def test_a_silent_peer_is_given_up_in_time(carrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SEC", 0.1)
    for side in (dial, accept):
        async with channels(carrier) as (near_channel, _):
            with pytest.raises(HandshakeFailed):
                await side(near_channel, terms(), SYSTEM)
            with pytest.raises(ConnectionClosed):
                await near_channel.receive()


async def test_a_cancelled_handshake_closes_its_channel(carrier: str) -> None:
    async with channels(carrier) as (near_channel, _):
        async with anyio.create_task_group() as group:
            group.start_soon(dial, near_channel, terms(), SYSTEM)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        with pytest.raises(ConnectionClosed):
            await near_channel.receive()


@pytest.mark.parametrize("garbage", [b"x", bytes(48), b"cvh1" + bytes(44), b"GET / HTTP/1.1\r\n\r\n", bytes(65_535)])
async def test_garbage_in_place_of_a_hello_is_a_typed_error(carrier: str, garbage: bytes) -> None:
    async with channels(carrier) as (near_channel, far_channel):
        await near_channel.send([garbage])
        with pytest.raises((HandshakeFailed, NetworkMismatch)):
            await accept(far_channel, terms(), SYSTEM)


def _flipped(frames: list[bytes]) -> list[bytes]:
    last = frames[-1]
    return [*frames[:-1], last[:-1] + bytes([last[-1] ^ 1])]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frames: [frames[0], *frames], id="replayed"),
        pytest.param(lambda frames: frames[1:], id="skipped"),
        pytest.param(lambda frames: frames[::-1], id="reordered"),
        pytest.param(_flipped, id="flipped"),
        pytest.param(lambda frames: [frames[0][:100] + frames[1], *frames[2:]], id="joined"),
        pytest.param(lambda frames: [frames[0][:100], frames[0][100:], *frames[1:]], id="split"),
        pytest.param(lambda frames: [b"\0", *frames], id="inserted"),
    ],
)
async def test_records_that_something_between_has_changed_are_never_accepted(
    carrier: str, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    # Three records: each item fills one.
    sent = [(records.MESSAGE, bytes([number]) * 60_000) for number in range(3)]
    async with secured(carrier, Meddler) as sides:
        assert isinstance(sides.near_channel, Meddler)
        sides.near_channel.change = change
        await sides.near.send(sent)
        sides.near_channel.change = list
        got: list[Item] = []
        with pytest.raises(BadRecord), anyio.fail_after(30):
            await sides.near.send([message(1)])
            while True:
                got += await sides.far.receive()
        assert got == sent[: len(got)] and len(got) < 4
        with pytest.raises((ConnectionLost, ConnectionClosed)):
            await sides.near.receive()


async def test_a_record_that_comes_back_to_its_sender_is_not_accepted(carrier: str) -> None:
    def mirrored(frames: list[bytes]) -> list[bytes]:
        seen.extend(frames)
        return frames

    seen: list[bytes] = []
    async with secured(carrier, Meddler) as sides:
        assert isinstance(sides.near_channel, Meddler)
        sides.near_channel.change = mirrored
        await sides.near.send([message(1)])
        await sides.far_channel.send(seen)
        with pytest.raises(BadRecord):
            await sides.near.receive()


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_byte_changed_on_the_wire_is_an_error_and_never_an_item(carrier: str, way: str) -> None:
    if carrier == "local":
        return await _a_byte_changed_within_the_process(way)
    seed = random.randrange(2**32)
    positions = random.Random(seed)
    for _ in range(12):
        # From the first hello, which follows the upgrade of WebSocket, to the last record.
        position, bit = positions.randrange(1_500), 1 << positions.randrange(8)
        await _one_byte_changed(carrier, way, position, bit, f"seed {seed}, position {position}, bit {bit}")
    return None


async def _one_byte_changed(carrier: str, way: str, position: int, bit: int, case: str) -> None:
    sent = [message(number) for number in range(60)]
    errors: list[ChannelError] = []
    got: list[list[Item]] = [[], []]
    async with proxied(carrier) as (near_channel, far_channel, proxy):
        start = len(proxy.seen_up if way == "up" else proxy.seen_down) + position

        def change(offset: int, data: bytes) -> bytes:
            at = start - offset
            return data if not 0 <= at < len(data) else data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]

        setattr(proxy, f"change_{way}", change)
        with anyio.move_on_after(0.7) as scope:
            await _talk(near_channel, far_channel, sent, errors, got)
        # A length that was changed may announce bytes that never come: then it is time that ends it.
        assert scope.cancelled_caught or errors, case
        assert [len(items) for items in got] != [len(sent)] * 2, case
        assert all(items == sent[: len(items)] for items in got), case


async def _talk(
    near_channel: Channel, far_channel: Channel, sent: list[Item], errors: list[ChannelError], got: list[list[Item]]
) -> None:
    """Shake hands and exchange items in small records; keep the errors of both sides, and what each received."""
    near, far = await shake(near_channel, far_channel)
    errors += [side for side in (near, far) if isinstance(side, ChannelError)]
    if isinstance(near, SecureChannel) and isinstance(far, SecureChannel):

        async def send(channel: SecureChannel) -> None:
            with contextlib.suppress(ChannelError):
                for item in sent:
                    await channel.send([item])

        async def receive(channel: SecureChannel, into: list[Item]) -> None:
            try:
                while len(into) < len(sent):
                    into += await channel.receive()
            except ChannelError as error:
                errors.append(error)
                await channel.close()

        async with anyio.create_task_group() as group:
            for channel, into in ((near, got[0]), (far, got[1])):
                group.start_soon(send, channel)
                group.start_soon(receive, channel, into)


async def _a_byte_changed_within_the_process(way: str) -> None:
    for frame in range(3):

        def change(frames: list[bytes], count: list[int]) -> list[bytes]:
            count[0] -= len(frames)
            return _flipped(frames) if count[0] < 0 <= count[0] + len(frames) else frames

        left = [frame]
        async with channels("local") as (near_channel, far_channel):
            meddler = Meddler(near_channel if way == "up" else far_channel)
            meddler.change = lambda frames, left=left: change(frames, left)  # type: ignore[misc]  # bound now, not later
            near, far = (meddler, far_channel) if way == "up" else (near_channel, meddler)
            errors: list[ChannelError] = []
            got: list[list[Item]] = [[], []]
            with anyio.fail_after(10):
                await _talk(near, far, [message(number) for number in range(5)], errors, got)
            assert errors
            assert all(items == [message(number) for number in range(len(items))] for items in got)


async def test_a_goodbye_tells_its_reason_after_what_was_sent_before(carrier: str) -> None:
    async with secured(carrier) as sides:
        await sides.near.send([message(1)])
        await sides.near.close(records.SHUTDOWN, "going home")
        assert await collect(sides.far, 1) == [message(1)]
        with pytest.raises(ConnectionClosed, match="shutdown: going home"):
            await sides.far.receive()
        with pytest.raises(ConnectionClosed):
            await sides.near.send([message(2)])


async def test_an_end_at_a_records_border_without_a_goodbye_is_a_loss(carrier: str) -> None:
    async with secured(carrier) as sides:
        await sides.near.send([message(1)])
        await sides.near_channel.close()
        assert await collect(sides.far, 1) == [message(1)]
        with pytest.raises(ConnectionLost):
            await sides.far.receive()


async def test_a_cancelled_send_ends_the_channel_without_a_false_alarm(carrier: str) -> None:
    large = (records.MESSAGE, bytes(1_000_000))
    async with secured(carrier) as sides, anyio.create_task_group() as group:
        async with anyio.create_task_group() as sending:
            with anyio.move_on_after(0.5):
                while True:
                    await sides.near.send([large])
            sending.cancel_scope.cancel()
        with pytest.raises(ConnectionClosed):
            await sides.near.send([message(1)])
        group.start_soon(sides.near.close)
        with pytest.raises(ConnectionLost), anyio.fail_after(10):
            while True:
                await sides.far.receive()


async def test_nothing_that_was_sent_can_be_read_on_the_wire(carrier: str) -> None:
    canaries = [os.urandom(12).hex().encode() for _ in range(1_000)]
    one, two = terms(network_tag("canary-network")), terms(network_tag("canary-network"))
    if carrier == "local":
        seen = bytearray()

        def keep(frames: list[bytes]) -> list[bytes]:
            seen.extend(b"".join(frames))
            return frames

        async with channels(carrier) as (near_channel, far_channel):
            meddler = Meddler(near_channel)
            meddler.change = keep
            await _tell(meddler, far_channel, one, two, canaries)
    else:
        async with proxied(carrier) as (near_channel, far_channel, proxy):
            await _tell(near_channel, far_channel, one, two, canaries)
        seen = proxy.seen_up + proxy.seen_down
        if carrier == "ws":
            # A client's bytes are masked with a key that stands beside them.
            seen += _unmasked(bytes(proxy.seen_up))
    assert len(seen) > sum(map(len, canaries))
    secrets = [*canaries, one.identity.public_key, two.identity.public_key, b"canary-network"]
    assert [secret for secret in secrets if secret in seen] == []


async def _tell(near_channel: Channel, far_channel: Channel, one: Terms, two: Terms, canaries: list[bytes]) -> None:
    near, far = await shake(near_channel, far_channel, one, two)
    assert isinstance(near, SecureChannel) and isinstance(far, SecureChannel)
    sent = [(records.MESSAGE, canary) for canary in canaries]
    for start in range(0, len(sent), 10):
        await near.send(sent[start : start + 10])
    assert await collect(far, len(sent)) == sent


def _unmasked(data: bytes) -> bytes:
    at = data.index(b"\r\n\r\n") + 4
    found = bytearray()
    while at + 2 <= len(data):
        size, head = data[at + 1] & 127, 2
        if size == 126:
            size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
        elif size == 127:
            size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
        mask = data[at + head : at + head + 4]
        body = data[at + head + 4 : at + head + 4 + size]
        found += bytes(byte ^ mask[index % 4] for index, byte in enumerate(body))
        at += head + 4 + size
    return bytes(found)


async def test_a_first_hello_over_the_rate_is_refused_as_busy_and_one_that_is_none_costs_no_rate(carrier: str) -> None:
    asked: list[bool] = []

    async def admit() -> bool:
        asked.append(True)
        return False

    errors: list[ChannelError] = []

    async def accepting(far: Channel) -> None:
        try:
            await accept(far, terms(), SYSTEM, admit=admit)
        except ChannelError as error:
            errors.append(error)

    async with channels(carrier) as (near_channel, far_channel), anyio.create_task_group() as group:
        group.start_soon(accepting, far_channel)
        with pytest.raises(HandshakeRefused, match="busy"):
            await dial(near_channel, terms(), SYSTEM)
    assert (asked, [type(error) for error in errors]) == ([True], [HandshakeFailed])
    async with channels(carrier) as (near_channel, far_channel), anyio.create_task_group() as group:
        group.start_soon(accepting, far_channel)
        await near_channel.send([b"x"])
    assert (asked, [type(error) for error in errors]) == ([True], [HandshakeFailed] * 2)


class Stuck(Channel):
    """A channel of a transport that breaks C-5: its close never ends."""

    async def send(self, frames: Sequence[bytes]) -> None:
        raise ConnectionLost("gone")

    async def receive(self) -> Sequence[bytes]:
        raise ConnectionLost("gone")

    async def close(self) -> None:
        await anyio.sleep_forever()


@pytest.mark.parametrize("run", [dial, accept])
async def test_a_close_that_never_ends_keeps_no_handshake_from_its_end(
    run: Callable[..., Awaitable[SecureChannel]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABANDON_SEC", 0.05)
    terms = Terms(network=NETWORK, identity=Identity.generate(SYSTEM.entropy))
    with pytest.raises(ConnectionLost, match="gone"):
        await run(Stuck(), terms, SYSTEM)
