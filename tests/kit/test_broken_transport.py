"""Transports that are broken on purpose, one way each: the kit finds each of them, by the clause that it breaks and no
other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import attrs
import pytest

from converge.builtin.local.plugin import LOCAL
from converge.builtin.local.transport import LocalChannel, LocalListener, LocalTransport
from converge.contracts.transport import Channel, Listener, Transport, TransportBackend
from converge.errors import BadRecord, ConnectFailed, ListenFailed, MessageTooLarge
from converge.testing import StreamTransportContract, TransportContract
from converge.testing.running import citing, run_contract
from converge_transport_tcp.framing import Decoder
from converge_transport_tcp.plugin import TCP
from converge_transport_tcp.sockets import SocketChannel


class Bent(Channel):
    """A channel that does what another does; a subclass bends one thing."""

    def __init__(self, straight: Channel) -> None:
        self.straight = straight
        self.peer = straight.peer

    async def send(self, frames: Sequence[bytes]) -> None:
        await self.straight.send(frames)

    async def receive(self) -> Sequence[bytes]:
        return await self.straight.receive()

    async def close(self) -> None:
        await self.straight.close()

    @property
    def local(self) -> LocalChannel:
        assert isinstance(self.straight, LocalChannel)
        return self.straight


class BentListener(Listener):
    def __init__(self, straight: Listener, bend: type[Bent]) -> None:
        self.address, self.straight, self.bend = straight.address, straight, bend

    async def accept(self) -> Channel:
        return self.bend(await self.straight.accept())


class BentTransport(Transport):
    def __init__(self, straight: Transport, bend: type[Bent]) -> None:
        self.straight, self.bend = straight, bend

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        async with self.straight.listen(address) as listener:
            yield BentListener(listener, self.bend)

    async def connect(self, address: str) -> Channel:
        return self.bend(await self.straight.connect(address))


def bent(
    backend: TransportBackend, channel: type[Bent] = Bent, transport: type[BentTransport] = BentTransport
) -> TransportBackend:
    @contextlib.asynccontextmanager
    async def open_bent(options: Any) -> AsyncIterator[Transport]:
        async with backend.open(options) as straight:
            yield transport(straight, channel)

    return attrs.evolve(backend, open=open_bent)


class Local(TransportContract):
    """The kit on the local transport, with little patience for what hangs."""

    loops = ("asyncio",)
    carrier_bytes = 0
    limit_sec = 4.0
    breaks: ClassVar[str]

    @pytest.fixture
    def address(self) -> str:
        return "local:"

    @pytest.fixture
    def foreign_address(self) -> str:
        return "tcp://127.0.0.1:0"

    @pytest.fixture
    def unknown_address(self) -> str:
        return "local:nobody"


class Corrupting(Bent):
    """One value of a byte becomes another."""

    async def send(self, frames: Sequence[bytes]) -> None:
        # The test of C-1 sends each value by itself; a frame drawn for another test is not this one.
        await self.straight.send([b"\xff"] if list(frames) == [b"\xfe"] else frames)


class Merging(Bent):
    """Frames of one call arrive as one."""

    async def send(self, frames: Sequence[bytes]) -> None:
        await self.straight.send(
            [b"".join(frames)] if 1 < sum(map(len, frames)) <= self.frame_bytes and all(frames) else frames
        )


class Unbounded(Bent):
    """Keeps all that is sent, however slowly it is read."""

    async def send(self, frames: Sequence[bytes]) -> None:
        pipe = self.local._out
        held, pipe.held = pipe.held, 0
        try:
            await self.straight.send(frames)
        finally:
            pipe.held += held


class Forgetful(Bent):
    """What the peer has not read when this side closes is gone."""

    async def close(self) -> None:
        pipe = self.local._out
        if pipe.frames:
            pipe.frames.pop()
        await self.straight.close()


class Hanging(Bent):
    """close waits for ever for the peer."""

    async def close(self) -> None:
        await self.straight.close()
        await anyio.sleep_forever()


class Careless(Bent):
    """Sends the frames before the one that is too long."""

    async def send(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            await self.straight.send([frame])


class Limitless(Bent):
    """Sends a frame over the limit, cut in two."""

    async def send(self, frames: Sequence[bytes]) -> None:
        try:
            await self.straight.send(frames)
        except MessageTooLarge:
            await self.straight.send(
                [part for frame in frames for part in (frame[: self.frame_bytes], frame[self.frame_bytes :]) if part]
            )


class Untyped(BentTransport):
    """An address in use is the system's error."""

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        try:
            async with self.straight.listen(address) as listener:
                yield listener
        except ListenFailed as error:
            raise OSError(98, "Address already in use") from error


