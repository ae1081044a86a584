"""RedisStore: values in one hash, each family that is scanned in a sorted set, every call one Lua script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import anyio

from converge.contracts.store import (
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
    Take,
    Turned,
)
from converge.errors import NoSuchStore, NotApplied, OutcomeUnknown, StoreBusy, StoreError
from converge.model.keys import Family
from converge_store_redis.call import Call, Names, parts_of, taken
from converge_store_redis.connect import Connector
from converge_store_redis.inspection import inspection
from converge_store_redis.options import RedisOptions
from converge_store_redis.packing import PACKERS, bounds, member_unpacker
from converge_store_redis.scripts import load
from converge_store_redis.server import check_server, facts
from converge_store_redis.sleepers import Sleepers
from converge_store_redis.witness import Witness

READ_ENTRIES, READ_BYTES = 2_000, 1_048_576
"""The most that one call reads: the server does nothing else meanwhile. Whoever wants more gets it in several."""

GET_KEYS = 32
"""Fewer keys are read at once, whatever they hold."""

CLOSE_SEC = 0.5
"""How long removing its witness may hold up a handle that is closed."""

TURN_TRIES = 64
"""How often a call whose batches met conflicts is sent again without them: each round settles one batch at least."""


class RedisStore(Store):
    """One handle on a network's keys in a Redis server; opened with `open` or `converge.open_store("redis://...")`."""

    is_remote = True

    def __init__(self, url: str, options: RedisOptions, durability: Durability, *, was_open: bool = False) -> None:
        self._url, self._options = url, options
        self.durability = durability
        self._connector = Connector(url, options, was_connected=was_open)
        self._names = Names(options.network)
        self._sleepers = Sleepers(self._connector, self._names)
        self._witness = Witness(self._names.witnesses)
        self._time = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: RedisOptions | None = None) -> AsyncIterator[RedisStore]:
        """Open `redis://HOST:PORT/DB`, `rediss://`, `unix:///PATH`, `redis+sentinel://` or `redis+cluster://`.

        Raises:
            Unsupported, ConfigError: The URL, or what it leads to, cannot be used.
            StoreUnavailable: No server answers.
            StoreUnsafe: It is set to lose tasks silently.
            StoreRefused: It is too old, does not let us in, or has keys of another program where ours would be.
            NoSuchStore: Nothing of the network was ever stored there, and the options want something.
        """
        store = cls(url, options or RedisOptions(), Durability.D0)
        try:
            store.durability = await check_server(store._connector, store._names)
            if store._options.must_exist and await store._connector.call("GET", store._names.counter) is None:
                raise NoSuchStore(
                    f'there is no network "{store._options.network}" in redis at {store._connector.where}; `converge '
                    "run` with this store makes it"
                )
            yield store
        finally:
            await store._close()

    @staticmethod
    async def look(url: str, options: RedisOptions | None = None) -> Inspection:
        """Return what the server is, whether or not something of the network is there.

        Raises:
            As `open`.
        """
        connector = Connector(url, options or RedisOptions())
        try:
            return inspection(await facts(connector), connector.place, connector.where)
        finally:
            await connector.close()

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        return self._again()

    @asynccontextmanager
    async def _again(self) -> AsyncIterator[Store]:
        store = RedisStore(self._url, self._options, self.durability, was_open=True)
        try:
            yield store
        finally:
            await store._close()

    async def _close(self) -> None:
        try:
            await self._sleepers.close()
            if self._witness.demanded():
                with suppress(StoreError), anyio.move_on_after(CLOSE_SEC, shield=True):
                    await self._connector.call("DEL", self._witness.key, writes=True)
        finally:
            await self._connector.close()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if not keys:
            return []
        fields = [PACKERS[key[0]](key) for key in keys]
        found: Sequence[bytes | None]
        if len(fields) <= GET_KEYS:
            found = await self._connector.call("HMGET", self._names.values, *fields)
        else:
            found = await self._read(fields)
        return [None if raw is None else _entry(key, raw) for key, raw in zip(keys, found, strict=True)]

    async def _read(self, fields: list[bytes]) -> list[bytes | None]:
        """Return the values of many fields; each call gives the first ones, at least one."""
        found: list[bytes | None] = []
        while len(found) < len(fields):
            arguments = [READ_BYTES, *fields[len(found) :]]
            found += await self._connector.evaluate(load("get"), [self._names.values], arguments, writes=False)
        return found

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        pages: list[list[Entry]] = [[] for _ in ranges]
        left = [(page, range_, max(range_.limit, 0)) for page, range_ in zip(pages, ranges, strict=True)]
        while left:
            keys = [self._names.values, *(self._names.set_of(range_.prefix[0]) for _, range_, _ in left)]
            arguments: list[Any] = [READ_ENTRIES, READ_BYTES]
            for page, range_, limit in left:
                after = page[-1].key[len(range_.prefix) :] if page else range_.after
                arguments += (*bounds(range_.prefix, after), limit)
            found = await self._connector.evaluate(load("scan"), keys, arguments, writes=False)
            again = []
            for (page, range_, limit), (members, values, may_be_more) in zip(left, found, strict=True):
                page += _entries(range_.prefix[0], members, values)
                if may_be_more and len(members) < limit:
                    again.append((page, range_, limit - len(members)))
            left = again
        return pages

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        if not prefixes:
            return []
        keys = [self._names.set_of(prefix[0]) for prefix in prefixes]
        arguments = [bound for prefix in prefixes for bound in bounds(prefix, None)]
        counts: Sequence[int] = await self._connector.evaluate(load("count"), keys, arguments, writes=False)
        return counts

    async def time(self) -> int:
        seconds, micros = await self._connector.call("TIME")
        # A server whose clock is set back has this handle wait for it: store time does not run backwards.
        self._time = max(self._time, int(seconds) * 1_000_000 + int(micros))
        return self._time

    async def advance(self, revision: int) -> None:
        await self._connector.evaluate(load("advance"), [self._names.counter], [revision], writes=True)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return (await self._turn(batches, None, wake)).outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        if take is not None and (not take.ranges or take.limit < 1):
            return await super().turn(
                batches, take, wake=wake
            )  # nothing to choose from: only its checks are left to answer
        return await self._turn(batches, take, wake)

    async def _turn(self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]) -> Turned:
        """Send the batches, all in one call unless they are many or large; the take and the wakes go with the last."""
        if not batches and take is None and not wake:
            return Turned([], None)
        whole = Call(self._names, batches, take, wake)
        if not whole.is_large:
            return await self._send(whole, batches, take, wake)
        parts = parts_of(batches)
        *calls, last = [  # all of them first: a value that is too large is refused before anything is written
            Call(self._names, some, *((take, wake) if some is parts[-1] else (None, ()))) for some in parts
        ]
        outcomes: list[Committed | Conflict] = []
        try:
            for call, some in zip(calls, parts, strict=False):
                outcomes += (await self._send(call, some, None, ())).outcomes
            turned = await self._send(last, parts[-1], take, wake)
        except NotApplied as error:
            if any(isinstance(outcome, Committed) for outcome in outcomes):
                raise OutcomeUnknown(
                    f"a part of the call was applied, then it failed; read before you retry: {error}"
                ) from error
            raise
        return Turned([*outcomes, *turned.outcomes], turned.taken)

    async def _send(self, call: Call, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]) -> Turned:
        """Send everything at once; where checks fail, nothing of it is done, and what is left is sent again."""
        answer = await self._evaluate(call)
        if answer[0] == 1:
            return Turned(
                [Committed(answer[1])] * len(batches), None if take is None else taken(take, answer[1], answer[2])
            )
        outcomes: list[Committed | Conflict | None] = [None] * len(batches)
        todo = list(range(len(batches)))
        for _ in range(TURN_TRIES):
            conflicts = call.conflicts(answer[1], answer[2])
            for place, conflict in conflicts.items():
                outcomes[todo[place]] = conflict
            todo = [index for place, index in enumerate(todo) if place not in conflicts]
            if not todo and take is None:
                return Turned([outcome for outcome in outcomes if outcome is not None], None)
            call = Call(self._names, [batches[index] for index in todo], take, wake)
            answer = await self._evaluate(call)
            if answer[0] == 1:
                committed = Committed(answer[1])
                return Turned(
                    [outcome or committed for outcome in outcomes],
                    None if take is None else taken(take, answer[1], answer[2]),
                )
        raise StoreBusy(
            f"the call met other writers {TURN_TRIES} times; batches without a conflict were not written, try again"
        )

    async def _evaluate(self, call: Call) -> Any:
        witness = self._witness
        call.demand(witness)
        answer = await self._connector.evaluate(load("turn"), call.keys, call.arguments, writes=True)
        if answer[0] == 1:
            witness.wrote(answer[1])
        elif answer[0] == -1:
            raise witness.lost(self._connector.where)
        return answer

    async def inspect(self) -> Inspection:
        return inspection(await facts(self._connector), self._connector.place, self._connector.where)

    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        return self._sleepers.watch(channels)


def _entry(key: Key, raw: bytes) -> Entry:
    return Entry(key, raw[8:], int.from_bytes(raw[:8], "big"))


def _entries(family: Family, members: Sequence[bytes], values: Sequence[bytes | None]) -> list[Entry]:
    unpack = member_unpacker(family)
    return [_entry(unpack(member), raw) for member, raw in zip(members, values, strict=True) if raw is not None]
