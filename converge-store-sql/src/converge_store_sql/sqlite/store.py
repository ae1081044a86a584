"""The store in a SQLite file: the engine of the core's `file:` store, with the URL and the networks of a database.

One engine, so that one set of rules keeps files whole: WAL and full synchronisation, a turnstile that queues writers
fairly, locks that survive forks, refusals of replaced files and of network mounts.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import unquote

import attrs
from attrs import validators

from converge.builtin.file import FileStore
from converge.builtin.file.options import FileOptions
from converge.errors import InvalidValue, Unsupported
from converge.secret import without_password
from converge_store_sql.options import check_network

NETWORK = "converge"
OLDEST = (3, 37)
"""The first with strict tables, which refuse a value of another type, whoever writes it."""


def _network(_instance: object, _attribute: object, value: str) -> None:
    check_network(value)


@attrs.frozen(kw_only=True)
class SqliteOptions(FileOptions):
    """How the store in a SQLite file opens and waits.

    Attributes:
        network: The network whose keys these are, `[a-z_][a-z0-9_]{0,30}`. One of another name than `converge` has a
            file of its own beside the URL's, `PATH.NETWORK`: SQLite has one writer a file.
    """

    network: str = attrs.field(
        default=NETWORK,
        validator=[validators.instance_of(str), _network],
        metadata={"help": "the network; another than converge has a file of its own, PATH.NETWORK"},
    )


class SqliteStore(FileStore):
    """A store in a SQLite file. Made by `SqliteStore.open`."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: FileOptions | None = None) -> AsyncIterator[FileStore]:
        """Open `sqlite:///PATH`, making the file if there is none; its folder must exist.

        Raises:
            Unsupported: The interpreter's SQLite is too old, or the URL names another driver.
            InvalidValue: The URL names no file.
            StoreError: As the core's file store.
        """
        chosen = options or SqliteOptions()
        async with super().open(_place(url, chosen), chosen) as store:
            yield store

    @staticmethod
    async def pending(url: str, options: FileOptions | None = None) -> Sequence[str]:
        """Return what `open` would add to a file that is there, a line each, without adding it.

        Raises:
            As `open`; StoreRefused also if there is no store.
        """
        chosen = options or SqliteOptions()
        return await FileStore.pending(_place(url, chosen), chosen)


def _place(url: str, options: FileOptions) -> str:
    """Return the `file:` URL of the file, after looking at SQLite itself."""
    check_version(sqlite3.sqlite_version_info)
    scheme, _, rest = url.partition(":")
    if scheme.lower() not in ("sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"):
        raise Unsupported(f"{scheme}: opens no SQLite file; write sqlite:///PATH")
    path, query, _ = rest.partition("?")
    match = re.fullmatch(r"//(?:localhost)?/(.+)", path)
    if match is None or match[1] == ":memory:" or query:
        raise InvalidValue(
            "store", without_password(url), "a URL sqlite:///PATH, or sqlite:////PATH from the root; in memory, memory:"
        )
    file = unquote(match[1])
    network = options.network if isinstance(options, SqliteOptions) else NETWORK
    return f"file:{file}" if network == NETWORK else f"file:{file}.{network}"


def check_version(version: tuple[int, ...]) -> None:
    """Refuse a SQLite that is too old.

    Raises:
        Unsupported: Which it is, and what is needed.
    """
    if version < OLDEST:
        found, needed = (".".join(map(str, some)) for some in (version, OLDEST))
        raise Unsupported(f"this Python has SQLite {found}; {needed} or later is needed, or a Redis or SQL server")
