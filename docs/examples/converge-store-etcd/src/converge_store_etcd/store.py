"""EtcdStore: each batch is a transaction of etcd, nested in one for the call; etcd's revisions are the store's."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio

from converge.contracts.store import (
    LIMITS,
    Batch,
    Channel,
    Committed,
    Conflict,
    Durability,
    Entry,
    Inspection,
    Key,
    Prefix,
    Range,
    Store,
    warning,
)
from converge.errors import NoSuchStore, ValueTooLarge
from converge.model.keys import FAMILIES, pack, unpack
from converge_store_etcd.client import Client, Op, text
from converge_store_etcd.clock import Clock, packed
from converge_store_etcd.options import EtcdOptions

# The family is one byte of a key: its number among all families. New ones come last, so numbers stay.
NUMBERS = {family: bytes([number]) for number, family in enumerate(FAMILIES.values())}
REPLICAS = 3
"""Members from which on the loss of one loses nothing."""
CALL_BYTES = 1_000_000
"""Values that go into one transaction, but for one batch of its own: etcd's log takes entries one by one."""


class EtcdStore(Store):
    """One handle on a cluster."""

    is_remote = True

    def __init__(self, url: str, options: EtcdOptions, client: Client) -> None:
        self.url, self.options, self.client = url, options, client
        self.start = b"converge/" + hashlib.blake2b(options.network.encode(), digest_size=8).digest()
        self.clock = Clock(client, self.start + b"\xff", options.idle_sec)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: EtcdOptions) -> AsyncIterator[Store]:
        """Open `etcd://HOST:PORT,HOST:PORT,...`: members of one cluster.

        Raises:
            NoSuchStore: The network has never stored anything, and `must_exist` asks for it.
            StoreUnavailable: No member answers.
        """
        client = Client(url.partition("://")[2].rstrip("/").split(","), options.call_sec)
        try:
            store = cls(url, options, client)
            if not await store.clock.start(may_begin=not options.must_exist):
                raise NoSuchStore(f'network "{options.network}" has stored nothing at {url}; check both')
            store.durability = (await store.inspect()).durability
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await client.close()

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        """Return another handle, with connections of its own (S-17)."""
        return self.open(self.url, self.options)

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """Read all keys in one transaction (S-1)."""
        found = await self._read([{"key": text(self._packed(key))} for key in keys])
        return [self._entry(key[0], page[0]) if page else None for key, page in zip(keys, found, strict=True)]

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        """Read all ranges in one transaction (S-2)."""
        found = await self._read([{**self._span(r), "limit": str(r.limit)} for r in ranges])
        return [[self._entry(r.prefix[0], one) for one in page] for r, page in zip(ranges, found, strict=True)]

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Let etcd count (S-18)."""
        wanted = [{**self._span(Range(prefix)), "count_only": True} for prefix in prefixes]
        answers = await self._transact([{"request_range": one} for one in wanted], writes=False)
        return [int(one["response_range"].get("count", 0)) for one in answers["responses"]] if wanted else []

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        """Nest a transaction for each batch in one (S-3 to S-7). Nobody is woken: watchers poll."""
        refuse_long_values(batches)
        if any(batch.window is not None for batch in batches):
            await self.clock.now()  # so that a window is compared with now, not with when somebody last looked
        outcomes: list[Committed | Conflict] = []
        for some in groups(batches):
            outcomes += await self._apply(some)
        return outcomes

    async def time(self) -> int:
        """Move the clock, and return it (S-8)."""
        return await self.clock.now()

    async def inspect(self) -> Inspection:
        """Say how many members there are, which is what durability depends on (S-24)."""
        status = await self.client.call("maintenance/status", {}, writes=False)
        members = (await self.client.call("cluster/member/list", {}, writes=False))["members"]
        few = warning("durability", f"{len(members)} members: the loss of one may lose all", "run three, or five")
        is_safe = len(members) >= REPLICAS
        return Inspection(
            durability=Durability.D3 if is_safe else Durability.D2,
            product=f"etcd {status['version']}",
            findings=() if is_safe else (few,),
        )

    def _packed(self, key: Key) -> bytes:
        return self.start + NUMBERS[key[0]] + pack(key)

    def _span(self, wanted: Range) -> Op:
        """Return the range of etcd that is a range of the contract; no packed key ends with the greatest byte alone."""
        first = prefix = self._packed(wanted.prefix)
        if wanted.after is not None:
            first = self._packed(wanted.prefix + wanted.after) + b"\0"
        return {"key": text(first), "range_end": text(behind(prefix))}

    def _entry(self, family: Any, found: Any) -> Entry:
        key = unpack(family, b64decode(found["key"])[len(self.start) + 1 :])
        return Entry((family, *key), b64decode(found.get("value", "")), int(found["mod_revision"]))

    async def _read(self, wanted: Sequence[Op]) -> list[list[Any]]:
        if not wanted:
            return []
        answer = await self._transact([{"request_range": one} for one in wanted], writes=False)
        return [one["response_range"].get("kvs", []) for one in answer["responses"]]

    async def _transact(self, operations: Sequence[Op], *, writes: bool) -> Any:
        return await self.client.call("kv/txn", {"success": list(operations)}, writes=writes)

    async def _apply(self, batches: Sequence[Batch]) -> list[Committed | Conflict]:
        # Every call has a revision of its own, also where nothing of it changes a key (S-6).
        tick = {"request_put": {"key": text(self.start + b"\xfftick"), "value": ""}}
        answer = await self._transact([tick, *(self._nested(batch) for batch in batches)], writes=True)
        revision = int(answer["header"]["revision"])
        outcomes = [one["response_txn"] for one in answer["responses"][1:]]
        return [
            Committed(revision) if outcome.get("succeeded") else self._conflict(batch, outcome["responses"])
            for batch, outcome in zip(batches, outcomes, strict=True)
        ]

    def _nested(self, batch: Batch) -> Op:
        checks = [(text(self._packed(key)), revision) for key, revision in batch.checks]
        compare = [
            {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)} for key, revision in checks
        ]
        clock = {"key": text(self.clock.key)}
        for bound, result, off in zip(batch.window or (), ("GREATER", "LESS"), (-1, 1), strict=False):
            if bound is not None:
                limit = text(packed(bound + off))
                compare.append({**clock, "target": "VALUE", "result": result, "value": limit})
        puts = [{"request_put": {"key": text(self._packed(key)), "value": text(value)}} for key, value in batch.puts]
        deletes = [{"request_delete_range": {"key": text(self._packed(key))}} for key in batch.deletes]
        # If it fails, what it was compared with is read in the same step, and says why.
        seen = [{"request_range": {"key": key, "keys_only": True}} for key, _ in checks]
        return {
            "request_txn": {
                "compare": compare,
                "success": puts + deletes,
                "failure": [*seen, {"request_range": clock}],
            }
        }

    def _conflict(self, batch: Batch, seen: Sequence[Any]) -> Conflict:
        *found, clock = [one["response_range"].get("kvs", []) for one in seen]
        revisions = [int(page[0]["mod_revision"]) if page else 0 for page in found]  # 0 is ABSENT
        failed = [key for (key, wanted), revision in zip(batch.checks, revisions, strict=True) if revision != wanted]
        low, high = batch.window or (None, None)
        now = int(b64decode(clock[0]["value"]))
        is_outside = (low is not None and now < low) or (high is not None and now > high)
        return Conflict(tuple(failed), is_outside)


def behind(prefix: bytes) -> bytes:
    """Return the first key behind all that begin with a prefix."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])


def groups(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Yield the batches in groups whose values fit one transaction."""
    group, size = list[Batch](), 0
    for batch in batches:
        own = sum(len(value) for _, value in batch.puts)
        if group and size + own > CALL_BYTES:
            yield group
            group, size = [], 0
        group.append(batch)
        size += own
    if group:
        yield group


def refuse_long_values(batches: Sequence[Batch]) -> None:
    """Refuse a call before anything of it is written (S-15)."""
    for batch in batches:
        for key, value in batch.puts:
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
