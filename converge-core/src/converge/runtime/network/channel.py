"""SecureChannel: the handshake of `machines.secure` and the records of `machines.records` over a channel."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from operator import itemgetter

import anyio
import attrs

from converge.contracts.transport import Channel
from converge.env import Env
from converge.errors import ChannelError, ConnectionClosed, HandshakeFailed, NetworkMismatch, VersionMismatch
from converge.machines import records
from converge.machines.records import Item
from converge.machines.secure import (
    REFUSED_BUSY,
    REFUSED_NETWORK,
    REFUSED_SUITE,
    Agreed,
    Initiator,
    Responder,
    Terms,
    refusal,
)

log = logging.getLogger("converge.channel")

_KIND = itemgetter(0)

HANDSHAKE_SEC = 5.0
"""A handshake that takes longer is given up: it holds a place that an honest peer could use."""

CLOSE_SEC = 1.0

ABANDON_SEC = 5.0
"""How long a transport's close may take: it has a second (C-5), and one that never ends must not keep a node."""


class SecureChannel:
    """An authenticated, encrypted channel to one node: items in, items out; one sender and one receiver at a time.

    PING and PONG are items like others: whoever owns the channel answers them.

    Attributes:
        peer: The node key of the other side, verified.
        is_dialler: Whether this side made the connection.
        features: What both sides can do, as a set of bits.
        address: The other side's address, for logs only.
    """

    def __init__(self, channel: Channel, agreed: Agreed, *, is_dialler: bool, early: Sequence[bytes] = ()) -> None:
        """`early`: frames that came with the last one of the handshake."""
        self._channel = channel
        self._sealer, self._opener = agreed.sealer(), agreed.opener()
        self.peer, self.is_dialler, self.features = agreed.peer, is_dialler, agreed.features
        self.address = channel.peer
        self._early = early
        self._opened: list[Item] = []
        self._ending: ChannelError | None = None
        # Records are counted, not numbered: when one that was sealed is not sent, the peer takes the next for a
        # forgery. From the moment of sealing until the frames are handed over whole, nothing else may be sent, and if
        # that never comes, nothing ever.
        self._is_torn = False

    async def send(self, items: Sequence[Item]) -> None:
        """Seal the items into as few records as hold them, and send these.

        Raises:
            MessageTooLarge: An item is over the limit; nothing was sent.
            ConnectionLost, ConnectionClosed: The channel is over.

        Cancellation:
            Any of the items may arrive; the channel is over, since records may be missing.
        """
        if self._is_torn:
            raise ConnectionClosed(
                "the channel was closed, or an earlier send did not end, so the peer can read no other record; connect "
                "again"
            )
        frames = self._sealer.seal(items)
        self._is_torn = bool(frames)
        await self._channel.send(frames)
        self._is_torn = False

    async def receive(self) -> list[Item]:
        """Return the items that have arrived, at least one; those before an end of the channel are returned first.

        Raises:
            BadRecord, MessageTooLarge, VersionMismatch: The peer, or something between, broke the channel's rules; it
            is closed. ConnectionClosed: The peer said goodbye, and why; or this side closed.
            ConnectionLost: It ended without a word.
        """
        while not self._opened:
            if self._ending is not None:
                await self._raise_if_over()
            self._open(await self._frames() if self._early else await self._channel.receive())
        items, self._opened = self._opened, []
        return items

    async def close(self, reason: int = records.NORMAL, text: str = "") -> None:
        """Send goodbye if that is still possible, and close."""
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            try:
                if not self._is_torn:
                    await self.send([(records.CLOSE, records.close_body(reason, text))])
                    # Nothing may follow a goodbye.
                    self._is_torn = True
            except ChannelError as error:
                log.debug("no goodbye to %s: %s", self.address, error)
        await _abandon(self._channel)

    async def confirmed(self) -> SecureChannel:
        """Wait for the first record, which tells a dialler that it was accepted; keep what else came for receive."""
        while not self._opened and not self._opener.is_accepted:
            await self._raise_if_over()
            self._open(await self._frames())
        return self

    async def _frames(self) -> Sequence[bytes]:
        frames, self._early = self._early, ()
        return frames or await self._channel.receive()

    def _open(self, frames: Sequence[bytes]) -> None:
        """Open up to a goodbye or an error, and remember it for when the items before it have been taken."""
        try:
            for frame in frames:
                items = self._opener.open(frame)
                if records.CLOSE not in map(_KIND, items):
                    self._opened += items
                    continue
                for kind, body in items:
                    if kind == records.CLOSE:
                        raise ConnectionClosed(f"the peer closed the connection: {records.close_reason(body)}")
                    self._opened.append((kind, body))
        except ChannelError as error:
            self._ending = error

    async def _raise_if_over(self) -> None:
        error = self._ending
        if error is None:
            return
        if not isinstance(error, ConnectionClosed):
            await self.close(records.VERSION if isinstance(error, VersionMismatch) else records.BAD)
        raise type(error)(*error.args) from error


