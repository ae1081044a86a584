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


_SECONDS = [validators.ge(0.1), validators.le(600.0)]


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


@attrs.frozen(kw_only=True)
class RedisOptions:
    """How the Redis store connects. Where to is the URL's matter.

    Attributes:
        network: The network whose keys these are; several share one server. 1 to 64 characters of A-Z a-z 0-9 . _ -
        must_exist: Refuse a server without this network, instead of beginning it; set by commands that only look.
        password_file: A file whose first line is the password, read again for each new connection; without it the
            password comes from the URL, or from CONVERGE_REDIS_PASSWORD.
        sentinel_username: The user's name for sentinels; the one in the URL is for the server.
        sentinel_password_file: A file whose first line is the password for sentinels; without it
            CONVERGE_REDIS_SENTINEL_PASSWORD.
        tls_ca: A file of certificates of the authorities to trust, instead of the system's.
        tls_certificate: A file with the certificate that this client shows.
        tls_key: A file with its key; None: it stands in `tls_certificate`, too.
        connections: The most calls in flight at a time, each on a connection of its own; one more listens while a watch
            is open. 1 to 100.
        timeout_sec: How long a call may take before its outcome counts as unknown; less than the lease. 0.1 to 600 s.
        connect_timeout_sec: How long connecting may take. 0.1 to 600 s.
    """

    network: str = attrs.field(
        default="converge", validator=[validators.instance_of(str), _network], metadata={"help": "whose keys these are"}
    )
    must_exist: bool = attrs.field(
        default=False,
        validator=validators.instance_of(bool),
        metadata={"help": "refuse a server without the network"},
    )
    password_file: Path | None = attrs.field(
        default=None, converter=_path, metadata={"help": "file whose first line is the password"}
    )
    sentinel_username: str = attrs.field(
        default="", validator=validators.instance_of(str), metadata={"help": "user's name for sentinels"}
    )
    sentinel_password_file: Path | None = attrs.field(
        default=None, converter=_path, metadata={"help": "file whose first line is the password for sentinels"}
    )
    tls_ca: Path | None = attrs.field(
        default=None, converter=_path, metadata={"help": "file of the authorities to trust"}
    )
    tls_certificate: Path | None = attrs.field(
        default=None, converter=_path, metadata={"help": "file of this client's certificate"}
    )
    tls_key: Path | None = attrs.field(default=None, converter=_path, metadata={"help": "file of its key"})
    connections: int = attrs.field(
        default=4,
        validator=[validators.instance_of(int), validators.ge(1), validators.le(100)],
        metadata={"help": "most calls in flight"},
    )
    timeout_sec: float = attrs.field(
        default=5.0, converter=float, validator=_SECONDS, metadata={"help": "longest call", "unit": "s"}
    )
    connect_timeout_sec: float = attrs.field(
        default=3.0, converter=float, validator=_SECONDS, metadata={"help": "longest connecting", "unit": "s"}
    )
