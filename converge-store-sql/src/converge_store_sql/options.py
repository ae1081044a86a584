"""The options of the SQL store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
from attrs import validators

from converge.errors import InvalidName

NETWORK = re.compile(r"[a-z_][a-z0-9_]{0,30}")
"""What a network may be called here: its name begins every table's name, unquoted and within the 63 bytes of an
identifier.
"""


def check_network(name: str) -> str:
    """Return the name if tables can be called after it.

    Raises:
        InvalidName: It cannot be the beginning of a table's name.
    """
    if not NETWORK.fullmatch(name):
        raise InvalidName(
            "network", name, "a lower-case letter or _, then at most 30 of [a-z0-9_], for it begins the names of tables"
        )
    return name


def is_network(_instance: object, _attribute: object, value: str) -> None:
    """Refuse a network that `check_network` refuses: the validator of an option."""
    check_network(value)


def seconds(default: float, least: float, help: str) -> Any:
    """Return the field of an option in seconds, of at most 600."""
    return attrs.field(
        default=default,
        converter=float,
        validator=[validators.ge(least), validators.le(600.0)],
        metadata={"help": help, "unit": "s"},
    )


@attrs.frozen(kw_only=True)
class SqlOptions:
    """How the SQL store connects. Where to is the URL's matter.

    Attributes:
        network: The network whose keys these are: the prefix of its tables, `[a-z_][a-z0-9_]{0,30}`.
        must_exist: Refuse a database without this network, instead of beginning it; set by commands that only look.
        password_file: A file whose first line is the password; read again for each new connection. Without it the
            password comes from the URL, `PGPASSWORD` or the file named by `PGPASSFILE`, as libpq does it.
        connections: The most calls in flight at a time, each on a connection of its own; one more listens while a watch
            is open. 1 to 100.
        timeout_sec: How long a call may take before its outcome counts as unknown. 0.1 to 600 s.
        connect_timeout_sec: How long connecting may take. 0.1 to 600 s.
        schema: The schema of the tables, `[a-z_][a-z0-9_]{0,62}`; without it the first one of the role's search path.
        pooler: Whether a transaction pooler such as PgBouncer stands before the server: then nothing is prepared or
            kept for a session, each call is a transaction of several trips, and waiting processes poll.
        lock_timeout_sec: How long a call may wait for a row that another one holds before it is refused as `StoreBusy`.
            0.01 to 600 s.
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
    schema: str | None = attrs.field(
        default=None,
        validator=validators.optional(validators.matches_re(r"[a-z_][a-z0-9_]{0,62}")),
        metadata={"help": "schema of the tables"},
    )
    pooler: bool = attrs.field(
        default=False,
        validator=validators.instance_of(bool),
        metadata={"help": "a transaction pooler stands before the server"},
    )
    connections: int = attrs.field(
        default=4,
        validator=[validators.instance_of(int), validators.ge(1), validators.le(100)],
        metadata={"help": "most calls in flight"},
    )
    timeout_sec: float = seconds(30.0, 0.1, "longest call")
    connect_timeout_sec: float = seconds(10.0, 0.1, "longest connecting")
    lock_timeout_sec: float = seconds(5.0, 0.01, "longest wait for a row")
