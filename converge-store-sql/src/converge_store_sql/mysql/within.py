"""Tasks in a transaction of the caller's on MariaDB and MySQL: statements on a connection of SQLAlchemy's, not ours.

Everything happens behind a savepoint, so that what is refused leaves the transaction as it was. A lane that is relied
on is locked in share mode, which those who submit to it do as well; who would close it passes over it. What a
transaction reads at the server's default isolation may be old, so each key is looked up outside as well, and its own
writes aside that counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from converge.contracts.store import ABSENT, Batch, Channel, Check, Committed, Conflict, Entry, Key
from converge.errors import InvalidValue, StoreBusy, StoreError, StoreRefused, StoreUnavailable, Unsupported
from converge.model.keys import EPOCH, LANE, Family, pack
from converge_store_sql.mysql._errors import DUPLICATE, call_failed, number_of
from converge_store_sql.mysql.plan import Plan
from converge_store_sql.mysql.texts import listed, pages, source
from converge_store_sql.riding import Inside, Look, check_open

_NO_TABLE, _DEADLOCK, _READ_ONLY, _NO_SAVEPOINT = 1146, 1213, 1792, 1305


class _Own:
    """What was written within one transaction of a caller's, by whichever call: what it reads at an old snapshot cannot
    tell its own rows from those that others have replaced since.
    """

    def __init__(self) -> None:
        self.revisions = set[int]()
        self.put = set[Key]()
        self.deleted = set[Key]()


_WRITTEN = WeakKeyDictionary[RootTransaction, dict[str, _Own]]()
"""By transaction, and by network, which draws revisions of its own."""


class MysqlInside(Inside):
    """The side within the caller's transaction.

    Args:
        connection: Whose transaction it is.
        network: The prefix of the tables.
        look_outside: Reads keys outside the transaction, as they are at this moment.
    """

    def __init__(self, connection: Connection, network: str, look_outside: Look) -> None:
        check_dialect(connection)
        self._connection, self._network, self._look_outside = connection, network, look_outside
        self._is_checked = False

    def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """Return the entries as the transaction would find them: its own, else what is committed by now."""
        with self._savepoint():
            return self._found(keys)

    def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        """Write the batches; see `Store.commit`. Watches poll, so the commit wakes nobody."""
        outcomes: list[Committed | Conflict | None] = [None] * len(batches)
        with self._savepoint():
            while left := [number for number, outcome in enumerate(outcomes) if outcome is None]:
                failed = self._failed([batches[number] for number in left])
                for number, conflict in zip(left, failed, strict=True):
                    outcomes[number] = conflict
                if not any(failed):
                    revision = self._write([batches[number] for number in left])
                    for number in left:
                        outcomes[number] = Committed(revision) if revision else outcomes[number]
                    if not revision:
                        raise StoreBusy("another transaction was first; roll back and run the whole transaction again")
        return [outcome for outcome in outcomes if outcome is not None]

    def _failed(self, batches: Sequence[Batch]) -> list[Conflict | None]:
        """Return which batches do not hold by now; the lanes of the others are locked."""
        checks = {check for batch in batches for check in batch.checks}
        keys = list(dict.fromkeys(key for key, _ in checks))
        found = {key: entry.revision if entry else ABSENT for key, entry in zip(keys, self._found(keys), strict=True)}
        wrong = {check for check in checks if found[check[0]] != check[1]}
        others = {key[0] for key, _ in _relied_on(batches)} - {LANE, EPOCH()[0]}
        if others:
            raise Unsupported(
                f"in a transaction of the caller's, keys of {', '.join(sorted(others))} cannot be relied on; submit "
                "tasks in it, nothing else"
            )
        lanes = {pack(key): (key, at) for key, at in _relied_on(batches) if key[0] == LANE and (key, at) not in wrong}
        for some in pages(sorted(lanes)):
            text = f"select k, r from {source(self._network, LANE)} where k in {listed(some)} lock in share mode"
            locked = dict[bytes, int](run(self._connection, text))  # type: ignore[arg-type]  # rows of two
            wrong |= {lanes[key] for key in some if locked.get(key) != lanes[key][1]}
        each = [tuple(check[0] for check in batch.checks if check in wrong) for batch in batches]
        return [Conflict(failed) if failed else None for failed in each]

    def _write(self, batches: Sequence[Batch]) -> int:
        """Write batches that hold; return their revision, 0 if another transaction has put one of their keys."""
        relied_on = _relied_on(batches)
        alone = [batch._replace(checks=[one for one in batch.checks if one not in relied_on]) for batch in batches]
        ((callers,),) = run(self._connection, "select last_insert_id()")
        try:
            with self._connection.begin_nested():
                for statement in Plan(self._network, alone, None).bet()[1:]:
                    run(self._connection, statement)
                ((revision,),) = run(self._connection, "select last_insert_id()")
        except DBAPIError as error:
            if number_of(error) != DUPLICATE:
                raise
            revision = 0
        run(self._connection, f"do last_insert_id({callers:d})")
        if not revision:
            return 0
        own = self._own()
        own.revisions.add(revision)
        own.put |= {key for batch in batches for key, _ in batch.puts}
        own.deleted |= {key for batch in batches for key in batch.deletes}
        return int(revision)

    def _own(self) -> _Own:
        transaction = self._connection.get_transaction()
        assert transaction is not None, "a savepoint has begun it"
        return _WRITTEN.setdefault(transaction, {}).setdefault(self._network, _Own())

    def _found(self, keys: Sequence[Key]) -> list[Entry | None]:
        own = self._own()
        # At SERIALIZABLE each read locks what it finds, or the gap where others put theirs: read no more than needed.
        mine = [key for key in keys if key in own.put or key in own.deleted]
        inside = dict(zip(mine, lookup(self._connection, self._network, mine), strict=True))
        outside = self._look_outside(keys) if keys else []
        return [self._newer(key, inside.get(key), other) for key, other in zip(keys, outside, strict=True)]

    def _newer(self, key: Key, mine: Entry | None, other: Entry | None) -> Entry | None:
        own = self._own()
        if mine is not None and mine.revision in own.revisions:
            return mine
        return None if mine is None and key in own.deleted else other

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        """Run the block behind a savepoint; what fails in it is undone and named."""
        check_open(self._connection)
        try:
            if not self._is_checked:
                self._check()
            with self._connection.begin_nested():
                yield
        except StoreError:
            raise
        except (SQLAlchemyError, OSError) as error:
            raise self._named(error) from error

    def _check(self) -> None:
        """Refuse a connection in AUTOCOMMIT, and one to another database."""
        ((is_automatic, database),) = run(self._connection, "select @@autocommit, database()")
        if is_automatic:
            raise InvalidValue(
                "connection", "a connection in AUTOCOMMIT", "one with a transaction, whose commit makes the task"
            )
        (mine,), (other,) = lookup(self._connection, self._network, [EPOCH()]), self._look_outside([EPOCH()])
        if other is None or (mine is not None and mine.value != other.value):
            raise StoreRefused(
                f'the tables {self._network}_* in the database "{database}" belong to another store than the one '
                "opened; use a connection to the same database"
            )
        self._is_checked = True

    def _named(self, error: SQLAlchemyError | OSError) -> Exception:
        number = number_of(error)
        if not isinstance(error, DBAPIError | OSError):
            return InvalidValue("connection", type(error).__name__, "a connection with an open transaction")
        if number == _NO_TABLE:
            return StoreRefused(
                f"the tables {self._network}_* are not there; use a connection to the database of the store, or name "
                "its network"
            )
        if number == _READ_ONLY:
            return StoreRefused("the transaction is read-only; tasks need one that may write, on the primary")
        if number in (_DEADLOCK, _NO_SAVEPOINT):  # its savepoints are gone with it
            return StoreBusy("a deadlock has rolled the transaction back; run the whole transaction again")
        named = call_failed(error, "the caller's connection", writes=False)
        if isinstance(named, StoreUnavailable) and number is None:
            return StoreUnavailable(f"{named}; its transaction is gone, and nothing of it was written")
        return named


def check_dialect(connection: Connection) -> None:
    """Refuse a connection to another database than MariaDB or MySQL.

    Raises:
        InvalidValue: It is one.
    """
    if connection.dialect.name not in ("mysql", "mariadb"):
        raise InvalidValue("connection", f"a connection to {connection.dialect.name}", "one to MariaDB or MySQL")


def run(connection: Connection, statement: str) -> Sequence[Sequence[Any]]:
    """Run one of our statements, which have their values in their text, through whatever driver the connection has."""
    result = connection.exec_driver_sql(statement)
    return result.all() if result.returns_rows else ()


def lookup(connection: Connection, network: str, keys: Sequence[Key]) -> list[Entry | None]:
    """Return the entries as a transaction sees them."""
    families: dict[Family, dict[bytes, Key]] = {}
    for key in keys:
        families.setdefault(key[0], {})[pack(key)] = key
    found: dict[Key, Entry] = {}
    for family, packed in families.items():
        for some in pages(list(packed)):
            text = f"select k, v, r from {source(network, family)} where k in {listed(some)}"
            for key, value, revision in run(connection, text):
                found[packed[key]] = Entry(packed[key], value, revision)
    return [found.get(key) for key in keys]


def _relied_on(batches: Sequence[Batch]) -> set[Check]:
    """Return the checks of keys that their batch does not write."""
    return {
        check
        for batch in batches
        for written in [{key for key, _ in batch.puts} | set(batch.deletes)]
        for check in batch.checks
        if check[0] not in written
    }
