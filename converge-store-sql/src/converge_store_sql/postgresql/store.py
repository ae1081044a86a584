"""The store: each call is one statement on a connection of its own, and so one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

from converge.contracts.store import (
    Batch,
    Channel,
    Committed,
    Conflict,
    Entry,
    Inspection,
    Range,
    Store,
    Take,
    Taken,
    Turned,
)
from converge.contracts.transactions import Within
from converge.errors import NoSuchStore, OutcomeUnknown, StoreRefused, StoreRolledBack, StoreUnavailable, Unsupported
from converge.model.keys import Family, Key, Prefix
from converge_store_sql._errors import LOST, no_network
from converge_store_sql.options import SqlOptions
from converge_store_sql.postgresql._errors import RETRIED, sqlstate
from converge_store_sql.postgresql.calls import count_calls, get_call, got, turn_arguments
from converge_store_sql.postgresql.connect import Connections
from converge_store_sql.postgresql.fragments import NOW
from converge_store_sql.postgresql.inspection import ENCODINGS, LEAST_VERSION, SETTINGS, Settings, inspection
from converge_store_sql.postgresql.lineage import LOG, Lineage, Told, columns
from converge_store_sql.postgresql.migrations import migrate, pending
from converge_store_sql.postgresql.plan import Plan, Shape, take_shape
from converge_store_sql.postgresql.riding.within import within
from converge_store_sql.postgresql.statements import Statements
from converge_store_sql.postgresql.waiters import Waiters
from converge_store_sql.store import SqlStore, retried


class PostgresqlStore(SqlStore):
    """A store on PostgreSQL. Made by `SqlStore.open`."""

    is_remote = True

    def __init__(self, url: str, options: SqlOptions) -> None:
        self._url, self._options = url, options
        self._connections = Connections(url, options, on_dead=lambda: self._waiters.doubt())
        self._statements = Statements(options.network)
        self._waiters = Waiters(self._connections, self._statements, options.network)
        self._lineage = Lineage()
        self._time = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, options: SqlOptions) -> AsyncIterator[Self]:
        store = cls(url, options)
        try:
            await store._prepare()
            async with store._waiters.running():
                yield store
        finally:
            await store._connections.close()

    @classmethod
    async def to_add(cls, url: str, options: SqlOptions) -> Sequence[str]:
        connections = Connections(url, options)
        try:
            async with connections.driver() as driver, driver.transaction():
                return await pending(driver, options.network)
        finally:
            await connections.close()

    @classmethod
    async def looked_at(cls, url: str, options: SqlOptions) -> Inspection:
        connections = Connections(url, options)
        try:
            async with connections.driver() as driver:
                return inspection(Settings(*await driver.fetchrow(SETTINGS)), None, _way(connections, options))
        finally:
            await connections.close()

    async def note_format(self, number: int) -> None:
        text = f"insert into {self._options.network}_schema (version) values ($1) on conflict do nothing"
        try:
            await self._connections.run(text, (number,), writes=True)
        except StoreRefused as error:
            raise StoreRefused(
                f"{error}; the schema's number must be raised before something new is used: run "
                f"`converge store migrate` as the role that owns the tables"
            ) from error

    async def advance(self, revision: int) -> None:
        name = f"{self._options.network}_revision"
        text = f"select setval('{name}', greatest(last_value, $1)) from {name}"
        await self._connections.run(text, (max(revision, 1),), writes=True)

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        return PostgresqlStore.opened(self._url, self._options)

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if not keys:
            return []
        return got(keys, await self._read(*get_call(self._statements, keys)))

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        found: list[list[Entry]] = [[] for _ in ranges]
        shapes: dict[tuple[Family, int, bool], list[int]] = defaultdict(list)
        for number, (prefix, after, limit) in enumerate(ranges):
            if limit > 0 and after != ():  # nothing comes after the one key of a range that is a whole key
                shapes[prefix[0], len(prefix) - 1, after is not None].append(number)
        for (family, length, has_after), numbers in shapes.items():
            chosen = [ranges[number] for number in numbers]
            starts = [prefix[1:] + (after or ()) for prefix, after, _ in chosen]
            arguments = [*zip(*starts, strict=True), [limit for _, _, limit in chosen], numbers]
            for number, *rest, value, revision in await self._read(
                self._statements.scan(family, length, has_after=has_after), arguments
            ):
                found[number].append(
                    Entry((*ranges[number].prefix, *rest) if family.parts else (family,), value, revision)
                )
        return found

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        found = [0] * len(prefixes)
        for text, arguments in count_calls(self._statements, prefixes):
            for number, total in await self._read(text, arguments):
                found[number] = total
        return found

    async def time(self) -> int:
        ((now,),) = await self._read(f"select {NOW}", ())
        self._time = max(self._time, int(now))
        return self._time

    async def inspect(self) -> Inspection:
        (row,) = await self._read(SETTINGS, ())
        ((schema,),) = await self._read(f"select max(version) from {self._options.network}_schema", ())
        return inspection(Settings(*row), schema, _way(self._connections, self._options))

    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        # Behind a transaction pooler LISTEN is of no use: a server connection is lent for one transaction only.
        return super().watch(channels) if self._options.pooler else self._waiters.watch(channels)

    def within(self, connection: Any) -> Within:
        """Return a store that writes in the transaction of an `AsyncConnection` or `AsyncSession` of SQLAlchemy's."""
        return within(self, connection, self._options.network, self._waiters.wake_after)

    async def _prepare(self) -> None:
        async with self._connections.driver() as driver, driver.transaction():
            found = Settings(*await driver.fetchrow(SETTINGS))
            if found.version < LEAST_VERSION:
                raise Unsupported(
                    f"{self._connections.where} runs PostgreSQL {found.version // 10_000}; this release needs 14 or "
                    "later"
                )
            if found.encoding not in ENCODINGS:
                raise Unsupported(
                    f"the encoding of {self._connections.where} is {found.encoding}, which has no place for every text "
                    "of a key; create a database with ENCODING 'UTF8'"
                )
            if found.is_standby:
                raise StoreRefused(f"{self._connections.where} is a standby and takes no writes; name the primary")
            await migrate(driver, self._options.network, self._absent())
            has_log = await _answers(driver, f"select {LOG}")
        self._statements.told = f", {columns(self._options.network, has_log=has_log)}"
        self.durability = found.durability

    def _absent(self) -> NoSuchStore | None:
        return no_network(self._options.network, self._connections.where) if self._options.must_exist else None

    async def _read(self, text: str, arguments: Sequence[Any]) -> Sequence[Sequence[Any]]:
        return await self._connections.run(text, arguments, writes=False)

    async def _turn(self, batches: Sequence[Batch], take: Take | None) -> Turned:
        plan = Plan(batches, take)
        work = plan.work()
        if not work and not plan.windows and take is None:
            return Turned(await self._nothing(len(batches)), None)
        gates = plan.gates()
        arguments = turn_arguments(plan, work, gates, take)
        shape = Shape(
            tuple(part for part, _ in work),
            bool(gates),
            bool(plan.runs),
            bool(plan.windows),
            take_shape(take) if take is not None else None,
            replaces=False,
        )

        async def attempt(number: int) -> Sequence[Any]:
            text = self._statements.turn(shape._replace(replaces=number > 0))
            (row,) = await self._connections.run(text, arguments, writes=True)
            return row

        lineage, log = self._lineage, self._lineage.log
        row = await retried(attempt, lambda error: sqlstate(error) in RETRIED)
        bad, late, there, missed, revision, now = row[:6]
        outcomes, told = plan.outcomes(bad, late, there, missed, revision), Told(*row[-3:])
        if lineage.is_doubtful(told, log) and not lineage.is_confirmed(batches, outcomes):
            await self._look_back(lineage)
        lineage.met(told)
        lineage.wrote(batches, outcomes, told)
        return Turned(outcomes, None if take is None else _taken(plan, take, bad, revision, now, row[6:-3]))

    async def _look_back(self, lineage: Lineage) -> None:
        """Look for what was written last: where it is as it was, so is all from before.

        Raises:
            StoreRolledBack: It is not.
            OutcomeUnknown: That could not be found out; the next write looks again.
        """
        seen = lineage.revision
        try:
            found = await self.get(lineage.keys)
        except StoreUnavailable as error:
            raise OutcomeUnknown(f"whether the network was put back from a backup is not known yet: {error}") from error
        if found and all(entry is None or entry.revision != seen for entry in found):
            self._lineage = Lineage()  # of the history that is there now; writes under way still belong to the other
            raise StoreRolledBack(LOST.format(network=self._options.network, where=self._connections.where, seen=seen))

    def _wake(self, channels: Collection[Channel]) -> None:
        self._waiters.wake(channels)

    async def _nothing(self, how_many: int) -> list[Committed | Conflict]:
        """Return the answer to batches that ask nothing: they still commit at a revision."""
        if not how_many:
            return []
        ((revision,),) = await self._connections.run(
            f"select nextval('{self._options.network}_revision')", (), writes=True
        )
        return [Committed(revision)] * how_many


