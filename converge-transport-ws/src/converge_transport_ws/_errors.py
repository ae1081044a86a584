"""The errors of the system and of `websockets` as Converge's, in one place."""

from __future__ import annotations

import os
import ssl

from websockets.exceptions import ConnectionClosed as WsClosed
from websockets.exceptions import InvalidHandshake, InvalidURI

from converge.errors import BadRecord, ChannelError, ConnectFailed, ConnectionLost, ListenFailed

CONNECTING = (OSError, InvalidHandshake, InvalidURI, ValueError, EOFError)
"""What a failing connection raises."""

# What our side says when the peer broke the protocol: protocol error, not binary, not UTF-8, too big.
_OUR_COMPLAINTS = frozenset({1002, 1003, 1007, 1009})


def ended(error: WsClosed) -> ChannelError:
    """Return the error of a connection that ended without our calling close."""
    if error.sent is not None and error.sent.code in _OUR_COMPLAINTS and not error.rcvd_then_sent:
        return BadRecord(f"the peer broke the WebSocket protocol: {error.sent.reason or error.sent.code}")
    return ConnectionLost("the peer is gone; frames sent shortly before may not have arrived")


def connect_failed(address: str, reason: str) -> ConnectFailed:
    """Return the error of an address that cannot be connected to."""
    return ConnectFailed(f"cannot connect to {address}: {reason}; check the address, and that a node listens there")


def listen_failed(address: str, reason: str) -> ListenFailed:
    """Return the error of an address that cannot be bound."""
    return ListenFailed(
        f"cannot listen on {address}: {reason}; choose an address of this host and a free port (0 draws one)"
    )


def reason_of(error: BaseException) -> str:
    """Return what the system says, without Python's wrapping."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
