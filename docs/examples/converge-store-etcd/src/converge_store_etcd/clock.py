"""One clock for every client of a store without a server clock: a key that each client only moves forward, by what has
passed on its own monotonic clock since it read the key.

Store time is what stands in the key. A client's reckoning begins with what it has read, at the moment at which it had
the answer, so it is behind the others' by a trip at most and never ahead; where the key is ahead of its reckoning, it
begins anew from there. So store time never runs faster than the fastest monotonic clock of a client, whatever their
wall clocks say.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from converge.errors import StoreBusy
from converge_store_etcd.client import Client, text

MOVES = 100
"""How often a move is tried again after another client's; each failure means that the clock went on."""
RENEWALS = 3
"""How often, within `idle_sec`, a client says that it is there."""


def packed(moment: int) -> bytes:
    """Return a moment as text of one width, which etcd compares as it compares any bytes."""
    return b"%020d" % max(moment, 0)


def since_boot_us() -> int:
    """Return microseconds of a clock that nobody can set; where the system has it, one that counts while it sleeps."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000


class Clock:
    """The clock of one network, seen by one client."""

    def __init__(self, client: Client, start: bytes, idle_sec: int) -> None:
        self._client, self._idle_sec = client, idle_sec
        self.key, self._alive = start + b"clock", start + b"alive"
        self._revision, self._ahead_us, self._said_at = 0, 0, -float("inf")

    async def start(self, *, may_begin: bool) -> bool:
        """Read the clock, or begin one; return whether there is one now.

        Where no client has been for `idle_sec`, which etcd tells by a lease of its own, the clock stood still, and
        nobody can hold a lease of Converge any more: it is set to UTC, if that is later.
        """
        wanted = [{"request_range": {"key": text(key)}} for key in (self.key, self._alive)]
        answer = await self._client.call("kv/txn", {"success": wanted}, writes=False)
        clock, alive = (one["response_range"].get("kvs", []) for one in answer["responses"])
        if not clock and not may_begin:
            return False
        self._ahead_us = 0 if alive else time.time_ns() // 1_000 - since_boot_us()
        self._read(clock)
        await self.now()
        return True

    async def now(self) -> int:
        """Move the clock to now, and return it: a later call of any client returns no less (S-8)."""
        if time.monotonic() - self._said_at > self._idle_sec / RENEWALS:
            await self._say_that_somebody_is_there()
        began = since_boot_us() + self._ahead_us
        for _ in range(MOVES):
            moment = since_boot_us() + self._ahead_us
            answer = await self._client.call("kv/txn", self._move(moment), writes=False)
            if answer.get("succeeded"):
                self._revision = int(answer["header"]["revision"])
                return moment
            # Another has moved it. What it says is store time, unless it was long ago.
            seen = self._read(answer["responses"][0]["response_range"].get("kvs", []))
            if seen >= began:
                return seen
        raise StoreBusy(f"the clock was moved {MOVES} times by others before this client could")

    def _move(self, moment: int) -> dict[str, Any]:
        where = {"key": text(self.key)}
        # A moment that is not greater would be a move back: then nothing is the same, and the key is read.
        is_same = {**where, "target": "MOD", "result": "EQUAL", "mod_revision": str(self._revision)}
        is_before = {**where, "target": "VALUE", "result": "LESS", "value": text(packed(moment))}
        return {
            "compare": [is_same, is_before] if self._revision else [is_same],
            "success": [{"request_put": {**where, "value": text(packed(moment))}}],
            "failure": [{"request_range": where}],
        }

    def _read(self, found: Sequence[Any]) -> int:
        """Take over what stands in the key, if it is ahead of this client's reckoning."""
        if not found:
            return 0
        moment = int(b64decode(found[0]["value"]))
        self._revision = int(found[0]["mod_revision"])
        self._ahead_us = max(self._ahead_us, moment - since_boot_us())
        return moment

    async def _say_that_somebody_is_there(self) -> None:
        lease = await self._client.call("lease/grant", {"TTL": str(self._idle_sec)}, writes=False)
        put = {"key": text(self._alive), "value": "", "lease": lease["ID"]}
        await self._client.call("kv/put", put, writes=False)
        self._said_at = time.monotonic()
