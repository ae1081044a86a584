"""CheckedStore: any store, with an eye on its caller: whoever breaks what callers must keep to gets an AssertionError
that names the rule.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from json import loads

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
    Inspection,
    Key,
    Prefix,
    Range,
    Rest,
    Store,
    Take,
    Turned,
)  # fmt: skip
from converge.errors import InvalidValue
from converge.model.keys import ALSO, FAMILIES, Family, check_key

_CHANNEL = re.compile(r"[A-Za-z0-9._:-]{1,120}")


class CallerBroke(AssertionError):
    """The caller of a store did what no caller may do."""

    def __init__(self, rule: str, what: object) -> None:
        super().__init__(f"{rule}: {str(what)[:600]}")
        self.rule = rule


def rule(holds: bool, text: str, what: object) -> None:
    """Raise `CallerBroke` with the rule's text if it does not hold."""
    if not holds:
        raise CallerBroke(text, what)


class CheckedStore(Store):
    """Passes every call on, after it has looked whether the call is one that the contract allows.

    Values over the limit are passed on: refusing them is the store's part. The number of a batch's operations and of
        keys is the caller's.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self._thread = threading.get_ident()

    @property
    def durability(self) -> Durability:  # type: ignore[override]  # the wrapped store decides, so it is read-only here
        return self.inner.durability

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self._check_thread("get")
        rule(len(keys) <= LIMITS.keys, f"a get has at most {LIMITS.keys} keys", len(keys))
        check_keys(keys)
        return await self.inner.get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        self._check_thread("scan")
        rule(len(ranges) <= LIMITS.ranges, f"a scan has at most {LIMITS.ranges} ranges", len(ranges))
        for wanted in ranges:
            check_range(wanted)
            rule(1 <= wanted.limit <= LIMITS.keys, f"a range of a scan has a limit of 1 to {LIMITS.keys}", wanted)
        return await self.inner.scan(ranges)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self._check_thread("commit")
        check_batches(batches)
        check_channels(wake)
        return await self.inner.commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        self._check_thread("turn")
        check_batches(batches)
        check_channels(wake)
        if take is not None:
            check_take(take)
            check_take_beside(take, batches)
        return await self.inner.turn(batches, take, wake=wake)

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        self._check_thread("count")
        for prefix in prefixes:
            check_range(Range(prefix))
        return await self.inner.count(prefixes)

    async def time(self) -> int:
        self._check_thread("time")
        return await self.inner.time()

    async def advance(self, revision: int) -> None:
        self._check_thread("advance")
        await self.inner.advance(revision)

    async def inspect(self) -> Inspection | None:
        self._check_thread("inspect")
        return await self.inner.inspect()

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        self._check_thread("watch")
        check_channels(channels)
        async with aclosing(self.inner.watch(channels)) as items:  # type: ignore[type-var]  # every watch is an async generator
            async for item in items:
                yield item

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        """Return another handle, looked at in the same way; it belongs to the thread that enters it."""
        opened: AbstractAsyncContextManager[Store] = self.inner.reopen()
        async with opened as inner:
            yield self._beside(inner)

    def _beside(self, inner: Store) -> CheckedStore:
        return CheckedStore(inner)

    def _check_thread(self, call: str) -> None:
        rule(
            self._thread == threading.get_ident(),
            "a handle is used from one thread; others have their own, from reopen",
            call,
        )


def check_keys(keys: Iterable[Key]) -> None:
    """Check that each key is whole, of a declared family, its parts of the family's types."""
    for key in keys:
        _check_parts(key, whole=True)
        rule(key[0] in FAMILIES, "a key's family is declared in model/keys.py", key)


def check_range(wanted: Range) -> None:
    """Check for the prefix of a family that is kept in order, and after it a whole rest, or nothing."""
    _check_parts(wanted.prefix, whole=False)
    rule(wanted.prefix[0] not in ALSO, "task and state are read by id, never scanned", wanted)
    if wanted.after is not None:
        rule(isinstance(wanted.after, tuple), "after is a rest: a tuple", wanted)
        _check_parts(wanted.prefix + wanted.after, whole=True)


def check_channels(channels: Collection[Channel]) -> None:
    """Check that each name is short and plain."""
    rule(not isinstance(channels, str), "channels are a collection of names, not one name", channels)
    for channel in channels:
        rule(bool(_CHANNEL.fullmatch(channel)), "a channel is 1 to 120 characters of [A-Za-z0-9._:-]", channel)


def check_batches(batches: Sequence[Batch]) -> None:
    """Check that each batch is well formed, and none writes what another one reads or writes."""
    rule(len(batches) <= LIMITS.batches, f"a call has at most {LIMITS.batches} batches", len(batches))
    for batch in batches:
        _check_batch(batch)
    operations = sum(len(batch.puts) + len(batch.deletes) for batch in batches)
    rule(operations <= LIMITS.call_ops, f"a call has at most {LIMITS.call_ops:,} puts and deletes", operations)
    size = sum(len(value) for batch in batches for _, value in batch.puts)
    fits = size <= LIMITS.call_bytes or len(batches) == 1
    rule(fits, f"the values of a call have at most {LIMITS.call_bytes:,} bytes", size)
    writers = Counter(key for batch in batches for key in _written(batch))
    shared = [key for key, count in writers.items() if count > 1]
    rule(not shared, "no batch of one call writes a key that another batch of the call writes", shared)
    for batch in batches:
        own = set(_written(batch))
        foreign = [key for key, _ in batch.checks if writers[key] and key not in own]
        rule(not foreign, "no batch of one call writes a key that another batch of the call reads", foreign)


