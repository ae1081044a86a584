"""The steps from one version of the schema to the next, and the run that brings a database up to date."""

from __future__ import annotations

import importlib
from typing import Any

from converge.errors import SchemaTooNew

STEPS = ("0001_initial",)
"""Modules of this package, in order; the version of a schema is the number of steps that it has had."""


async def migrate(connection: Any, network: str) -> None:
    """Bring the tables of a network to this release's version; those of a newer release are refused.

    Args:
        connection: A connection of the driver, outside a transaction.
        network: The prefix of the tables.

    Raises:
        SchemaTooNew: The tables were made by a newer release.
    """
    version = await _version(connection, network)
    if version < len(STEPS):
        async with connection.transaction():
            # Processes that start together must not create the tables twice; the lock goes with the transaction.
            await connection.execute(
                "select pg_advisory_xact_lock(hashtextextended($1, 0))", f"converge/schema/{network}"
            )
            await connection.execute(
                f"create table if not exists {network}_schema (version integer primary key, at timestamptz not "
                f"null default "
                f"now())"
            )
            version = int(await connection.fetchval(f"select coalesce(max(version), 0) from {network}_schema"))
            for number, name in enumerate(STEPS[version:], start=version + 1):
                step = importlib.import_module(f"{__name__}.{name}")
                await connection.execute(step.statements(network))
                await connection.execute(f"insert into {network}_schema (version) values ($1)", number)
    if version > len(STEPS):
        raise SchemaTooNew(
            f"the tables {network}_* have version {version}, this release of converge-store-sql knows "
            f"{len(STEPS)}; install a newer "
            f"release"
        )


async def _version(connection: Any, network: str) -> int:
    """The version found, 0 where there is none. Asked first, so that a role without the right to create tables can open
    a store.
    """
    if await connection.fetchval("select to_regclass($1)", f"{network}_schema") is None:
        return 0
    return int(await connection.fetchval(f"select coalesce(max(version), 0) from {network}_schema"))
