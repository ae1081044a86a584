"""The tables of a network on MariaDB and MySQL: a packed key, a value, a revision each, and a view for operators.

DDL is no transaction there, so each step may be repeated: whoever is cut off in the middle, or does it beside another,
leaves what the next one completes. The number of the schema is written last.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import attrs

from converge.codec import FIRST, FORMAT
from converge.errors import SchemaTooNew, StoreRefused
from converge.model.keys import FAMILIES
from converge_store_sql._errors import check_columns, no_network
from converge_store_sql.mysql.connect import Connections
from converge_store_sql.mysql.texts import table, width
from converge_store_sql.mysql.view import NEWEST, create_view

_LOG = logging.getLogger(__name__)

_OPTIONS = "engine=InnoDB row_format=dynamic default character set binary"


def steps(network: str) -> list[str]:
    """Return the statements that make whatever is missing; each changes nothing that is there."""
    made = [
        f"create table if not exists {table(network, family)} (k varbinary({max(1, width(family))}) not null, "
        f"v mediumblob not null, r bigint not null, primary key (k)) {_OPTIONS}"
        for family in FAMILIES.values()
    ]
    return [
        *made,
        f"create table if not exists {network}_revision (id bigint not null auto_increment primary key) {_OPTIONS}",
        f"create table if not exists {network}_witness (id binary(16) not null primary key, r bigint not null, "
        f"at bigint not null) {_OPTIONS}",
        f"create table if not exists {network}_guard (id tinyint not null primary key) {_OPTIONS}",
        f"insert ignore into {network}_guard values (0)",
        f"create table if not exists {network}_schema (version int not null primary key, "
        f"at timestamp not null default current_timestamp) {_OPTIONS}",
        create_view(network),
        f"insert ignore into {network}_schema (version) values ({FIRST})",
    ]


def names(network: str) -> Sequence[str]:
    """Return the tables and the view of a network."""
    families = [table(network, family) for family in FAMILIES.values()]
    return [*families, *(f"{network}_{name}" for name in ("revision", "witness", "guard", "schema", "tasks"))]


def _columns(network: str) -> Mapping[str, Sequence[str]]:
    """Return columns of each of `names`, by which ours are told from others'."""
    return dict.fromkeys(names(network), ("k", "v", "r")) | {
        f"{network}_revision": ("id",),
        f"{network}_witness": ("id", "r", "at"),
        f"{network}_guard": ("id",),
        f"{network}_schema": ("version", "at"),
        f"{network}_tasks": ("id", "place", "task", "record"),
    }


@attrs.frozen
class Lacking:
    """What is not there: tables, by their names; `is_view_old`: the view is not there, or has the columns of a
    release before.
    """

    tables: Sequence[str]
    is_view_old: bool


async def missing(connections: Connections, network: str) -> Lacking:
    """Return what is not there as this release makes it.

    Raises:
        SchemaTooNew: They were made by a newer release.
        StoreRefused: One that is there is of another program.
    """
    wanted = _columns(network)
    listed = ", ".join(f"'{name}'" for name in wanted)
    text = (
        "select table_name, column_name from information_schema.columns where table_schema = database() and "
        f"table_name in ({listed})"
    )
    there: dict[str, set[str]] = defaultdict(set)
    for row in await connections.read(text):
        name, column = (one if isinstance(one, str) else one.decode() for one in row)
        there[name].add(column)
    check_columns(there, wanted)
    if f"{network}_schema" in there:
        ((version,),) = await connections.read(f"select coalesce(max(version), 0) from {network}_schema")
        if version > FORMAT:
            raise SchemaTooNew(
                f"the tables {network}_* have version {version}, this release of converge-core knows {FORMAT}: "
                "upgrade it"
            )
    view = f"{network}_tasks"
    tables = [name for name in wanted if name not in there and name != view]
    return Lacking(tables, NEWEST not in there.get(view, ()))


async def migrate(connections: Connections, network: str, *, must_exist: bool = False) -> None:
    """Make the tables that this release knows and that are not there; safe beside processes of the release before.

    Raises:
        SchemaTooNew: Something is used that this release does not know.
        StoreRefused: Tables are missing, and this user may not make them.
        NoSuchStore: There are none, though there must be.
    """
    found = await missing(connections, network)
    lacking = found.tables
    if not lacking:
        if found.is_view_old:
            await _renew_view(connections, network)
        return
    if must_exist and f"{network}_schema" in lacking:
        raise no_network(network, connections.where)
    try:
        for step in steps(network):
            await connections.run([step], writes=True)
    except StoreRefused as error:
        raise StoreRefused(
            f'tables of the network "{network}" are missing ({", ".join(lacking[:3])}'
            f"{', ...' if len(lacking) > 3 else ''}), and they could not be made: {error}; run `converge store "
            f"migrate` as a user with the rights create, create view and insert"
        ) from error


async def _renew_view(connections: Connections, network: str) -> None:
    """Make the view anew. No process needs it, so nobody is refused who may not."""
    try:
        await connections.run([create_view(network)], writes=True)
    except StoreRefused as error:
        _LOG.info("the view %s_tasks is left as it is: %s", network, error)