def _check_batch(batch: Batch) -> None:
    operations = len(batch.checks) + len(batch.puts) + len(batch.deletes)
    rule(operations <= LIMITS.batch_ops, f"a batch has at most {LIMITS.batch_ops} checks, puts and deletes", operations)
    check_keys(key for key, _ in batch.checks)
    written = _written(batch)
    check_keys(written)
    twice = [key for key, count in Counter(written).items() if count > 1]
    rule(not twice, "a batch names a key at most once among its puts and deletes", twice)
    _check_checks(batch.checks)
    puts = {key for key, _ in batch.puts}
    unwritten = [key for key, revision in batch.checks if revision == ABSENT and key not in puts]
    rule(not unwritten, "a check of absence is given only with a put of that key", unwritten)
    for key, value in batch.puts:
        rule(type(value) is bytes and _is_json(value), "a value is JSON text in UTF-8, or empty", (key, value[:80]))
    if batch.window is not None:
        bounds = [bound for bound in batch.window if bound is not None]
        rule(
            all(type(bound) is int for bound in bounds),
            "a window's bounds are microseconds of store time",
            batch.window,
        )


def _check_checks(checks: Sequence[Check]) -> None:
    for key, revision in checks:
        rule(
            type(revision) is int and revision >= ABSENT,
            "a check names a revision that was read, or ABSENT",
            (key, revision),
        )
    revisions: dict[Key, int] = {}
    for key, revision in checks:
        rule(
            revisions.setdefault(key, revision) == revision,
            "one batch, or one take, does not check a key at two revisions",
            key,
        )


def check_take(take: Take) -> None:
    """Check for ranges of one family and one length, and rests that fit where they go."""
    rule(1 <= len(take.ranges) <= LIMITS.ranges, f"a take has 1 to {LIMITS.ranges} ranges", len(take.ranges))
    rule(1 <= take.limit <= LIMITS.taken, f"a take has a limit of 1 to {LIMITS.taken}", take.limit)
    for wanted in take.ranges:
        check_range(wanted)
    shapes = {(wanted.prefix[0], len(wanted.prefix)) for wanted in take.ranges}
    rule(len(shapes) == 1, "the ranges of a take are of one family, with prefixes of one length", shapes)
    rule(
        len({wanted.prefix for wanted in take.ranges}) == len(take.ranges),
        "no two prefixes of a take are alike",
        take.ranges,
    )
    _check_fit(take)
    check_keys(key for key, _ in take.checks)
    _check_checks(take.checks)
    rule(all(revision != ABSENT for _, revision in take.checks), "a take never checks absence", take.checks)
    rule(all(family in ALSO for family in take.also), "also names families of ALSO", take.also)


def _check_fit(take: Take) -> None:
    """Check that `to + rest + tail` has the types of `to`'s family, part by part."""
    source: Family = take.ranges[0].prefix[0]
    _check_parts(take.to, whole=False)
    target: Family = take.to[0]
    rest = list(source.parts.values())[len(take.ranges[0].prefix) - 1 :]
    parts = list(target.parts.values())
    at = len(take.to) - 1
    fits = bool(rest) and parts[at : at + len(rest)] == rest and len(parts) == at + len(rest) + len(take.tail)
    rule(fits, "to + rest + tail fits the types of to's family", (take.to, [part.value for part in rest], take.tail))
    tail = Family(f"tail of {target}", **dict(list(target.parts.items())[at + len(rest) :]))
    _check_parts(tail(*take.tail), whole=True)


def check_take_beside(take: Take, batches: Sequence[Batch]) -> None:
    """Check that the batches of a turn leave alone what its take looks at."""
    prefixes = {wanted.prefix for wanted in take.ranges}
    size = len(take.ranges[0].prefix)
    checked = {key for key, _ in take.checks}
    for batch in batches:
        inside = [key for key in (*batch.deletes, *(key for key, _ in batch.checks)) if key[:size] in prefixes]
        rule(not inside, "no batch of a turn deletes or checks a key within its take's ranges", inside)
        written = [key for key in _written(batch) if key in checked]
        rule(not written, "no batch of a turn writes a key that its take checks", written)


def _written(batch: Batch) -> list[Key]:
    return [*(key for key, _ in batch.puts), *batch.deletes]


def _check_parts(key: Key | Rest, *, whole: bool) -> None:
    try:
        check_key(key, whole=whole)
    except InvalidValue as error:
        raise CallerBroke("a key's parts have the types of its family", error) from error


def _is_json(value: bytes) -> bool:
    if not value:
        return True
    try:
        loads(value)
    except ValueError:
        return False
    return True
