"""Whether the network that is written to has all that this handle was told is written.

A failover, a restart with the last second missing, a backup that is put back and a server that followed an older one
for a moment begin another history under the same epoch, some of them without any connection noticing. Others may have
passed the revision that we saw before we write again, so that looking at revisions alone would miss it. So each write
leaves a witness in the same step, a key of this handle's with the revision: where it shows an earlier one than was
acknowledged, or is gone, what was acknowledged is lost.
"""

from __future__ import annotations

import secrets
import time

from converge.errors import StoreRolledBack

LOST = (
    "redis at {where} lacks what this process wrote at revision {seen}, after a failover, a restart or a backup that "
    "was put back; find out what became of it, then run `converge store accept`: this process goes on then"
)

LASTS_SEC = 7 * 86_400
"""A witness that was not replaced for so long is removed by the server."""

TRUSTED_SEC = 86_400.0
"""One that was not replaced for so long is begun anew."""


class Witness:
    """That of one handle."""

    def __init__(self, prefix: bytes) -> None:
        self.key = prefix + secrets.token_hex(8).encode()
        self._revision, self._written_at, self._lost = 0, 0.0, 0

    def demanded(self) -> int:
        """Return the revision that it must show, or a later one; 0 if it need not be there."""
        # By a clock that counts while the host is suspended, as the server's does.
        return self._revision if 0 <= time.time() - self._written_at < TRUSTED_SEC else 0

    def wrote(self, revision: int) -> None:
        """Note a revision that was given to an acknowledged write."""
        if revision > self._revision:
            self._revision, self._written_at = revision, time.time()

    def lost(self, where: object) -> StoreRolledBack:
        """Return what to say of a witness that does not show what it must, once to each call that is under way; it is
        begun anew.
        """
        self._lost, self._revision = self._revision or self._lost, 0
        return StoreRolledBack(LOST.format(where=where, seen=self._lost))
