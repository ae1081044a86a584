"""RedisStore: values in one hash, each family in a sorted set, every call one Lua script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from converge.contracts.store import (
    ABSENT,
    LIMITS,
    Batch,
    Channel,
    Check,
    Committed,
    Conflict,
    Durability,
    Entry,
    Key,
    Prefix,
    Range,
    Rest,
    Store,
    Take,
    Taken,
    Turned,
)
from converge.errors import StoreBusy, ValueTooLarge
from converge.model.keys import ALSO, Family
from converge_store_redis.connect import Connector, check_server
from converge_store_redis.options import RedisOptions
from converge_store_redis.packing import TAGS, bounds, field, packer, rest_unpacker
from converge_store_redis.scripts import load
from converge_store_redis.sleepers import Sleepers

ROUNDS = 64
"""How often a call whose batches met conflicts is sent again without them: each round settles one batch at least."""

_ID_BYTES = 16


class RedisStore(Store):
    """One handle on a network's keys in a Redis server; opened with `open` or `converge.open_store("redis://...")`."""

    def __init__(self, url: str, options: RedisOptions, durability: Durability) -> None:
        self._url, self._options = url, options
        self.durability = durability
        self._connector = Connector(url, options)
        # One hash tag keeps a network in one slot, so that one script may touch all of it.
        self._prefix = b"{" + options.network.encode() + b"}:"
        self._values = self._prefix + b"v"
        self._counter = self._prefix + b"r"
        self._sets = {family: self._prefix + b"z:" + family.encode() for family in TAGS}
        self._sleepers = Sleepers(self._connector, self._prefix)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: RedisOptions | None = None) -> AsyncIterator[RedisStore]:
        """Open `redis://HOST:PORT/DB`.

        Raises:
            StoreUnavailable: No server answers.
            StoreRefused: It is too old, or set to lose tasks silently, or does not let us in.
        """
        store = cls(url, options or RedisOptions(), Durability.D0)
        try:
            store.durability = await check_server(store._connector)
            yield store
        finally:
            await store._close()

    async def _close(self) -> None:
        await self._sleepers.close()
        await self._connector.close()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if not keys:
            return []
        found = await self._connector.call("HMGET", self._values, *[packer(key[0])(key) for key in keys])
        return [None if raw is None else Entry(key, raw[8:], int.from_bytes(raw[:8], "big")) for key, raw in zip(keys, found, strict=True)]

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        if not ranges:
            return []
        keys = [self._values, *(self._sets[range_.prefix[0]] for range_ in ranges)]
        arguments: list[Any] = []
        for range_ in ranges:
            arguments += (*bounds(range_.prefix, range_.after), range_.limit)
        pages = await self._connector.evaluate(load("scan"), keys, arguments, writes=False)
        return [_entries(range_.prefix[0], *page) for range_, page in zip(ranges, pages, strict=True)]

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        counted = []
        for prefix in prefixes:
            least, greatest = bounds(prefix, None)
            counted.append(int(await self._connector.call("ZLEXCOUNT", self._sets[prefix[0]], least, greatest)))
        return counted

    async def time(self) -> int:
        seconds, micros = await self._connector.call("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    async def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        return (await self.turn(batches, None, wake=wake)).outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        _check_sizes(batches)
        if not batches and take is None and not wake:
            return Turned([], None)
        outcomes: list[Committed | Conflict | None] = [None] * len(batches)
        todo = list(range(len(batches)))
        for _ in range(ROUNDS):
            call = _Call(self, [batches[index] for index in todo], take, wake)
            answer = await self._connector.evaluate(load("turn"), call.keys, call.arguments, writes=True)
            if answer[0] == 1:
                committed = Committed(answer[1])
                taken = None if take is None else call.taken(take, answer[1], answer[2])
                return Turned([committed if outcome is None else outcome for outcome in outcomes], taken)
            conflicts = call.conflicts(answer[1], answer[2])
            for place, conflict in conflicts.items():
                outcomes[todo[place]] = conflict
            todo = [index for place, index in enumerate(todo) if place not in conflicts]
            if not todo and take is None:
                return Turned([outcome for outcome in outcomes if outcome is not None], None)
        raise StoreBusy(f"the call met other writers {ROUNDS} times; batches without a conflict were not written")

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        async with aclosing(self._sleepers.watch(channels)) as watch:  # type: ignore[type-var]  # an async generator
            async for _ in watch:
                yield None

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        store = RedisStore(self._url, self._options, self.durability)
        try:
            yield store
        finally:
            await store._close()


class _Call:
    """The keys and arguments of one run of turn.lua, and the meaning of its answer."""

    def __init__(self, store: RedisStore, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]) -> None:
        self._batches = batches
        self.keys: list[bytes] = [store._values, store._counter]
        self._sets = store._sets
        self._places: dict[Family, int] = {}
        checks: dict[Check, None] = {}
        deletes: dict[Family, list[bytes]] = {}
        puts: dict[Family, tuple[list[bytes], list[bytes]]] = {}
        windows: list[bytes] = []
        self._windowed: list[int] = []
        for index, batch in enumerate(batches):
            checks.update(dict.fromkeys(batch.checks))
            for key in batch.deletes:
                family = key[0]
                deletes.setdefault(family, []).append(packer(family)(key))
            for key, value in batch.puts:
                family = key[0]
                group = puts.get(family)
                if group is None:
                    group = puts[family] = ([], [])
                group[0].append(packer(family)(key))
                group[1].append(value)
            if batch.window is not None:
                self._windowed.append(index)
                windows += (_bound(batch.window.at_least), _bound(batch.window.at_most))
        self._checks = list(checks)
        arguments: list[Any] = [*_checks(self._checks), len(self._windowed), *windows, len(batches), len(deletes)]
        for family, fields in deletes.items():
            arguments += (self._place(family), len(fields), *fields)
        arguments.append(len(puts))
        for family, (fields, values) in puts.items():
            arguments += (self._place(family), len(fields), *fields, *values)
        arguments += [0] if take is None else self._take(take)
        arguments.append(len(wake))
        for channel in wake:
            self.keys.append(store._sleepers.set_of(channel))
            arguments += (len(self.keys), channel)
        self.arguments = arguments

    def _place(self, family: Family) -> int:
        """The place of a family's set in KEYS, which is 1-based; 0 for one that is kept in none."""
        if family in ALSO:
            return 0
        place = self._places.get(family)
        if place is None:
            self.keys.append(self._sets[family])
            place = self._places[family] = len(self.keys)
        return place

    def _take(self, take: Take) -> list[Any]:
        first = take.ranges[0].prefix
        arguments: list[Any] = [1, *_checks(take.checks), take.limit, self._place(first[0]), self._place(take.to[0]), len(field(first))]
        to = field(take.to)
        tail = field(take.to[:1] + _filler(take) + take.tail)[-_tail_bytes(take) :] if take.tail else b""
        arguments += (to, tail, len(take.also), *(TAGS[family] for family in take.also), _ID_BYTES, len(take.ranges))
        for range_ in take.ranges:
            arguments += bounds(range_.prefix, range_.after)
        return arguments

    def conflicts(self, failed: Sequence[int], missed: Sequence[int]) -> dict[int, Conflict]:
        """Return the conflict of each batch that had one, by its place."""
        wrong = {self._checks[number - 1] for number in failed}
        out = {self._windowed[number - 1] for number in missed}
        found = {}
        for place, batch in enumerate(self._batches):
            keys = tuple(check[0] for check in batch.checks if check in wrong)
            if keys or place in out:
                found[place] = Conflict(keys, place in out)
        return found

    def taken(self, take: Take, revision: int, answer: Sequence[Any]) -> Taken | Conflict:
        """Return what the take's answer means."""
        if answer[0] == 0:
            return Conflict(tuple(take.checks[number - 1][0] for number in answer[1]))
        _, now, members, found, heads = answer
        prefix = take.ranges[0].prefix
        skip, rest_of = len(field(prefix)), rest_unpacker(prefix[0], len(prefix) - 1)
        width = len(take.also)
        values = [None if raw is None else raw[8:] for raw in found]
        also = [values[at * width : (at + 1) * width] for at in range(len(members))]
        rests: list[Rest] = [rest_of(member[skip:]) for member in members]
        return Taken(revision if members else 0, rests, also, [rest_of(head[skip:]) if head else None for head in heads], int(now))