async def _answers(driver: Any, text: str) -> bool:
    """Return whether the server runs the statement, inside a transaction that goes on."""
    try:
        async with driver.transaction():
            await driver.fetchrow(text)
    except Exception as error:
        if sqlstate(error) is None:
            raise
        return False
    return True


def _taken(
    plan: Plan, take: Take, bad: Sequence[int], revision: int, now: int, answer: Sequence[Any]
) -> Taken | Conflict:
    failed = set(bad).intersection(plan.take_checks)
    if failed:
        return Conflict(tuple(plan.checks[number] for number in sorted(failed)))
    family, length = take.ranges[0].prefix[0], len(take.ranges[0].prefix) - 1
    width, also = family.arity - length, len(take.also)
    heads: list[tuple[Any, ...] | None] = [None] * len(take.ranges)
    numbers = answer[width + also]
    if numbers is not None:
        for number, *rest in zip(numbers, *answer[width + also + 1 :], strict=True):
            heads[number] = tuple(rest)
    if answer[0] is None:
        return Taken(0, (), (), heads, now)
    values = list(zip(*answer[width : width + also], strict=True)) if also else [()] * len(answer[0])
    moved = sorted(zip(zip(*answer[:width], strict=True), values, strict=True))
    return Taken(revision, [rest for rest, _ in moved], [read for _, read in moved], heads, now)


def _way(connections: Connections, options: SqlOptions) -> str:
    """Return where the server is that tells of its connection; behind a pooler that is the pooler's connection."""
    return "" if options.pooler else connections.where
