"""The system's errors as Converge's, in one place."""

from __future__ import annotations

import errno
import os
import ssl

from converge.errors import ConnectFailed, ConnectionLost, ListenFailed

# The process or the host is out of descriptors or memory for the moment: accepting again later may work.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def lost(error: BaseException | None) -> ConnectionLost:
    """Return the error of a connection that ended without our doing."""
    reason = f": {reason_of(error)}" if error is not None else ""
    return ConnectionLost(f"the peer is gone{reason}; frames sent shortly before may not have arrived")


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
