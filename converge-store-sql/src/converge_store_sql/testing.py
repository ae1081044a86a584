"""What `converge plugins check sql` needs: a PostgreSQL and a MariaDB of the check's own, which it may restart, make
read-only and lock out of; and a file for each test of SQLite.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from converge.codec import FIRST
from converge.model.keys import FAMILIES
from converge.testing import Bench, ServerBench
from converge.testing.servers import ServerUrl, mariadb_server, postgres_server
from converge_store_sql.postgresql.tables import table

USER = "bench"
USED_SEC, USED_CHECKS = 0.01, 100
"""How often to look whether a connection of a test's is left: of a process that was killed it is, for a moment."""
READABLE = 0o711
"""Servers that root starts run as another user, who has to reach their folder."""


class SqlBench(Bench):
    """The bench of one of the three kinds of database."""

    def __new__(cls, backend: Any, given: str, folder: Path) -> Any:
        """Return the bench that fits the backend."""
        kinds: dict[str, type[SqlBench]] = {"sql": _Postgresql, "mysql": _Mariadb}
        return object.__new__(kinds.get(backend.name, _Sqlite))


class _Sqlite(SqlBench):
    def url(self) -> str:
        """Return a file of its own."""
        return f"sqlite:///{self.fresh() / 'store.db'}"


class _OfServer(SqlBench, ServerBench):
    """A server with a user whose password is in a file; each test has a network of its own."""

    driver = ""
    """How the URL begins by which SQLAlchemy reaches the server."""

    def prepare(self) -> None:
        """Make the user, whose password the server asks for."""
        self.password.write_text(secrets.token_hex(16))
        self.run(*self.making())

    @abstractmethod
    def making(self) -> list[str]:
        """Return the statements that make the user."""

    def options(self) -> Any:
        """Return options that name a network of its own, and where the password is."""
        made = super().options()
        return attrs.evolve(made, password_file=self.password) if self.is_own else made

    @property
    def password(self) -> Path:
        """Return the file whose first line is the user's password."""
        return self.folder / "password"

    def secret(self) -> str:
        """Return the user's password."""
        return self.password.read_text()

    def engine(self) -> AsyncEngine:
        """Return SQLAlchemy's engine on the server, as its operator."""
        return create_async_engine(self.driver + self.url_of_server.partition(":")[2])

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        """Begin a transaction of a caller's."""
        engine = self.engine()
        try:
            async with engine.begin() as connection:
                yield connection
        finally:
            await engine.dispose()

    def run(self, *statements: str) -> None:
        """Let the server carry out statements, each alone, as its operator."""

        async def execute() -> None:
            engine = self.engine()
            try:
                async with engine.connect() as connection:
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    for statement in statements:
                        await connection.execute(text(statement))
            finally:
                await engine.dispose()

        with ThreadPoolExecutor(1) as thread:  # the event loop of a test may be here already
            thread.submit(asyncio.run, execute()).result()


class _Postgresql(_OfServer):
    driver = "postgresql+asyncpg:"
    _empty: Callable[[str], bool] | None = None

    def server(self, folder: Path, port: int | None) -> AbstractContextManager[ServerUrl]:
        """Run PostgreSQL, with all that a durability class asks of it."""
        self.folder.chmod(READABLE)
        return postgres_server(directory=folder, port=port)

    def making(self) -> list[str]:
        """Return the statements that make the user."""
        access = self.folder / "server/data/pg_hba.conf"
        access.write_text(f"host all {USER} 127.0.0.1/32 scram-sha-256\n{access.read_text()}")
        made = [f"create role {USER} login password '{self.secret()}'", f"grant create on schema public to {USER}"]
        return [*made, "select pg_reload_conf()"]

    def store_url(self, url: str) -> str:
        """Return the URL with the user's name."""
        return url.replace("postgres@", f"{USER}@", 1)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server, with a connection of its operator's where it is the check's own."""
        with super().running():
            if not self.is_own:
                yield
                return
            with _operator(f"postgresql:{self.url_of_server.partition(':')[2]}") as self._empty:
                yield

    def emptied(self, options: Any) -> bool:
        """Empty a network: that takes milliseconds, and to make its tables, indexes and files a hundred times more."""
        return self._empty is not None and self._empty(options.network)

    @contextmanager
    def refuse_writes(self) -> Iterator[None]:
        """Take from the user, who owns the tables, the right to write to them."""
        rights = "insert, update, delete on all tables in schema public"
        self.run(f"revoke {rights} from {USER}")
        try:
            yield
        finally:
            self.run(f"grant {rights} to {USER}")

    def rotate(self) -> None:
        """Give the user another password, and end the connections that it made with the old one."""
        self.password.write_text(secrets.token_hex(16))
        self.run(
            f"alter role {USER} password '{self.secret()}'",
            f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{USER}'",
        )


@contextmanager
def _operator(url: str) -> Iterator[Callable[[str], bool]]:
    """Yield what empties a network, on one connection of the operator's, in a thread of its own: the event loop of a
    test may be in this one.
    """
    import asyncpg

    with ThreadPoolExecutor(1) as thread:
        runner = asyncio.Runner()

        def call(work: Coroutine[Any, Any, Any]) -> Any:
            return thread.submit(runner.run, work).result()

        async def connected() -> Any:
            return await asyncpg.connect(url)

        connection = call(connected())
        try:
            yield lambda network: call(_emptied(connection, network))
        finally:
            connection.terminate()
            thread.submit(runner.close).result()


async def _emptied(connection: Any, network: str) -> bool:
    """Empty the tables of a network, once nobody is connected any more; return whether that came about."""
    for _ in range(USED_CHECKS):
        if not await connection.fetchval("select count(*) from pg_stat_activity where usename = $1", USER):
            break
        await asyncio.sleep(USED_SEC)
    else:
        return False
    if await connection.fetchval("select to_regclass($1)", f"{network}_schema") is None:
        return True  # the test did not come to open it
    names = [f"{network}_waiter", *(table(network, family) for family in FAMILIES.values())]
    await connection.execute(
        "".join(f"delete from {name};" for name in names) + f"delete from {network}_schema where version > {FIRST}"
    )
    return True


class _Mariadb(_OfServer):
    driver = "mysql+asyncmy:"

    def server(self, folder: Path, port: int | None) -> AbstractContextManager[ServerUrl]:
        """Run MariaDB, with all that a durability class asks of it."""
        self.folder.chmod(READABLE)
        return mariadb_server(directory=folder, port=port)

    def making(self) -> list[str]:
        """Return the statements that make the user."""
        return [
            f"create user '{USER}'@'%' identified by '{self.secret()}'",
            f"grant all on converge.* to '{USER}'@'%'",
        ]

    def store_url(self, url: str) -> str:
        """Return the URL with the user's name."""
        return url.replace("root@", f"{USER}@", 1)

    @contextmanager
    def refuse_writes(self) -> Iterator[None]:
        """Let the server be read-only for all but its operator."""
        self.run("set global read_only = on")
        try:
            yield
        finally:
            self.run("set global read_only = off")

    def rotate(self) -> None:
        """Give the user another password, and end the connections that it made with the old one."""
        self.password.write_text(secrets.token_hex(16))
        self.run(f"alter user '{USER}'@'%' identified by '{self.secret()}'", f"kill user {USER}")
