"""What the tests of channels do with both ends: send, collect, flood, cancel, leave."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from converge.contracts.transport import Channel, Listener, Transport
from converge.errors import ChannelError, ConnectionLost
from converge.foreign import leaves
from converge.plugins.answers import mistake
from converge.testing.clauses import expect

# A send that has made no progress for so long waits.
QUIET_SEC = 0.25
# close may wait for the peer for one second (C-5); the rest is the machine's.
CLOSE_SEC = 3.0
# What a test of another clause gives to close before it goes on.
LEFT_SEC = 2.0
END = b"the last frame of this test"
_KIT = Path(__file__).parents[1]


class Flood:
    """Sends numbered frames until it is stopped, and counts them."""

    FRAME_BYTES = 16_384

    def __init__(self, channel: Channel) -> None:
        self.ending = Ending()
        self.sent = 0
        self._channel = channel
        self._is_stopped = False

    @property
    def accepted_bytes(self) -> int:
        """What send has returned for."""
        return self.sent * self.FRAME_BYTES

    async def run(self) -> None:
        """Send `\\0`, number, filling; at last one frame that begins with `\\1`."""
        await self.ending.of(self._send_all)

    async def wait_until_stuck(self, most: int) -> None:
        """Return when send has waited for a while, or has accepted more than `most` bytes."""
        seen = -1
        while seen != self.sent and self.accepted_bytes <= most:
            seen = self.sent
            # That nothing happens can only be seen by waiting.
            await anyio.sleep(QUIET_SEC)

    def stop(self) -> None:
        """Send the last frame."""
        self._is_stopped = True

    async def _send_all(self) -> None:
        for number in count():
            if self._is_stopped:
                break
            await self._channel.send([b"\0" + number.to_bytes(8, "big") + bytes(self.FRAME_BYTES - 9)])
            self.sent += 1
        await self._channel.send([b"\1" + bytes(8)])


class Ending:
    """How a call ended that runs in another task."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._known = anyio.Event()

    async def of(self, call: Callable[[], Any]) -> None:
        """Make the call; keep a channel's error."""
        try:
            await call()
        except ChannelError as error:
            self.error = error
        self._known.set()

    async def known(self) -> None:
        """Wait until the call has ended."""
        with anyio.fail_after(5):
            await self._known.wait()


@contextlib.contextmanager
def in_time(clause: str, seconds: float, hung: list[str] | None = None) -> Iterator[None]:
    """Expect that the block ends in time; what hangs is named by the line of the kit that waited.

    `hung` is of one test, if it is given: once one of its examples has hung, all others fail at once. To shorten that
    one took minutes, since each try waited until the end of its time.
    """
    hung = [] if hung is None else hung
    expect(clause, not hung, "".join(hung[:1]))
    waited = ""
    with anyio.move_on_after(seconds) as scope:
        try:
            yield
        except BaseException as error:
            waited = _line_of_kit(error)
            raise
    if scope.cancelled_caught:
        hung.append(f"the test did not end within {seconds:g} s{waited}")
    expect(clause, not hung, "".join(hung[:1]))


def _line_of_kit(error: BaseException) -> str:
    lines = [
        frame.line
        for one in leaves(error)
        for frame in traceback.extract_tb(one.__traceback__)
        if Path(frame.filename).is_relative_to(_KIT) and frame.line and not frame.line.startswith(("yield", "raise"))
    ]
    return f"; it waited in: {lines[-1]}" if lines else ""


async def connected(transport: Transport, listener: Listener, address: str) -> tuple[Channel, Channel]:
    """Connect and accept, side by side: some transports need both at once."""
    near: list[Channel] = []

    async def connect() -> None:
        near.append(await transport.connect(address))

    async with anyio.create_task_group() as group:
        group.start_soon(connect)
        far = await listener.accept()
        # One with TLS of its own ends its handshake with its first receive, and only then is the other side connected.
        await getattr(far, "shake", anyio.lowlevel.checkpoint)()
    return near[0], far


async def send_each(channel: Channel, sent: Sequence[bytes]) -> None:
    """Send one frame a call."""
    for frame in sent:
        await channel.send([frame])


async def send_groups(channel: Channel, groups: Sequence[Sequence[bytes]]) -> None:
    """Send a group a call."""
    for group in groups:
        await channel.send(group)


async def collect(channel: Channel, wanted: int) -> list[bytes]:
    """Receive so many frames, and no more."""
    got: list[bytes] = []
    while len(got) < wanted:
        arrived = await channel.receive()
        assert not (said := mistake(channel, "receive", arrived)), said
        got += arrived
    return got


async def collect_until(channel: Channel, is_last: Callable[[bytes], bool]) -> list[bytes]:
    """Receive up to and with the frame that is the last."""
    got = await collect(channel, 1)
    while not is_last(got[-1]):
        got += await collect(channel, 1)
    return got


def is_end(frame: bytes) -> bool:
    """Return whether it is the last frame of a test, which travels in a call of its own."""
    return frame == END


async def receive_into(channel: Channel, got: list[bytes]) -> None:
    """Receive once, leaving the frames where a cancelled caller finds them."""
    got += await channel.receive()


async def receive_all_into(channel: Channel, got: list[bytes]) -> None:
    """Receive until the peer is gone."""
    with contextlib.suppress(ConnectionLost):
        while True:
            got += await channel.receive()


async def serve_all(listener: Listener, endings: list[ChannelError]) -> None:
    """Accept every channel and receive until it ends."""

    async def serve(channel: Channel) -> None:
        try:
            while True:
                await channel.receive()
        except ChannelError as error:
            endings.append(error)

    async with anyio.create_task_group() as group:
        while True:
            group.start_soon(serve, await listener.accept())


async def turns(number: int) -> None:
    """Let the event loop run for so many turns."""
    for _ in range(number):
        await anyio.lowlevel.checkpoint()


async def leave(channel: Channel) -> None:
    """Close, but do not wait for ever: whether close ends in time is the matter of C-5 alone."""
    with anyio.move_on_after(LEFT_SEC):
        await channel.close()
