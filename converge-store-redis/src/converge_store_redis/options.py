"""The options of the Redis store: keys, units, bounds, defaults, help."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from attrs import validators

_NETWORK = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _network(_instance: object, _attribute: object, value: str) -> None:
    if not _NETWORK.fullmatch(value):
        raise ValueError(f'network "{value}" must be 1 to 64 characters of A-Z a-z 0-9 . _ -')


@attrs.frozen(kw_only=True)
class RedisOptions:
    """How the Redis store connects. Where to is the URL's matter.

    Attributes:
        network: The network whose keys these are; several share one server. 1 to 64 characters of A-Z a-z 0-9 . _ -
        password_file: A file whose first line is the password; without it the password comes from the URL, or from
            CONVERGE_REDIS_PASSWORD.
        connections: The most calls in flight at a time, each on a connection of its own; one more listens while a watch
            is open. 1 to 100.
        timeout_sec: How long a call may take before its outcome counts as unknown. 0.1 to 600 s.
        connect_timeout_sec: How long connecting may take. 0.1 to 600 s.
    """

    network: str = attrs.field(
        default="converge", validator=[validators.instance_of(str), _network], metadata={"help": "whose keys these are"}
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
    timeout_sec: float = attrs.field(
        default=30.0,
        converter=float,
        validator=[validators.ge(0.1), validators.le(600.0)],
        metadata={"help": "longest call", "unit": "s"},
    )
    connect_timeout_sec: float = attrs.field(
        default=10.0,
        converter=float,
        validator=[validators.ge(0.1), validators.le(600.0)],
        metadata={"help": "longest connecting", "unit": "s"},
    )
