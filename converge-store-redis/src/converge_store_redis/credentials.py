"""Passwords and certificates: where they come from. Passwords are read for each connection, so that they may change."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from converge.errors import ConfigError
from converge.net.tls import refuse_to_ask, unusable
from converge_store_redis.options import RedisOptions
from converge_store_redis.place import Place

PASSWORD_VARIABLE = "CONVERGE_REDIS_PASSWORD"
SENTINEL_PASSWORD_VARIABLE = "CONVERGE_REDIS_SENTINEL_PASSWORD"


class Credentials:
    """Gives name and password of the server, and of the sentinels, as they are now. Neither is kept."""

    def __init__(self, place: Place, options: RedisOptions) -> None:
        self._place, self._options = place, options

    def of_server(self) -> tuple[str, str]:
        """Return the user's name and password, each empty if there is none.

        Raises:
            ConfigError: The password's file cannot be read.
        """
        path = self._options.password_file
        if path is not None:
            return self._place.username, _first_line("password_file", path)
        return self._place.username, self._place.password or os.environ.get(PASSWORD_VARIABLE, "")

    def of_sentinel(self) -> tuple[str, str]:
        """Return the user's name and password for sentinels, which have users of their own.

        Raises:
            ConfigError: The password's file cannot be read.
        """
        path, name = self._options.sentinel_password_file, self._options.sentinel_username
        if path is not None:
            return name, _first_line("sentinel_password_file", path)
        return name, os.environ.get(SENTINEL_PASSWORD_VARIABLE, "")


def tls_context(options: RedisOptions) -> ssl.SSLContext:
    """Return a context that trusts the authorities of `tls_ca`, or the system's, and shows our certificate if there is
    one. Certificate and host name are always checked.

    Raises:
        ConfigError: A file cannot be read, or is no certificate or key.
    """
    name = "tls_ca"
    try:
        context = ssl.create_default_context(cafile=options.tls_ca)
        if options.tls_certificate is not None:
            name = "tls_certificate"
            context.load_cert_chain(options.tls_certificate, options.tls_key, password=refuse_to_ask)
    except (OSError, ValueError) as error:
        files = (str(one or "") for one in (options.tls_certificate, options.tls_key, options.tls_ca))
        raise ConfigError(f"options.redis.{name}: cannot be used: {unusable(error, *files)}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _first_line(name: str, path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"options.redis.{name}: {path} cannot be read ({type(error).__name__}); name a text file that this user "
            "may read"
        ) from error
    return lines[0] if lines else ""
