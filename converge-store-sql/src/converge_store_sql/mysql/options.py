"""Options of the store on MariaDB and MySQL: keys, units, bounds, defaults, help."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import validators

from converge_store_sql.options import SqlOptions, is_network, seconds


@attrs.frozen(kw_only=True)
class MysqlOptions:
    """How the store uses its database.

    Attributes:
        network: Prefix of the tables, `[a-z_][a-z0-9_]{0,30}`; several networks share one database.
        must_exist: Refuse a database without this network, instead of beginning it; set by commands that only look.
        password_file: A file whose first line is the password, read for each new connection.
        connections: The most calls in flight; 1 to 100.
        timeout_sec: After so long without an answer a write's outcome is unknown; below the lease.
        connect_timeout_sec: The longest that connecting may take.
        lock_timeout_sec: The longest wait for a row that another call holds, in whole seconds.
        poll_sec: How often a watch looks for what other processes have written; 0.05 to 60 s.
    """

    network: str = attrs.field(
        default="converge",
        validator=[validators.instance_of(str), is_network],
        metadata={"help": "prefix of the tables"},
    )
    must_exist: bool = attrs.field(
        default=False,
        validator=validators.instance_of(bool),
        metadata={"help": "refuse a database without the network"},
    )
    password_file: Path | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(Path),
        metadata={"help": "file whose first line is the password"},
    )
    connections: int = attrs.field(
        default=4,
        validator=[validators.instance_of(int), validators.ge(1), validators.le(100)],
        metadata={"help": "most calls in flight"},
    )
    timeout_sec: float = seconds(10.0, 0.1, "longest call")
    connect_timeout_sec: float = seconds(5.0, 0.1, "longest connecting")
    lock_timeout_sec: float = seconds(5.0, 1.0, "longest wait for a row")
    poll_sec: float = attrs.field(
        default=0.5,
        converter=float,
        validator=[validators.ge(0.05), validators.le(60.0)],
        metadata={"help": "how often a watch looks for what other processes have written", "unit": "s"},
    )


def own_options(options: SqlOptions | MysqlOptions | None) -> MysqlOptions:
    """Return the options as this store has them; those of `SqlOptions` that both have are taken over."""
    if options is None or isinstance(options, MysqlOptions):
        return options or MysqlOptions()
    shared = ("network", "must_exist", "password_file", "connections", "timeout_sec", "connect_timeout_sec")
    return MysqlOptions(
        lock_timeout_sec=max(1.0, options.lock_timeout_sec), **{name: getattr(options, name) for name in shared}
    )
