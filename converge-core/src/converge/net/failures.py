"""What the system says of a connection or an address, as errors of Converge: for transports over sockets."""

from __future__ import annotations

import errno
import os
import socket
import ssl

from converge.errors import ConnectFailed, ListenFailed

OUT_OF_DATE = frozenset({9, 10})
"""Codes of OpenSSL: a certificate is not valid yet, or no longer."""


def connect_failed(address: str, why: BaseException | str) -> ConnectFailed:
    """Return the error of an address that cannot be connected to."""
    advice = "check the address, and that a node listens there"
    if isinstance(why, ssl.SSLCertVerificationError):
        advice = "compare that certificate with the address, and with the authorities in `ca` here"
        if why.verify_code in OUT_OF_DATE:
            advice = "renew it there, or set the clock of this host"
    reason = why if isinstance(why, str) else reason_of(why)
    return ConnectFailed(f"cannot connect to {address}: {reason}; {advice}")


def listen_failed(address: str, reason: str) -> ListenFailed:
    """Return the error of an address that cannot be bound."""
    return ListenFailed(
        f"cannot listen on {address}: {reason}; choose an address of this host and a free port (0 draws one)"
    )


def reason_of(error: BaseException) -> str:
    """Return what the system says, without Python's wrapping."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        return f"TLS failed{': the other side says' if '_ALERT_' in reason else ':'} {reason}"
    if isinstance(error, socket.gaierror) and error.strerror:  # its numbers are below 0, and a world of their own
        return error.strerror
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    if isinstance(error, ConnectionResetError):  # as event loops raise it
        return os.strerror(errno.ECONNRESET)
    return str(error) or type(error).__name__
