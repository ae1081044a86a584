"""The errors of the system and of `websockets` as Converge's, in one place."""

from __future__ import annotations

from http import HTTPStatus

from websockets.exceptions import ConnectionClosed as WsClosed
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from converge.errors import BadRecord, ChannelError, ConnectionLost

CONNECTING = (OSError, InvalidHandshake, InvalidURI, ValueError, EOFError)
"""What a failing connection raises."""

# What our side says when the peer broke the protocol: protocol error, not binary, not UTF-8, too big.
_OUR_COMPLAINTS = frozenset({1002, 1003, 1007, 1009})


def why(error: Exception) -> Exception | str:
    """Return why a connection was not made: the error, or what it comes from."""
    if isinstance(error, InvalidStatus) and error.response.status_code == HTTPStatus.UPGRADE_REQUIRED:
        return f"{error}: a proxy on the way drops the headers Upgrade and Connection"
    return error


def ended(error: WsClosed) -> ChannelError:
    """Return the error of a connection that ended without our calling close."""
    if error.sent is not None and error.sent.code in _OUR_COMPLAINTS and not error.rcvd_then_sent:
        return BadRecord(f"the peer broke the WebSocket protocol: {error.sent.reason or error.sent.code}")
    return ConnectionLost("the peer is gone; frames sent shortly before may not have arrived")