def _checks(checks: Sequence[Check]) -> list[Any]:
    fields = [packer(key[0])(key) for key, _ in checks]
    return [len(checks), *fields, *(b"" if revision == ABSENT else revision.to_bytes(8, "big") for _, revision in checks)]


def _filler(take: Take) -> Rest:
    """Any parts that stand between `to` and `tail`, so that the tail can be packed as part of a whole key."""
    family = take.to[0]
    middle = list(family.parts.values())[len(take.to) - 1 : family.arity - len(take.tail)]
    blanks = {"int": 0, "name": ""}
    return take.to[1:] + tuple(blanks.get(part.value, bytes(16)) for part in middle)


def _tail_bytes(take: Take) -> int:
    family = take.to[0]
    parts = list(family.parts.values())[family.arity - len(take.tail) :]
    sizes = {"int": 8, "id": 16, "hash": 16}
    return sum(sizes[part.value] if part.value in sizes else len(str(value).encode()) + 1 for part, value in zip(parts, take.tail, strict=True))


def _bound(at: int | None) -> bytes:
    return b"" if at is None else str(at).encode()


def _entries(family: Family, members: Sequence[bytes], values: Sequence[bytes | None]) -> list[Entry]:
    unpack = rest_unpacker(family, 0)
    found = []
    for member, raw in zip(members, values, strict=True):
        if raw is not None:
            found.append(Entry((family, *unpack(member[1:])), raw[8:], int.from_bytes(raw[:8], "big")))
    return found


def _check_sizes(batches: Sequence[Batch]) -> None:
    for batch in batches:
        for key, value in batch.puts:
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
