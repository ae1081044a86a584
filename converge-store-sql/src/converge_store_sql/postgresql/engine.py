"""Which URLs are those of a database here, and how one connection is made: by the driver, without SQLAlchemy's layers.

They took 90 of the 120 us that a small statement cost a client, and what they say on a new connection hangs where the
network has lost it: what is cut short there asks the server, over one more connection, to cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from converge.errors import InvalidValue, Unsupported
from converge.urls import check_host
from converge_store_sql.options import SqlOptions
from converge_store_sql.passwords import first_line

POSTGRESQL = "postgresql"

SESSION = {
    "application_name": "converge",
    # after waiting for a lock a statement sees the row's newest version
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    # One prepared statement serves every call of its shape, and each of its joins is one index lookup a row. What the
    # planner would rather do rests on how large a table was when the statement was planned: a plan made on an empty
    # table scans it all when it has grown.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_material": "off",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    # How long the server bears clients that hang or forget a transaction: calls have limits of their own, and idle
    # connections are kept on purpose.
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
"""Settings of every connection."""

STATEMENTS = 1_000
"""Prepared statements that a connection keeps: more than there are shapes of calls, so that none is planned twice."""


STATEMENT_MORE_SEC = 1.0
"""How much longer a statement may take in the server than a call."""


ARRAYS = {1000: ("_bool", 16), 1001: ("_bytea", 17), 1007: ("_int4", 23), 1016: ("_int8", 20)}
"""The arrays of our statements that the driver does not know: number, name, number of the elements. They are the same
on every server: `src/include/catalog/pg_type.dat` of PostgreSQL gives them for good.
"""


def check_url(url: str) -> SplitResult:
    """Split a URL of a database that this release can use.

    Raises:
        Unsupported: The database comes with a later release.
        InvalidValue: It is not the URL of a database.
    """
    check_host(url)
    split = urlsplit(url)
    scheme = split.scheme.partition("+")[0]
    if scheme == "sqlite":
        raise Unsupported("sqlite: is opened by converge.open_store, or by SqliteStore, which has options of its own")
    if scheme != POSTGRESQL:
        raise InvalidValue("store", redacted(split), "a URL postgresql://[USER@]HOST[:PORT]/DATABASE")
    if "+" in split.scheme and split.scheme.partition("+")[2] != "asyncpg":
        raise Unsupported(
            f"{split.scheme}: this release of converge-store-sql talks to PostgreSQL through asyncpg; write "
            f"postgresql://"
        )
    return split._replace(scheme=POSTGRESQL)


def redacted(split: SplitResult) -> str:
    """Return the URL without its password and its query, which may hold another."""
    user, at, host = split.netloc.rpartition("@")
    return urlunsplit((split.scheme, f"{user.partition(':')[0]}{at}{host}", split.path, "", ""))


class Connector:
    """Makes the connections of one handle.

    Raises:
        Unsupported: The driver is not installed.
    """

    def __init__(self, dsn: str, options: SqlOptions) -> None:
        self._driver = _driver()
        self._arguments = {**_arguments(dsn, options), "connection_class": _connection_class(self._driver)}

    async def connect(self) -> Any:
        """Return a new connection of the driver."""
        return await self._driver.connect(**self._arguments)


def session(options: SqlOptions) -> dict[str, str]:
    """Return the settings of every connection, or behind a pooler of every transaction."""
    settings = {**SESSION, "lock_timeout": f"{options.lock_timeout_sec * 1000:.0f}"}
    # Later than the client's own limit: what nobody waits for any more ends on the server, too.
    settings["statement_timeout"] = f"{(options.timeout_sec + STATEMENT_MORE_SEC) * 1000:.0f}"
    return settings | {"search_path": options.schema} if options.schema is not None else settings


def begin(options: SqlOptions) -> str:
    """Return the statements that begin a transaction with these settings."""
    local = {
        name: value
        for name, value in session(options).items()
        if not name.startswith(("application", "default", "idle_session"))
    }
    settings = "".join(f"; set local {name} = '{value}'" for name, value in local.items())
    return f"begin isolation level read committed read write{settings}"


def _arguments(dsn: str, options: SqlOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dsn": dsn,
        "timeout": options.connect_timeout_sec,
        # Calls have an end of their own, in `connect.py`; this one is that of making tables and of listening.
        "command_timeout": options.timeout_sec + STATEMENT_MORE_SEC,
        "statement_cache_size": 0 if options.pooler else STATEMENTS,
        # Whatever their size and age: at 0 there is no limit.
        "max_cacheable_statement_size": 0,
        "max_cached_statement_lifetime": 0,
    }
    if not options.pooler:
        arguments["server_settings"] = session(options)
    if options.password_file is not None:
        path = options.password_file
        arguments["password"] = lambda: first_line(path)
    return arguments


@cache
def _connection_class(driver: Any) -> type:
    """Return the driver's class of connections, told what `ARRAYS` says. Left to itself each new connection asks the
    server, with three statements for each first use of a type, of which one is planned and run for milliseconds.
    """

    class Connection(driver.Connection):  # type: ignore[misc]  # the driver may not be there
        async def _introspect_types(self, typeoids: Sequence[int], timeout: float | None) -> tuple[Any, Any]:
            if all(number in ARRAYS for number in typeoids):
                # No statement was sent, so none without a name lost its place on the server.
                return [_array(number) for number in typeoids], SimpleNamespace(name="none")
            asked: tuple[Any, Any] = await super()._introspect_types(typeoids, timeout)
            return asked

    return Connection


def _array(number: int) -> dict[str, Any]:
    name, element = ARRAYS[number]
    nothing = dict.fromkeys(("basetype", "range_subtype", "attrtypoids", "attrnames"))
    return {"oid": number, "ns": "pg_catalog", "name": name, "elemtype": element, "elemdelim": b",", **nothing}


def _driver() -> Any:
    try:
        import asyncpg
    except ImportError as error:
        raise Unsupported("PostgreSQL needs its driver; `pip install converge-store-sql[postgresql]`") from error
    return asyncpg
