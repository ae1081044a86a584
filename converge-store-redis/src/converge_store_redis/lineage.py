"""Whether the server that is connected to has all that this handle was told is written.

A failover, or a restart with the last second missing, begins another history, in which revisions go on from an earlier
one. Others may have passed the revision that we saw before we are back, so that looking at revisions alone would miss
it: the first client that meets a history writes down where it began.
"""

from __future__ import annotations

from hiredis import ReplyError

from converge_store_redis.connection import Connection
from converge_store_redis.scripts import load

LOST = (
    "redis at {where} began another history at revision {began}, after a failover or a restart, and this process has "
    "seen revision {seen}: what was acknowledged in between is lost there; find out what became of it, then run "
    "`converge store accept`: this process goes on then"
)


class Lineage:
    """What one handle saw of a server's history."""

    def __init__(self, histories: bytes, counter: bytes) -> None:
        self._keys = (histories, counter)
        self.seen = 0
        """The greatest revision that was given to this handle."""
        self.loss = ""
        """What was lost, until a write has said so."""
        self._run = self._replication = ""

    def saw(self, revision: int) -> None:
        """Note a revision that the server has given."""
        if revision > self.seen:
            self.seen = revision

    async def meet(self, connection: Connection, where: object) -> None:
        """Check the history of a server just connected to.

        Raises:
            OSError: The connection died.
        """
        server, replication = (
            connection.ask("INFO", "server"),
            connection.ask("INFO", "replication"),
        )
        info = parsed(await server) | parsed(await replication)
        run, now = info.get("run_id", ""), info.get("master_replid", "")
        if not run or (run, now) == (self._run, self._replication):
            return  # a user without INFO, or the one that we know
        began = await connection.ask("EVAL", load("began").text, 2, *self._keys, f"{run}:{now}")
        if not isinstance(began, int):
            return  # a server that takes no writes now; the next connection looks again
        # A primary that lost its last replica long ago takes another id, and continues the same history.
        is_another = run != self._run or info.get("master_replid2") == self._replication
        if self._run and is_another and self.seen > began:
            self.loss = LOST.format(where=where, began=began, seen=self.seen)
            self.seen = 0
        self._run, self._replication = run, now


def parsed(answer: object) -> dict[str, str]:
    """Return the fields of an answer to INFO; none if it was refused."""
    if isinstance(answer, ReplyError) or not isinstance(answer, bytes | str):
        return {}
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}
