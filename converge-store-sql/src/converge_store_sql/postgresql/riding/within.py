"""Tasks in a transaction of the caller's: statements on a connection of SQLAlchemy's that is not ours.

Everything happens behind a savepoint, so that what is refused leaves the transaction as it was. A lane that is relied
on is kept open by an advisory lock, which those who put tasks share and who would close it does not wait for: it finds
that it cannot. The lane's row is not locked, so nobody who submits ever waits for the caller's commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.types import NullType

from converge.contracts.store import Batch, Channel, Check, Committed, Conflict, Entry, Key, Store
from converge.contracts.transactions import Within
from converge.errors import InvalidValue, StoreBusy, StoreError, StoreRefused, StoreUnavailable, Unsupported
from converge.model.keys import EPOCH, FAMILIES
from converge_store_sql import riding
from converge_store_sql.postgresql._errors import RETRIED, call_failed, sqlstate
from converge_store_sql.postgresql.calls import get_call, got, turn_arguments
from converge_store_sql.postgresql.fragments import ARGUMENT, lane_lock
from converge_store_sql.postgresql.plan import Plan, Shape
from converge_store_sql.postgresql.statements import Statements
from converge_store_sql.riding import Look, check_open

TRIES = 20
"""How often a statement is run that another transaction was faster than: each time that one got on."""

_PROBE = """select current_database(), current_setting('search_path'), current_setting('transaction_isolation'),
    current_setting('transaction_read_only') = 'on' or pg_is_in_recovery(), to_regclass(:schema)::oid::bigint"""

_DEADLOCK = "40P01"
_NO_TRANSACTION = "25P01"
_FAILED_TRANSACTION = "25P02"

OnWritten = Callable[[int, Collection[Channel]], None]
"""Told the number of the transaction that has written, and whom to wake once it has committed."""


class Inside(riding.Inside):
    """The side within the caller's transaction.

    Args:
        connection: Whose transaction it is.
        network: The prefix of the tables.
        look_outside: Reads keys outside the transaction, as they are at this moment.
        on_written: Told what was written.
    """

    def __init__(
        self,
        connection: Connection,
        network: str,
        look_outside: Look,
        on_written: OnWritten,
    ) -> None:
        self._connection, self._network = connection, network
        self._statements = Statements(network)
        self._look_outside, self._on_written = look_outside, on_written
        self._is_checked = False
        self._has_snapshot = False  # one for the whole transaction: what lost a race loses it again

    def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """Return the entries as the transaction sees them."""
        if not keys:
            return []
        with self._savepoint():
            return got(keys, run(self._connection, *get_call(self._statements, keys)))

    def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        """Write the batches; see `Store.commit`."""
        asked = [_split(batch) for batch in batches]
        outcomes: dict[int, Committed | Conflict] = {}
        left = list(range(len(batches)))
        while left:
            held = {check for number in left for check in asked[number][1]}
            try:
                with self._savepoint():
                    xid = self._keep_open([key for key, _ in held])
                    wrong = self._changed(held)
                    if wrong:
                        raise _LaneChanged  # what is locked is let go, so that the lane can be opened again
                    done = self._write([asked[number][0] for number in left])
            except _LaneChanged:
                for number in left:
                    if failed := [key for key, revision in asked[number][1] if (key, revision) in wrong]:
                        outcomes[number] = Conflict(tuple(failed))
                left = [number for number in left if number not in outcomes]
                continue
            outcomes |= dict(zip(left, done, strict=True))
            self._on_written(xid, wake)
            break
        return [outcomes[number] for number in range(len(batches))]

    def _keep_open(self, lanes: Sequence[Key]) -> int:
        """Share the locks of the lanes; return the number of the transaction."""
        names = [key[2].hex() for key in lanes if key[0] != EPOCH]
        locks = f"select {lane_lock(self._network, 'x', is_shared=True)}::text from unnest($1::text[]) u(x) order by x"
        ((xid, _),) = run(self._connection, f"select pg_current_xact_id()::text, array({locks})", [sorted(names)])
        return int(xid)

    def _changed(self, held: Collection[Check]) -> set[Check]:
        keys = [key for key, _ in held]
        entries = dict(zip(keys, self._look_outside(keys), strict=True)) if keys else {}
        found = {key: entry.revision if entry is not None else 0 for key, entry in entries.items()}
        return {(key, revision) for key, revision in held if found[key] != revision}

    def _write(self, batches: Sequence[Batch]) -> Sequence[Committed | Conflict]:
        plan = Plan(batches, None)
        work = plan.work()
        shape = Shape(tuple(part for part, _ in work), False, bool(plan.runs), bool(plan.windows), None, replaces=True)
        arguments = turn_arguments(plan, work, [], None)
        for attempt in range(TRIES):
            try:
                with self._connection.begin_nested():
                    (row,) = run(self._connection, self._statements.turn(shape), arguments)
                break
            except DBAPIError as error:
                if self._has_snapshot or attempt == TRIES - 1 or sqlstate(error) not in RETRIED:
                    raise
                if sqlstate(error) == _DEADLOCK and attempt > 0:  # over what the transaction holds from before
                    raise
        bad, late, there, missed, revision, _ = row
        return plan.outcomes(bad, late, there, missed, revision)

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        """Run the block behind a savepoint; what fails in it is undone and named."""
        check_open(self._connection)
        try:
            with self._connection.begin_nested():
                if not self._is_checked:
                    self._check()
                yield
        except (_LaneChanged, StoreError):
            raise
        except (SQLAlchemyError, OSError) as error:
            raise self._named(error) from error

    def _check(self) -> None:
        """Refuse a transaction that cannot write, and one on another database or schema.

        Tables of the same names elsewhere are told by the epoch, which each store draws for itself.
        """
        probed = self._connection.execute(text(_PROBE), {"schema": f"{self._network}_schema"}).one()
        database, path, isolation, is_read_only, schema = probed
        if is_read_only:
            raise StoreRefused(
                "the transaction is read-only, or on a standby; tasks need one that may write, on the primary"
            )
        where = f'the database "{database}" with the search_path {path}'
        if schema is None:
            raise StoreRefused(
                f"the tables {self._network}_* are not there in {where}; use a connection to the database and schema "
                f"of the store, or name its network"
            )
        key = EPOCH()
        (mine,) = got([key], run(self._connection, *get_call(self._statements, [key])))
        (outside,) = self._look_outside([key])
        if mine is None or outside is None or mine.value != outside.value:
            raise StoreRefused(
                f"the tables {self._network}_* in {where} belong to another store than the one opened; use a "
                f"connection to the same database"
            )
        self._has_snapshot = isolation != "read committed"
        self._is_checked = True

    def _named(self, error: SQLAlchemyError | OSError) -> Exception:
        code = sqlstate(error)
        if code == _NO_TRANSACTION:
            return InvalidValue(
                "connection", "a connection in AUTOCOMMIT", "one with a transaction, whose commit makes the task"
            )
        if code == _FAILED_TRANSACTION:
            return InvalidValue("connection", "a connection in a broken transaction", "one that can go on")
        if not isinstance(error, DBAPIError | OSError):
            return InvalidValue("connection", type(error).__name__, "a connection with an open transaction")
        if code in RETRIED:
            return StoreBusy(f"another transaction was first ({code}); roll back and run the whole transaction again")
        named = call_failed(error, "the caller's connection", writes=False)
        if isinstance(named, StoreUnavailable) and code is None:
            return StoreUnavailable(f"{named}; its transaction is gone, and nothing of it was written")
        return named


class _LaneChanged(Exception):
    """A lane is not what it was, so what was locked is let go."""


def run(connection: Connection, statement: str, arguments: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """Run one of our statements through whatever driver the connection has."""
    named = text(ARGUMENT.sub(r"(:p\1)", statement))
    values = [
        bindparam(f"p{n}", list(value) if isinstance(value, tuple) else value, type_=NullType())
        for n, value in enumerate(arguments, start=1)
    ]
    result = connection.execute(named.bindparams(*values))
    if not result.returns_rows:
        return ()
    return [[bytes(cell) if isinstance(cell, memoryview) else cell for cell in row] for row in result]


def _split(batch: Batch) -> tuple[Batch, list[Check]]:
    """Return what the transaction does, and the checks of keys that it only relies on."""
    written = {key for key, _ in batch.puts} | set(batch.deletes)
    held = [check for check in batch.checks if check[0] not in written]
    others = {key[0] for key, _ in held} - {FAMILIES["lane"], FAMILIES["epoch"]}
    if others:
        raise Unsupported(
            f"in a transaction of the caller's, keys of {', '.join(sorted(others))} cannot be relied on; submit tasks "
            "in it, nothing else"
        )
    return batch._replace(checks=[check for check in batch.checks if check[0] in written]), held


def within(outside: Store, connection: Any, network: str, on_written: OnWritten) -> Within:
    """Return the store that writes in the transaction of the connection or session.

    Raises:
        InvalidValue: It is neither.
    """

    def enter(own: Connection, look_outside: Look) -> Inside:
        check_dialect(own)
        return Inside(own, network, look_outside, on_written)

    return riding.within(outside, connection, enter)


def check_dialect(connection: Connection) -> None:
    """Refuse a connection to another database than PostgreSQL.

    Raises:
        InvalidValue: It is one.
    """
    if connection.dialect.name != "postgresql":
        raise InvalidValue("connection", f"a connection to {connection.dialect.name}", "one to PostgreSQL")