class Patient(BentTransport):
    """Waits for somebody to listen."""

    async def connect(self, address: str) -> Channel:
        try:
            return await self.straight.connect(address)
        except ConnectFailed:
            if address == "local:nobody":
                await anyio.sleep_forever()
            raise


class Entangled(Bent):
    """All channels share a lock, and hold it while they wait for their peers."""

    async def send(self, frames: Sequence[bytes]) -> None:
        names = LocalListener
        if (
            getattr(names, "lock", None) is None
            or getattr(names, "loop", None) is not anyio.lowlevel.current_token().native_token
        ):
            names.loop = anyio.lowlevel.current_token().native_token  # type: ignore[attr-defined]
            names.lock = anyio.Lock()  # type: ignore[attr-defined]
        async with names.lock:  # type: ignore[attr-defined]
            await self.straight.send(frames)


class Dropping(Bent):
    """What receive has taken when it is cancelled is gone."""

    async def receive(self) -> Sequence[bytes]:
        frames = await self.straight.receive()
        await anyio.lowlevel.checkpoint()
        return frames


class Leaving(BentTransport):
    """Channels that were accepted outlive their listener."""

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        async with self.straight.listen(address) as listener:
            yield listener
            assert isinstance(listener, LocalListener)
            listener.channels.clear()


KEPT: list[Any] = []
"""What nobody closes; without it the event loop would, once it is garbage."""


class Lingering(BentTransport):
    """Closes its listener only where nothing was raised."""

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        listening = self.straight.listen(address)
        KEPT.append(listening)
        yield await listening.__aenter__()
        await listening.__aexit__(None, None, None)


NOT_READY = set[str]()
"""Addresses at which nobody has accepted yet."""


class LateListener(BentListener):
    """Is ready once somebody accepts."""

    async def accept(self) -> Channel:
        NOT_READY.discard(self.address)
        return await super().accept()


class Late(BentTransport):
    """Refuses who connects before anybody accepts."""

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        async with self.straight.listen(address) as listener:
            NOT_READY.add(listener.address)
            yield LateListener(listener, Bent)
        NOT_READY.discard(listener.address)

    async def connect(self, address: str) -> Channel:
        if address in NOT_READY:
            raise ConnectFailed(f"cannot connect to {address}: refused")
        return await super().connect(address)


def refuse(address: str) -> None:
    """Allow no address."""
    raise ValueError("it is none")


class Wrapping(BentTransport):
    """What the block of a listener raised comes out in a group."""

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        async with self.straight.listen(address) as listener, anyio.create_task_group():
            yield listener


class Raw(Bent):
    """An empty frame on the wire is an error without a type."""

    async def receive(self) -> Sequence[bytes]:
        try:
            return await self.straight.receive()
        except BadRecord as error:
            if "of 0 bytes" in str(error):
                raise RuntimeError("length is zero") from error
            raise


class CorruptingContract(Local):
    backend = bent(LOCAL, Corrupting)
    breaks = "C-1"


class MergingContract(Local):
    backend = bent(LOCAL, Merging)
    breaks = "C-2"


