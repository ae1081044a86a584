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

_NOBODY = "a proxy on the way does not reach the node behind it"
_REFUSED = "a proxy on the way refuses nodes; let this path through there"
_MOVED = "the address has moved, and no redirect is followed; advertise the one that it is at"
_HINTS: dict[int, str] = {
    HTTPStatus.UPGRADE_REQUIRED: "a proxy on the way drops the headers Upgrade and Connection",
    **dict.fromkeys((HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT), _NOBODY),
    **dict.fromkeys((301, 302, 303, 307, 308), _MOVED),
    **dict.fromkeys(
        (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN), "a proxy on the way refuses nodes; let this path through there"
    ),
    HTTPStatus.NOT_FOUND: "no node has this path",
}


def why(error: Exception) -> Exception | str:
    """Return why a connection was not made: the error, or what it comes from."""
    if isinstance(error, InvalidStatus) and (hint := _HINTS.get(error.response.status_code)):
        return f"{error}: {hint}"
    return error


def ended(error: WsClosed) -> ChannelError:
    """Return the error of a connection that ended without our calling close."""
    if error.sent is not None and error.sent.code in _OUR_COMPLAINTS and not error.rcvd_then_sent:
        return BadRecord(f"the peer broke the WebSocket protocol: {error.sent.reason or error.sent.code}")
    return ConnectionLost("the peer is gone; frames sent shortly before may not have arrived")