async def dial(channel: Channel, terms: Terms, env: Env, *, expected: bytes | None = None) -> SecureChannel:
    """Run the dialler's side of the handshake; the channel is closed if it fails or is cancelled.

    Raises:
        PeerMismatch, TlsMismatch, VersionMismatch, HandshakeFailed, HandshakeRefused, ConnectionLost, BadRecord: It
        failed.
    """
    initiator = Initiator(attrs.evolve(terms, tls_hash=channel.tls_hash), env.entropy, expected=expected)
    async with _handshake(channel):
        await channel.send([initiator.hello1()])
        hello2, early = await _one(channel)
        if early:
            raise HandshakeFailed("the peer sent a message out of order")
        await channel.send([initiator.read_hello2(hello2)])
        agreed = initiator.agreed
        assert agreed is not None, "a hello that was read is agreed"
        return await SecureChannel(channel, agreed, is_dialler=True).confirmed()


async def accept(
    channel: Channel, terms: Terms, env: Env, *, admit: Callable[[], Awaitable[bool]] | None = None
) -> SecureChannel:
    """Run the listener's side of the handshake; the channel is closed if it fails or is cancelled.

    `admit`: asked once a well-formed first hello has come, before it costs anything, whether it may be answered.

    Raises:
        NetworkMismatch, PeerMismatch, TlsMismatch, VersionMismatch, HandshakeFailed, ConnectionLost: It failed.
    """
    terms = attrs.evolve(terms, tls_hash=channel.tls_hash, is_tls_terminated=channel.is_tls_terminated)
    responder = Responder(terms, env.entropy)
    async with _handshake(channel):
        hello1, early = await _one(channel)
        if early:
            raise HandshakeFailed("the peer sent a message out of order")
        await _check(channel, responder, hello1)
        if admit is not None and not await admit():
            await _refuse(channel, REFUSED_BUSY)
            raise HandshakeFailed("too many handshakes began in this second; this one was refused")
        await channel.send([responder.read_hello1(hello1)])
        hello3, early = await _one(channel)
        agreed = responder.read_hello3(hello3)
        secured = SecureChannel(channel, agreed, is_dialler=False, early=early)
        await secured.send([(records.ACCEPT, agreed.accept())])
        return secured


@contextlib.asynccontextmanager
async def _handshake(channel: Channel) -> AsyncIterator[None]:
    """Limit the time of a handshake, and close the channel unless it completes."""
    try:
        with anyio.fail_after(HANDSHAKE_SEC):
            yield
    except TimeoutError:
        await _abandon(channel)
        raise HandshakeFailed(f"the peer did not finish its handshake within {HANDSHAKE_SEC:g} s") from None
    except BaseException:
        await _abandon(channel)
        raise


async def _one(channel: Channel) -> tuple[bytes, Sequence[bytes]]:
    frames = await channel.receive()
    return frames[0], frames[1:]


async def _check(channel: Channel, responder: Responder, hello1: bytes) -> None:
    """Check the first hello; refuse an honest peer in clear text if it is on another network; answer nothing else."""
    try:
        responder.check_hello1(hello1)
    except NetworkMismatch:
        await _refuse(channel, REFUSED_NETWORK)
        raise
    except VersionMismatch:
        await _refuse(channel, REFUSED_SUITE)
        raise


async def _refuse(channel: Channel, code: int) -> None:
    with anyio.move_on_after(CLOSE_SEC):
        try:
            await channel.send([refusal(code)])
        except ChannelError as lost:
            log.debug("no refusal sent: %s", lost)


async def _abandon(channel: Channel) -> None:
    with anyio.move_on_after(ABANDON_SEC, shield=True):
        await channel.close()
