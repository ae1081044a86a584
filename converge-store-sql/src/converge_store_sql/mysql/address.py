"""The URL of a database on MariaDB or MySQL."""

from __future__ import annotations

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from converge.errors import InvalidValue, Unsupported
from converge.secret import without_password
from converge.urls import check_host

QUERY = ("unix_socket", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "ssl_check_hostname")
"""What may follow the URL after `?`."""


def parse(url: str) -> URL:
    """Split a URL `mysql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE`.

    Raises:
        InvalidValue: It is none.
        Unsupported: It names another driver.
    """
    expected = "a URL mysql://[USER@]HOST[:PORT]/DATABASE"
    check_host(url)
    try:
        made = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidValue("store", without_password(url), expected) from error
    if made.drivername.partition("+")[2] not in ("", "asyncmy"):
        raise Unsupported(
            f"{made.drivername}: this release of converge-store-sql talks to MariaDB and MySQL through asyncmy; write "
            "mysql://"
        )
    if not made.database:
        raise InvalidValue("store", without_password(url), f"{expected}; the database is missing")
    unknown = sorted(set(made.query) - set(QUERY))
    if unknown:
        raise InvalidValue("store", f"?{unknown[0]}=", f"after the ? one of {', '.join(QUERY)}")
    return made


def redacted(url: URL) -> str:
    """Return the URL without its password and its query."""
    return URL.create(
        url.drivername.partition("+")[0],
        username=url.username,
        host=url.host,
        port=url.port,
        database=url.database,
    ).render_as_string()
