"""SecureChannel: the handshake of `machines.secure` and the records of `machines.records` over a transport's channel."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio

from converge.contracts.transport import Channel
from converge.env import Env
from converge.errors import (
    BadRecord,
    ChannelError,
    ConnectionClosed,
    HandshakeFailed,
    MessageTooLarge,
    NetworkMismatch,
    VersionMismatch,
)
from converge.machines import records
from converge.machines.records import Item
from converge.machines.secure import REFUSED_NETWORK, REFUSED_SUITE, Agreed, Initiator, Responder, Terms, refusal

log = logging.getLogger("converge.channel")

HANDSHAKE_SEC = 5.0
"""A handshake that takes longer is given up: it holds a place that an honest peer could use."""

CLOSE_SEC = 1.0


class SecureChannel:
    """An authenticated, encrypted channel to one node: items in, items out. Used by one sender and one receiver at a time.

    Attributes:
        peer: The node key of the other side, verified.
        is_dialler: Whether this side made the connection.
    """

    def __init__(self, channel: Channel, agreed: Agreed, *, is_dialler: bool, early: list[bytes]) -> None:
        self._channel = channel
        self._sealer, self._opener = agreed.sealer(), agreed.opener()
        self.peer, self.is_dialler = agreed.peer, is_dialler
        self.address = channel.peer
        self._early = early

    async def send(self, items: Sequence[Item]) -> None:
        """Seal the items into as few records as hold them, and send these.

        Raises:
            MessageTooLarge: An item is over the limit; nothing was sent.
            ConnectionLost, ConnectionClosed: The channel is over.
        """
        await self._channel.send(self._sealer.seal(items))

    async def receive(self) -> list[Item]:
        """Answer the items that have arrived, at least one.

        Raises:
            BadRecord, MessageTooLarge: The peer, or something between, broke the channel's rules; it is closed.
            ConnectionClosed: The peer said goodbye, and why.
            ConnectionLost: It ended without a word.
        """
        try:
            while True:
                frames, self._early = self._early or await self._channel.receive(), []
                items = [item for frame in frames for item in self._opener.open(frame)]
                for kind, body in items:
                    if kind == records.CLOSE:
                        raise ConnectionClosed(f"the peer closed the connection: {records.close_reason(body)}")
                if items:
                    return items
        except (BadRecord, MessageTooLarge, VersionMismatch):
            await self.close(records.BAD, "bad record")
            raise

    async def close(self, reason: int = records.NORMAL, text: str = "") -> None:
        """Say goodbye if that is still possible, and close."""
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            try:
                await self._channel.send(self._sealer.seal([(records.CLOSE, records.close_body(reason, text))]))
            except ChannelError as error:
                log.debug("no goodbye to %s: %s", self.address, error)
        with anyio.CancelScope(shield=True):
            await self._channel.close()


async def dial(channel: Channel, terms: Terms, env: Env, *, expected: bytes | None = None) -> SecureChannel:
    """Run the dialler's side of the handshake; the channel is closed if it fails.

    Raises:
        PeerMismatch, TlsMismatch, VersionMismatch, HandshakeFailed, HandshakeRefused, ConnectionLost: It failed.
    """
    initiator = Initiator(terms, env.entropy, expected=expected)
    try:
        with anyio.fail_after(HANDSHAKE_SEC):
            await channel.send([initiator.hello1()])
            hello2, early = await _one(channel)
            await channel.send([initiator.read_hello2(hello2)])
            agreed = initiator.agreed
            assert agreed is not None, "a hello that was read is agreed"
            if early:
                raise HandshakeFailed("the peer spoke out of turn")
            # The peer's first record is its ACCEPT: until it is here, the peer may still refuse.
            return SecureChannel(channel, agreed, is_dialler=True, early=list(await channel.receive()))
    except TimeoutError:
        await _abandon(channel)
        raise HandshakeFailed(f"the peer did not finish its handshake within {HANDSHAKE_SEC:g} s") from None
    except ChannelError:
        await _abandon(channel)
        raise


async def accept(channel: Channel, terms: Terms, env: Env) -> SecureChannel:
    """Run the listener's side of the handshake; the channel is closed if it fails.

    Raises:
        NetworkMismatch, PeerMismatch, TlsMismatch, VersionMismatch, HandshakeFailed, ConnectionLost: It failed.
    """
    responder = Responder(terms, env.entropy)
    try:
        with anyio.fail_after(HANDSHAKE_SEC):
            hello1, early = await _one(channel)
            if early:
                raise HandshakeFailed("the peer spoke out of turn")
            await channel.send([responder.read_hello1(hello1)])
            hello3, early = await _one(channel)
            agreed = responder.read_hello3(hello3)
            secured = SecureChannel(channel, agreed, is_dialler=False, early=early)
            await secured.send([(records.ACCEPT, agreed.accept())])
            return secured
    except TimeoutError:
        await _abandon(channel)
        raise HandshakeFailed(f"the peer did not finish its handshake within {HANDSHAKE_SEC:g} s") from None
    except ChannelError as error:
        await _refuse(channel, error)
        raise


async def _one(channel: Channel) -> tuple[bytes, list[bytes]]:
    frames = await channel.receive()
    return frames[0], list(frames[1:])


async def _refuse(channel: Channel, error: ChannelError) -> None:
    """Tell an honest peer in clear text that it is wrong here; anything else gets no answer."""
    code = REFUSED_NETWORK if isinstance(error, NetworkMismatch) else REFUSED_SUITE if isinstance(error, VersionMismatch) else None
    if code is not None:
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            try:
                await channel.send([refusal(code)])
            except ChannelError as lost:
                log.debug("no refusal sent: %s", lost)
    await _abandon(channel)


async def _abandon(channel: Channel) -> None:
    with anyio.CancelScope(shield=True):
        await channel.close()
