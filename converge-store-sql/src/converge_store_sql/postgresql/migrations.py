"""The schema of a network: made when it is new; given the tables of newer families when it is opened; its number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from converge.codec import FIRST, FORMAT
from converge.errors import NoSuchStore, SchemaTooNew, StoreRefused
from converge.model.keys import FAMILIES
from converge_store_sql._errors import check_columns
from converge_store_sql.postgresql._errors import sqlstate
from converge_store_sql.postgresql.tables import create_lost_race, create_table, create_tables, table
from converge_store_sql.postgresql.view import CURRENT, VERSION, create_view

_NO_RIGHT, _NO_SCHEMA = "42501", "3F000"  # the latter: none of the search path that this role may use
_IN_USE = "2BP01"  # something else is made of the view

_LOCK = "select pg_advisory_xact_lock(hashtextextended($1, 0))"

_READERS = """select format('grant select on %s to %s', $1::text, case a.grantee when 0 then 'public'
        else quote_ident(pg_get_userbyid(a.grantee)) end) as grant
    from pg_class c, aclexplode(c.relacl) a
    where c.oid = to_regclass($1) and a.grantee <> c.relowner and a.privilege_type = 'SELECT'"""

_LOG = logging.getLogger(__name__)

_LOOK = """select coalesce(pg_get_userbyid((select relowner from pg_class where oid = to_regclass($1))), ''),
    array(select name from unnest($2::text[]) with ordinality u(name, n) where to_regclass(name) is null order by n)
    || array(select $3::text where to_regprocedure($3 || '()') is null)"""

# Of what stands where tables would be made; others of these names may be further back in the search path.
_COLUMNS = """select c.relname::text,
        array(select attname::text from pg_attribute where attrelid = c.oid and attnum > 0)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = current_schema() and c.relname = any($1::text[])"""

# What others than the owner may do with the tables that are there, they may do with new ones. The schema's number is
# written by whoever first uses something new.
_RIGHTS = """select distinct format('grant %s on %I to %s', a.privilege_type, wanted.name,
        case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end) as grant
    from pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a, unnest($2::text[]) wanted(name)
    where c.oid = to_regclass($1) and a.grantee <> (select oid from pg_roles where rolname = current_user)
        and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
        and (a.grantee = 0 or not has_table_privilege(a.grantee, to_regclass(wanted.name), a.privilege_type))
    order by 1"""


async def migrate(connection: Any, network: str, absent: NoSuchStore | None = None) -> None:
    """Make what this release knows and that is not there; those of a newer release are refused.

    One step, safe beside processes of the release before: they do not look at what is added. The schema's number stays
    until something new is used (`note_format`).

    Args:
        connection: A connection of the driver, outside a transaction.
        network: The prefix of the tables.
        absent: What to raise where there are none, instead of making them.

    Raises:
        NoSuchStore: The one that was given.
        SchemaTooNew: Something is used that this release does not know.
        StoreRefused: Tables are missing, and this role may not make them; which role may. Or others' are there.
    """
    owner, missing = await _look(connection, network)
    if owner:
        await _check_version(connection, network)
    elif absent is not None:
        raise absent
    if not missing:
        await _renew_view(connection, network)
        return
    try:
        async with connection.transaction():
            await _add(connection, network)
    except Exception as error:
        if sqlstate(error) not in (_NO_RIGHT, _NO_SCHEMA):
            raise
        role, schema = await connection.fetchrow("select current_user, current_schema()")
        if schema is None:
            path = await connection.fetchval("select current_setting('search_path')")
            raise StoreRefused(
                f'no schema of the search_path {path or "(empty)"} is there and open to the role "{role}"; create it, '
                "name another with the option schema, or run `converge store migrate` as a role that may use it"
            ) from error
        who = f'the role "{owner}", which owns the others' if owner else "a role that may"
        raise StoreRefused(
            f'tables of the network "{network}" are missing ({", ".join(missing[:3])}'
            f'{", ..." if len(missing) > 3 else ""}), and the role "{role}" may not make them; run '
            f"`converge store migrate` as {who}"
        ) from error


async def _look(connection: Any, network: str) -> tuple[str, Sequence[str]]:
    """Return who owns the tables that are there, and which are not, once nothing of another program is among them.

    Raises:
        StoreRefused: Something is.
    """
    owner, missing = await connection.fetchrow(_LOOK, f"{network}_schema", _tables(network), _function(network))
    if missing:
        wanted = {table(network, family): ("revision", "value", *family.parts) for family in FAMILIES.values()} | {
            f"{network}_schema": ("version", "at"),
            f"{network}_revision": ("last_value",),
            f"{network}_waiter": ("channel", "waiter"),
            f"{network}_tasks": ("id", "pool", "place", "rank"),
        }
        check_columns(dict(await connection.fetch(_COLUMNS, list(wanted))), wanted)
    return owner, missing


async def pending(connection: Any, network: str) -> list[str]:
    """Return what `migrate` would do, a line each, without doing it.

    Raises:
        SchemaTooNew, StoreRefused: As `migrate`.
    """
    owner, missing = await _look(connection, network)
    if not owner:
        return [f'the tables of a new network "{network}"']
    await _check_version(connection, network)
    view = [f"the view {network}_tasks, with its present columns"] if await _has_old_view(connection, network) else []
    return [f"the {'function' if name == _function(network) else 'table'} {name}" for name in missing] + view


async def _has_old_view(connection: Any, network: str) -> bool:
    return bool(await connection.fetchval(CURRENT, f"{network}_tasks") < VERSION)


async def _renew_view(connection: Any, network: str) -> None:
    """Make the view anew if it is one of before. No process needs it, so nobody is refused who may not."""
    if not await _has_old_view(connection, network):
        return
    try:
        async with connection.transaction():
            await connection.execute(_LOCK, f"converge/schema/{network}")
            if await _has_old_view(connection, network):
                readers = [grant for (grant,) in await connection.fetch(_READERS, f"{network}_tasks")]
                for statement in [*create_view(network), *readers]:
                    await connection.execute(statement)
    except Exception as error:
        if sqlstate(error) not in (_NO_RIGHT, _IN_USE):
            raise
        _LOG.info("the view %s_tasks is left as it is: %s", network, error)


async def _add(connection: Any, network: str) -> None:
    # Processes that start together must not create the tables twice; the lock goes with the transaction.
    await connection.execute(_LOCK, f"converge/schema/{network}")
    owner, missing = await connection.fetchrow(_LOOK, f"{network}_schema", _tables(network), _function(network))
    if not owner:
        await connection.execute(
            f"create table {network}_schema (version integer primary key, at timestamptz not null default now())"
        )
        await connection.execute(create_tables(network))
        await connection.execute(f"insert into {network}_schema (version) values ($1)", FIRST)
        return
    for family in FAMILIES.values():
        if table(network, family) in missing:
            await connection.execute(create_table(network, family))
    if _function(network) in missing:
        await connection.execute(create_lost_race(network))
    await _renew_view(connection, network)
    made = [name for name in missing if name != _function(network)]
    for (grant,) in await connection.fetch(_RIGHTS, table(network, FAMILIES["state"]), made):
        await connection.execute(grant)
    if owner == await connection.fetchval("select current_user"):
        for (grant,) in await connection.fetch(_RIGHTS, table(network, FAMILIES["state"]), [f"{network}_schema"]):
            if grant.startswith("grant INSERT"):
                await connection.execute(grant)


async def _check_version(connection: Any, network: str) -> None:
    version = int(await connection.fetchval(f"select coalesce(max(version), 0) from {network}_schema"))
    if version > FORMAT:
        raise SchemaTooNew(
            f"the tables {network}_* have version {version}, this release of converge-core knows {FORMAT}: upgrade it"
        )


def _tables(network: str) -> Sequence[str]:
    return [table(network, family) for family in FAMILIES.values()]


def _function(network: str) -> str:
    return f"{network}_lost_race"
