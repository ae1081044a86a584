"""The store on MariaDB and MySQL: a call is one transaction at READ COMMITTED, in one trip or two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
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
    Turned,
)
from converge.errors import StoreRefused
from converge.model.keys import Family, Key, Prefix, pack, unpack
from converge_store_sql import riding
from converge_store_sql.mysql import server
from converge_store_sql.mysql._errors import RETRIED, number_of
from converge_store_sql.mysql.connect import Connections, Rows, Transaction
from converge_store_sql.mysql.lineage import Lineage, Witness
from converge_store_sql.mysql.options import MysqlOptions, own_options
from converge_store_sql.mysql.plan import Missed, Plan
from converge_store_sql.mysql.schema import migrate, missing
from converge_store_sql.mysql.take import Taking
from converge_store_sql.mysql.texts import NOW, bounds, listed, packed_after, pages, source
from converge_store_sql.mysql.watches import Watches
from converge_store_sql.mysql.within import MysqlInside
from converge_store_sql.options import SqlOptions
from converge_store_sql.riding import SqlWithin
from converge_store_sql.store import SqlStore, retried


class MysqlStore(SqlStore):
    """A store on MariaDB or MySQL. Made by `MysqlStore.opened`, or by `SqlStore.open`."""

    def __init__(self, url: str, options: MysqlOptions) -> None:
        self._url, self._options = url, options
        self._connections = Connections(url, options)
        self._watches = Watches(options.poll_sec)
        self._lineage = Lineage(options.network)
        self._time = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, options: SqlOptions | MysqlOptions | None = None) -> AsyncIterator[Self]:
        """Open the store, and make its tables if they are not there.

        Raises:
            Unsupported: The driver is missing, or the server too old.
            StoreUnsafe: A setting of the server breaks a promise.
            StoreUnavailable: The server cannot be reached, or has no such database.
            StoreRefused: It refused the login or a right, or takes no writes.
            SchemaTooNew: The tables were made by a newer release.
        """
        store = cls(url, own_options(options))
        try:
            found = await server.settings(store._connections)
            server.check(found, store._connections.where)
            store._connections.packet_bytes = int(found["max_allowed_packet"]) // 2
            store.durability = server.durability(found)
            await migrate(store._connections, store._options.network, must_exist=store._options.must_exist)
            await store._lineage.forget_old(store._connections)
            yield store
        finally:
            try:
                await store._lineage.close(store._connections)
            finally:
                await store._connections.close()

    @classmethod
    async def to_add(cls, url: str, options: SqlOptions | MysqlOptions | None = None) -> Sequence[str]:
        """Return what `opened` would add to the tables that are there, a line each, without changing anything.

        Raises:
            As `opened`.
        """
        chosen = own_options(options)
        connections = Connections(url, chosen)
        try:
            lacking = await missing(connections, chosen.network)
        finally:
            await connections.close()
        if f"{chosen.network}_schema" in lacking.tables:
            return [f'the tables of a new network "{chosen.network}"']
        view = [f"the view {chosen.network}_tasks, with its present columns"] if lacking.is_view_old else []
        return [f"the table {name}" for name in lacking.tables] + view

    @classmethod
    async def looked_at(cls, url: str, options: SqlOptions | MysqlOptions | None = None) -> Inspection:
        """Return what the server is, whether or not the network is there.

        Raises:
            As `opened`.
        """
        connections = Connections(url, own_options(options))
        try:
            return await server.inspected(connections)
        finally:
            await connections.close()

    async def advance(self, revision: int) -> None:
        name = f"{self._options.network}_revision"
        await self._connections.run(
            [f"insert ignore into {name} values ({revision:d})", f"delete from {name} where id = {revision:d}"],
            writes=True,
        )

    async def note_format(self, number: int) -> None:
        text = f"insert ignore into {self._options.network}_schema (version) values ({number:d})"
        try:
            await self._connections.run([text], writes=True)
        except StoreRefused as error:
            raise StoreRefused(
                f"{error}; the schema's number must be raised before something new is used: run "
                f"`converge store migrate` as a user who may insert into {self._options.network}_schema"
            ) from error

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        return MysqlStore.opened(self._url, self._options)

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        families: dict[Family, dict[bytes, Key]] = defaultdict(dict)
        for key in keys:
            families[key[0]][pack(key)] = key
        ordered = list(families)
        parts = [
            f"select {number}, k, v, r from {source(self._options.network, family)} where k in {listed(some)}"
            for number, family in enumerate(ordered)
            for some in pages(list(families[family]))
        ]
        if not parts:
            return []
        found: dict[Key, Entry] = {}
        for number, packed, value, revision in await self._connections.read(" union all ".join(parts)):
            key = families[ordered[number]][packed]
            found[key] = Entry(key, value, revision)
        return [found.get(key) for key in keys]

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        found: list[list[Entry]] = [[] for _ in ranges]
        parts = []
        for number, (prefix, after, limit) in enumerate(ranges):
            if limit > 0 and after != ():  # nothing comes after the one key of a range that is a whole key
                where = bounds(pack(prefix), packed_after(prefix, after))
                name = source(self._options.network, prefix[0])
                parts.append(f"(select {number} n, k, v, r from {name} where {where} order by k limit {limit:d})")
        if parts:
            for number, packed, value, revision in await self._connections.read(" union all ".join(parts)):
                family = ranges[number].prefix[0]
                found[number].append(Entry((family, *unpack(family, packed)), value, revision))
        for entries in found:
            entries.sort(key=lambda entry: entry.key)
        return found

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        parts = []
        for number, prefix in enumerate(prefixes):
            name = source(self._options.network, prefix[0])
            parts.append(f"select {number} n, count(*) from {name} where {bounds(pack(prefix), None)}")
        found: dict[int, int] = {}
        if parts:
            found.update(await self._connections.read(" union all ".join(parts)))  # type: ignore[arg-type]  # rows of two
        return [found[number] for number in range(len(prefixes))]

    async def time(self) -> int:
        ((now,),) = await self._connections.read(f"select {NOW}")
        self._time = max(self._time, int(now))
        return self._time

    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        return self._watches.watch(channels)

    def within(self, connection: Any) -> SqlWithin:
        """Return a store that writes in the transaction of an `AsyncConnection` or `AsyncSession` of SQLAlchemy's."""
        network = self._options.network
        return riding.within(self, connection, lambda own, look: MysqlInside(own, network, look))

    async def facts(self) -> Mapping[str, str | int]:
        return {"server": self._connections.where, **await server.settings(self._connections)}

    async def inspect(self) -> Inspection:
        return await server.inspected(self._connections)

    async def _turn(self, batches: Sequence[Batch], take: Take | None) -> Turned:
        if not batches and take is None:
            return Turned([], None)
        plan = Plan(self._options.network, batches, take)

        async def attempt(number: int) -> Turned:
            with self._lineage.witness() as witness:
                async with self._connections.transaction() as transaction:
                    return await (self._carefully if number else self._bet)(transaction, plan, witness)

        turned = await retried(attempt, lambda error: isinstance(error, Missed) or number_of(error) in RETRIED)
        self._lineage.check(self._connections.where)
        return turned

    def _wake(self, channels: Collection[Channel]) -> None:
        self._watches.wake(channels)

    async def _bet(self, transaction: Transaction, plan: Plan, witness: Witness) -> Turned:
        statements = plan.bet()
        if plan.batches:
            statements += witness.statements()
        if plan.take is None:
            answers = await transaction.run([*statements, "commit"], commits=True)
            return Turned([Committed(self._wrote(witness, answers[0]))] * len(plan.batches), None)
        taking = Taking(self._options.network, plan.take)
        answers = await transaction.run([*statements, *taking.look()], commits=False)
        drawn: Rows = answers.pop(0) if plan.batches else ()
        taken = await taking.run(transaction, answers)
        return Turned([Committed(self._wrote(witness, drawn))] * len(plan.batches), taken)

    async def _carefully(self, transaction: Transaction, plan: Plan, witness: Witness) -> Turned:
        answers = await transaction.run(plan.look(), commits=False)
        ((now,),) = answers.pop()
        found = plan.revisions(answers)
        failed, take = plan.decide(found, int(now)), plan.take
        statements = plan.write(failed)
        if statements:
            statements += witness.statements()
        bad = Plan.failed(take.checks, found) if take is not None else ()
        if take is None or bad:
            answers = await transaction.run([*statements, "commit"], commits=True)
            outcomes = plan.outcomes(failed, self._wrote(witness, answers[0] if statements else ()))
            return Turned(outcomes, Conflict(bad) if take is not None else None)
        taking = Taking(self._options.network, take)
        answers = await transaction.run([*statements, *taking.look()], commits=False)
        drawn: Rows = answers.pop(0) if statements else ()
        taken = await taking.run(transaction, answers)
        return Turned(plan.outcomes(failed, self._wrote(witness, drawn)), taken)

    def _wrote(self, witness: Witness, drawn: Rows) -> int:
        """Note what was committed, if anything was; return its revision."""
        for revision, found in drawn:
            self._lineage.wrote(witness, revision, found)
            return int(revision)
        return 0