class UnboundedContract(Local):
    backend = bent(LOCAL, Unbounded)
    breaks = "C-3"


class ForgetfulContract(Local):
    backend = bent(LOCAL, Forgetful)
    breaks = "C-4"


class HangingContract(Local):
    backend = bent(LOCAL, Hanging)
    breaks = "C-5"


class CarelessContract(Local):
    backend = bent(LOCAL, Careless)
    breaks = "C-6"


class LimitlessContract(Local):
    backend = bent(LOCAL, Limitless)
    breaks = "C-6"


class UntypedContract(Local):
    backend = bent(LOCAL, transport=Untyped)
    breaks = "C-7"


class LateContract(Local):
    backend = bent(LOCAL, transport=Late)
    breaks = "C-7"


class RefusingContract(Local):
    backend = attrs.evolve(LOCAL, check_address=refuse)
    breaks = "C-7"


class LingeringContract(Local):
    backend = bent(LOCAL, transport=Lingering)
    breaks = "C-11"


class PatientContract(Local):
    backend = bent(LOCAL, transport=Patient)
    breaks = "C-8"


class EntangledContract(Local):
    backend = bent(LOCAL, Entangled)
    breaks = "C-9"


class DroppingContract(Local):
    backend = bent(LOCAL, Dropping)
    breaks = "C-10"


class LeavingContract(Local):
    backend = bent(LOCAL, transport=Leaving)
    breaks = "C-11"


class WrappingContract(Local):
    backend = bent(LOCAL, transport=Wrapping)
    breaks = "C-13"


class RawContract(StreamTransportContract):
    backend = bent(TCP, Raw)
    breaks: ClassVar[str] = "C-12"
    loops = ("asyncio",)
    limit_sec = 8.0
    patience_sec = 3.0
    oversized = b"\x00\x01\x00\x00"
    malformed: ClassVar = {"an empty frame": bytes(4)}

    @pytest.fixture
    def options(self) -> Any:
        return TCP.options(frame_sec=0.5)


class Nameless(Bent):
    """Does not say who is at the other end."""

    def __init__(self, straight: Channel) -> None:
        super().__init__(straight)
        self.peer = ""


class NamelessContract(RawContract):
    backend = bent(TCP, Nameless)
    breaks: ClassVar[str] = "C-14"
    patience_sec = 6.0
    limit_sec = 20.0

    @pytest.fixture
    def options(self) -> Any:
        return TCP.options(frame_sec=2.0)


class Headless(Bent):
    """Forgets what it has read of a frame when its receive is cancelled, as where a header and a body are awaited one
    after the other.
    """

    async def receive(self) -> Sequence[bytes]:
        assert isinstance(self.straight, SocketChannel)
        try:
            return await self.straight.receive()
        except anyio.get_cancelled_exc_class():
            self.straight._decoder = Decoder(self.frame_bytes)
            raise


class Lenient(Bent):
    """The time that a frame may take begins again with each byte of it."""

    async def receive(self) -> Sequence[bytes]:
        straight = self.straight
        assert isinstance(straight, SocketChannel)
        read = type(straight)._read

        async def read_and_forgive() -> bytes:
            data = await read(straight)
            straight._since = anyio.current_time()
            return data

        straight._read = read_and_forgive  # type: ignore[method-assign]  # of this channel alone
        return await straight.receive()


class Trickling(Bent):
    """Gives one frame at a time, however many have arrived."""

    def __init__(self, straight: Channel) -> None:
        super().__init__(straight)
        self.arrived: list[bytes] = []

    async def receive(self) -> Sequence[bytes]:
        await anyio.lowlevel.checkpoint()
        self.arrived = self.arrived or list(await self.straight.receive())
        return [self.arrived.pop(0)]


class Mute(Bent):
    """Sends nothing."""

    async def send(self, frames: Sequence[bytes]) -> None:
        await anyio.lowlevel.checkpoint()


