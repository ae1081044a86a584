"""The transport contract: frames between two processes, nothing else.

Encryption, identity, routing, acknowledgement, reconnecting and de-duplication are core's, so every transport has the
same security and the same delivery guarantee.

The clauses, each tested by `converge.testing.TransportContract`:

C-1  Frames arrive whole, unchanged, in the order sent, each once; a frame has 1 to `frame_bytes` bytes, all byte values
     are legal.
C-2  send takes one frame or many; receive answers at least one, and as many as have already arrived. Boundaries between
     frames are kept; groups are not.
C-3  send waits while the peer does not read: what a channel holds unsent is bounded (`WRITE_QUEUE_BYTES`), memory does
     not grow with what is sent.
C-4  An orderly close by the peer, or its death, ends receive with `ConnectionLost` after the frames that had arrived;
     send raises it too, at once or at a later send.
C-5  close is idempotent, wakes a waiting send and receive with `ConnectionClosed`, and never waits for the peer longer
     than a second.
C-6  A frame over the limit is refused with `MessageTooLarge`, an empty one with `InvalidValue`, before any byte of the
     call is sent; one over the limit that the peer announces ends the channel with `BadRecord`, before memory is taken
     for it.
C-7  listen binds before it returns, and its `address` can be connected to (port 0 has become a port); a port in use, or
     an address that is not ours, is `ListenFailed` at once.
C-8  connect to a closed port, an unknown host, or a peer that speaks something else fails with `ConnectFailed` (or the
     channel ends) in time.
C-9  Many channels of one listener are independent: one that does not read stops no other, and no call keeps the thread
     of the event loop waiting.
C-10 A cancelled receive loses no frame. A cancelled send leaves the channel usable, or closed with `ConnectionClosed`;
     any of its frames may have been sent, never half of one with another after it.
C-11 Leaving the listener closes its socket and every channel that it has accepted, and leaves no descriptor open.
C-12 Data that does not follow the transport's framing ends that channel alone with `BadRecord` or `ConnectionLost`, in
     bounded time and memory.
C-13 A transport or listener that is left passes through what its block raised, as it is: exceptions, `SystemExit`, a
     cancellation.
C-14 An accepted channel says its peer's address in `peer` (HOST:PORT, where the transport has such), and is accepted
     before any handshake of the transport's own (TLS, an HTTP upgrade) is done: that is part of its first receive or
     send. So core counts what strangers cost, for each address, whatever the transport.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs

from converge.contracts.store import Feature

CONTRACT = 2
"""The number of this contract."""

FRAME_BYTES = 65_535
"""The longest frame: one Noise record."""

WRITE_QUEUE_BYTES = 1_048_576
"""What a channel may hold unsent before send waits."""

NO_TLS = bytes(32)
"""`tls_hash` of a channel without TLS."""


class Channel(ABC):
    """A connection that moves frames, in order, both ways. Used by one sender and one receiver at a time."""

    frame_bytes: int = FRAME_BYTES
    """The longest frame."""
    tls_hash: bytes = NO_TLS
    """SHA-256 of the server's certificate (DER), or 32 zero bytes."""
    peer: str = ""
    """The other side's address, for logs and limits per address only (C-14)."""
    is_tls_terminated: bool = False
    """Whether TLS ends before this process, as behind a reverse proxy: both sides may then see other certificates."""

    @abstractmethod
    async def send(self, frames: Sequence[bytes]) -> None:
        """Send the frames, waiting while the connection is full (C-1 to C-3, C-6).

        Raises:
            MessageTooLarge, InvalidValue: A frame is over the limit, or empty; nothing was sent.
            ConnectionLost: The connection broke; any of the frames may have arrived.
            ConnectionClosed: This side closed it.
        """

    @abstractmethod
    async def receive(self) -> Sequence[bytes]:
        """Return the frames that have arrived, at least one (C-1, C-2, C-4).

        Raises:
            ConnectionLost, ConnectionClosed, BadRecord: The channel is over.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the channel (C-5)."""


class Listener(ABC):
    """A bound address that accepts channels."""

    address: str
    """What `connect` takes: the URL as bound, with the real port."""

    @abstractmethod
    async def accept(self) -> Channel:
        """Wait for the next channel.

        Raises:
            ConnectionClosed: The listener was closed.
        """


class Transport(ABC):
    """Opens channels and listeners. `TransportBackend.open` gives it, and ends what is left of both."""

    @abstractmethod
    def listen(self, address: str) -> AbstractAsyncContextManager[Listener]:
        """Bind the address, a URL of this transport's scheme (C-7, C-11).

        Raises:
            ListenFailed: On entering; the reason is in its text.
        """

    @abstractmethod
    async def connect(self, address: str) -> Channel:
        """Connect to the address, a URL of this transport's scheme (C-8).

        Raises:
            ConnectFailed: The reason is in its text.
        """


Open = Callable[[Any], AbstractAsyncContextManager[Transport]]
"""`open(options)`: an async context manager of a Transport."""


@attrs.frozen(kw_only=True)
class TransportBackend:
    """The declaration of a transport: what a plugin's `converge_transports` returns.

    Attributes:
        check_address: Raises ValueError, with the reason, for a URL that can never work, such as one without a port. A
            node calls it before it opens anything, so that a typo in it is not reported as a network that is down.
            Without it `listen` reports it, later.
        check_listening: Raises ValueError, with the reason, where nobody can listen at the URL with these options, such
            as one with TLS without a certificate.
        secure_schemes: Those of `schemes` whose connections have TLS; `require_tls` allows no others.
        others: As `StoreBackend`.
    """

    name: str
    schemes: tuple[str, ...]
    options: type[Any]
    open: Open
    contract: int = attrs.field()
    features: frozenset[Feature] = frozenset()
    check_address: Callable[[str], object] | None = None
    check_listening: Callable[[str, Any], object] | None = None
    secure_schemes: frozenset[str] = frozenset()
