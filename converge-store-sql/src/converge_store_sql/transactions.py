"""Tasks in a transaction of the caller's, without an event loop."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session

from converge import Task
from converge.errors import InvalidValue, Unsupported
from converge_store_sql.options import check_network
from converge_store_sql.riding import check_open, not_connected


def submit_in(
    connection: Connection | Session | scoped_session[Session],
    tasks: Task | Sequence[Task],
    *,
    network: str = "converge",
) -> list[str]:
    """Submit tasks in the transaction of a connection or session of SQLAlchemy's: they are there when it commits, and
    gone when it rolls back. No event loop is needed, and none is started.

    A second connection of the same engine reads the pools and opens lanes; its pool must have room for it. In
    `run_sync` of an async connection nobody is woken; `store.within` does it there.

    Args:
        connection: With whose transaction; one is begun where none is open, as for every statement.
        tasks: One or many.
        network: The prefix of the store's tables.

    Raises:
        InvalidValue, InvalidName, ValueTooLarge, NoSuchPool: Nothing was submitted; or of `connection`: it is closed,
            in AUTOCOMMIT, its transaction has failed, or its engine can open no second one.
        DedupConflict, TooManyLanes: The first task that was refused; all others were submitted. Its `ids` has theirs.
        StoreRefused: The transaction is read-only, or the store's tables are not there.
        StoreBusy: Another transaction was first, or the engine's pool has no connection left; roll back and run the
            whole transaction again.
        StoreUnavailable: The connection was lost, and the transaction with it; or none could be made.
        Unsupported: The database is neither PostgreSQL, MariaDB nor MySQL.
    """
    if not isinstance(connection, Connection | Session | scoped_session):
        raise InvalidValue(
            "connection",
            type(connection).__name__,
            "a Connection or Session of SQLAlchemy; for async ones, TaskManager(store.within(connection))",
        )
    try:
        own = connection if isinstance(connection, Connection) else connection.connection()
    except (SQLAlchemyError, OSError) as error:
        raise not_connected(error) from error
    check_open(own)
    # Each database's own is imported when it is used.
    match own.dialect.name:
        case "postgresql":
            from converge_store_sql.postgresql.riding.sync import submit
        case "mysql" | "mariadb":
            from converge_store_sql.mysql.sync import submit
        case other:
            raise Unsupported(f"submit_in needs PostgreSQL, MariaDB or MySQL, and this is a connection to {other}")
    return submit(own, [tasks] if isinstance(tasks, Task) else tasks, check_network(network))
