"""The system's errors as Converge's, in one place."""

from __future__ import annotations

import errno

from converge.errors import ConnectionLost
from converge.net.failures import reason_of

# The process or the host is out of descriptors or memory for the moment: accepting again later may work.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def lost(error: BaseException | None) -> ConnectionLost:
    """Return the error of a connection that ended without our doing."""
    reason = f": {reason_of(error)}" if error is not None else ""
    return ConnectionLost(f"the peer is gone{reason}; frames sent shortly before may not have arrived")
