"""Where a URL leads: a server, its socket file, the primary that sentinels name, the owner of a cluster's slot."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

from converge.errors import ConfigError, InvalidValue
from converge.urls import check_host

PORT, SENTINEL_PORT = 6379, 26379

SCHEMES = (
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster",
)  # fmt: skip


class Kind(Enum):
    """How the server is found."""

    SINGLE = "single"
    UNIX = "unix"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Address(NamedTuple):
    """A host and its port; of a socket file its path, and no port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


@attrs.frozen(kw_only=True)
class Place:
    """What a URL says. Its repr shows no password."""

    kind: Kind
    addresses: tuple[Address, ...]
    service: str = ""
    database: int = 0
    username: str = ""
    password: str = attrs.field(default="", repr=False)
    is_tls: bool = False

    def __str__(self) -> str:
        hosts = ",".join(map(str, self.addresses))
        return f'"{self.service}" of the sentinels {hosts}' if self.kind is Kind.SENTINEL else hosts


_FORMS = {
    Kind.SINGLE: "redis://HOST:6379/0",
    Kind.UNIX: "unix:///run/redis/redis.sock?db=0",
    Kind.SENTINEL: "redis+sentinel://HOST:26379,HOST:26379/SERVICE/0",
    Kind.CLUSTER: "redis+cluster://HOST:6379,HOST:6379",
}


def place_of(url: str) -> Place:
    """Return what the URL says.

    Raises:
        ConfigError: What is wrong with it; without its text, which may hold a password.
    """
    scheme, _, how = url.partition(":")[0].lower().partition("+")
    kind = Kind.UNIX if scheme == "unix" else Kind(how) if how in ("sentinel", "cluster") else Kind.SINGLE
    if f"{scheme}+{how}".rstrip("+") not in SCHEMES:
        raise _wrong(kind, f'the scheme "{scheme}+{how}" is none of {", ".join(SCHEMES)}')
    try:
        check_host(url)
    except InvalidValue as error:
        raise _wrong(kind, str(error)) from error
    parts = urlsplit(url)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    query = parse_qs(parts.query, keep_blank_values=True)
    path = [unquote(step) for step in parts.path.split("/") if step]
    addresses: tuple[Address, ...]
    service = ""
    if kind is Kind.UNIX:
        addresses, path = (_socket_file(unquote(parts.path), hosts),), query.pop("db", ["0"])[:1]
    else:
        addresses = _addresses(kind, hosts)
    if kind is Kind.SENTINEL:
        if not path:
            raise _wrong(kind, "the name of the service that the sentinels watch is missing")
        service = path.pop(0)
    if query or parts.fragment:
        raise _wrong(kind, "nothing may follow the database; timeouts and the like are options ([options.redis])")
    return Place(
        kind=kind,
        addresses=addresses,
        service=service,
        database=_database(kind, path),
        username=unquote(username),
        password=unquote(password),
        is_tls=scheme == "rediss",
    )


def _socket_file(path: str, hosts: str) -> Address:
    if hosts or not Path(path).is_absolute():
        raise _wrong(Kind.UNIX, "the absolute path of a socket file is missing")
    return Address(path, 0)


def _addresses(kind: Kind, hosts: str) -> tuple[Address, ...]:
    found = []
    for one in hosts.split(","):
        host, colon, port = one.rpartition(":")
        if not colon or one.endswith("]"):
            host, port = one, str(SENTINEL_PORT if kind is Kind.SENTINEL else PORT)
        if not host.strip("[]"):
            raise _wrong(kind, "a host is missing")
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            raise _wrong(kind, "a port is not a number up to 65535")
        found.append(Address(host.strip("[]"), int(port)))
    if kind is Kind.SINGLE and len(found) > 1:
        raise _wrong(kind, "it names several hosts; sentinels and clusters have schemes of their own")
    return tuple(found)


def _database(kind: Kind, path: list[str]) -> int:
    number = path[0] if path else "0"
    if len(path) > 1 or not (number.isascii() and number.isdigit() and len(number) < 6):
        raise _wrong(kind, "what stands after the host is not the number of a database")
    if kind is Kind.CLUSTER and int(number):
        raise _wrong(kind, "a cluster has no database but 0")
    return int(number)


def _wrong(kind: Kind, what: str) -> ConfigError:
    return ConfigError(f"redis: the URL cannot be used: {what}; write {_FORMS[kind]}")