class Narrow(Bent):
    """Holds few frames, as where each is a packet of the kernel's."""

    async def send(self, frames: Sequence[bytes]) -> None:
        pipe = self.local._out
        for frame in frames:
            while len(pipe.frames) >= 8 and not pipe.is_over:
                pipe.writable = anyio.Event()
                await pipe.writable.wait()
            await self.straight.send([frame])


class HeadlessContract(NamelessContract):
    backend = bent(TCP, Headless)
    breaks: ClassVar[str] = "C-10"


class LenientContract(RawContract):
    backend = bent(TCP, Lenient)
    breaks: ClassVar[str] = "C-12"
    malformed: ClassVar = {}
    limit_sec = 4.0


class TricklingContract(Local):
    backend = bent(LOCAL, Trickling)
    breaks = "C-2"


class NarrowContract(Local):
    backend = bent(LOCAL, Narrow)
    limit_sec = 30.0


class MuteContract(Local):
    backend = bent(LOCAL, Mute)
    limit_sec = 0.5


class StraightContract(Local):
    backend = bent(LOCAL)
    limit_sec = 30.0


BROKEN = (
    CorruptingContract,
    MergingContract,
    TricklingContract,
    UnboundedContract,
    ForgetfulContract,
    HangingContract,
    CarelessContract,
    LimitlessContract,
    UntypedContract,
    PatientContract,
    EntangledContract,
    DroppingContract,
    LeavingContract,
    RawContract,
    WrappingContract,
    NamelessContract,
    HeadlessContract,
    LenientContract,
    LateContract,
    RefusingContract,
    LingeringContract,
)


@pytest.mark.parametrize("contract", BROKEN, ids=lambda contract: contract.__name__)
def test_a_broken_transport_fails_the_clause_that_it_breaks_and_no_other(
    contract: type[Local] | type[RawContract],
) -> None:
    """Without FULL_TESTS=1 the tests of that clause are run until one fails, so that it says nothing of others."""
    is_full = os.environ.get("FULL_TESTS") == "1"
    asked = (None, ()) if is_full else (citing(contract, [contract.breaks]), (contract.breaks,))
    run = run_contract(contract, tests=asked[0], until=asked[1])
    assert {failure.clause for failure in run.failures} == {contract.breaks}, "\n".join(
        failure.report for failure in run.failures
    )
    assert run.passed or not is_full


def test_the_same_transport_unbroken_fails_nothing() -> None:
    run = run_contract(StraightContract)
    assert run.failures == (), run.output
    assert run.passed


def test_a_channel_that_holds_few_frames_is_none_that_breaks_a_clause() -> None:
    run = run_contract(NarrowContract, tests=citing(NarrowContract, ["C-1", "C-2", "C-3"]))
    assert run.failures == () and run.passed, run.output


def test_what_hangs_is_told_with_the_line_that_waited() -> None:
    run = run_contract(HangingContract, tests=citing(HangingContract, ["C-5"]), until=["C-5"])
    hung = [failure.said for failure in run.failures if failure.said.startswith("C-5: the test did not end within ")]
    assert hung and "; it waited in: await " in hung[0], run.output


def test_an_example_that_hung_is_not_made_shorter_at_the_price_of_its_time_for_each_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight, connected = LocalTransport.connect, list[str]()

    async def connect(self: LocalTransport, address: str) -> Channel:
        connected.append(address)
        return await straight(self, address)

    monkeypatch.setattr(LocalTransport, "connect", connect)
    run = run_contract(MuteContract, tests="test_c1_frames_arrive_whole_and_in_order")
    said = [failure.said.partition(";")[0] for failure in run.failures]
    assert said == ["C-1: the test did not end within 0.5 s"], run.output
    assert len(connected) == 1


def test_every_clause_has_a_broken_transport() -> None:
    assert {contract.breaks for contract in BROKEN} == {f"C-{number}" for number in range(1, 15)}
