"""What differs between databases: which schemes there are, what a connection must be told, what its settings
promise.
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit, urlunsplit

from converge.errors import InvalidValue, Unsupported
from converge.urls import check_host

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
