"""TLS of transports: contexts from files, read again when these change."""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
import stat
from datetime import UTC, datetime

from converge.contracts.transport import NO_TLS
from converge.errors import ConfigError

log = logging.getLogger("converge.tls")


class TlsFiles:
    """The files of a transport's TLS, by their paths; TLS 1.3 alone is spoken, and nothing turns verification off.

    Args:
        certificate, key: PEM files of what this side shows, and of its private key; a client may have none.
        ca: PEM file of the authorities that the other side's certificate must come from; empty: those of the system.
        is_mutual: Whether a client must show a certificate of `ca`.
    """

    def __init__(self, certificate: str, key: str, ca: str, *, is_mutual: bool) -> None:
        self._certificate, self._key, self._ca, self._is_mutual = certificate, key, ca, is_mutual
        self._made: dict[bool, tuple[object, ssl.SSLContext, bytes]] = {}  # for the server's side, or the client's

    def server(self) -> tuple[ssl.SSLContext, bytes]:
        """Return the server's context, and the hash of the certificate that it shows.

        Raises:
            ConfigError: A file is missing, or cannot be used.
        """
        if not self._certificate or not self._key:
            raise ConfigError("TLS needs a certificate and its key: set certificate and key in the transport's options")
        if self._is_mutual and not self._ca:
            raise ConfigError("mutual TLS needs to know whose certificates count: set ca in the transport's options")
        return self._context(is_server=True)

    def check(self) -> None:
        """Refuse files with which no server can listen.

        Raises:
            ValueError: The text says why.
        """
        try:
            self.server()
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def client(self) -> ssl.SSLContext:
        """Return the client's context.

        Raises:
            ConfigError: A file is missing, or cannot be used.
        """
        return self._context(is_server=False)[0]

    def _context(self, *, is_server: bool) -> tuple[ssl.SSLContext, bytes]:
        made, state = self._made.get(is_server), None
        try:
            state = [_state(path) for path in (self._certificate, self._key, self._ca) if path]
            if made is None or made[0] != state:
                context, shown = self._make(is_server=is_server), self._shown()
                made = state, context, hash_of(shown)
                if shown is not None and all(one[2] != made[2] for one in self._made.values()):
                    self._tell_dates(shown)  # once, though it is shown as server and as client
                    self._tell_readers()
                self._made[is_server] = made
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            why = unusable(error, self._certificate, self._key, self._ca)
            if made is None:
                raise ConfigError(f"the files of TLS cannot be used: {why}") from error
            # Files are replaced one after the other: until they fit each other, what was read before is good.
            if made[0] != state:
                log.warning("the files of TLS have changed and cannot be used; those read before are: %s", why)
            made = self._made[is_server] = state, made[1], made[2]
        return made[1], made[2]

    def _make(self, *, is_server: bool) -> ssl.SSLContext:
        if is_server:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # Tickets to resume a session are bytes that a peer may never read, and a socket that is closed with
            # something unread is reset: what it had sent before would be lost.
            context.num_tickets = 0
            if self._is_mutual:
                context.load_verify_locations(self._ca)
                context.verify_mode = ssl.CERT_REQUIRED
        else:
            context = ssl.create_default_context(cafile=self._ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self._certificate:
            context.load_cert_chain(self._certificate, self._key or None, refuse_to_ask)
        return context

    def _shown(self) -> bytes | None:
        if not self._certificate:
            return None
        with open(self._certificate) as file:
            text = file.read()
        begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
        return ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n")

    def _tell_dates(self, certificate: bytes) -> None:
        from cryptography.x509 import load_der_x509_certificate  # costs 20 ms, and only where there is a certificate

        found = load_der_x509_certificate(certificate)
        first, last = found.not_valid_before_utc, found.not_valid_after_utc
        if not first <= datetime.now(UTC) <= last:
            log.warning("%s is valid from %s to %s: other nodes refuse it", self._certificate, first, last)

    def _tell_readers(self) -> None:
        path = self._key or self._certificate
        if os.name == "posix" and os.stat(path).st_mode & stat.S_IROTH:
            log.warning("every user of this host can read the private key in %s; chmod 600 it", path)


def unusable(error: Exception, certificate: str, key: str, ca: str) -> str:
    """Return which of the files of TLS cannot be used, and why: OpenSSL's own errors name none."""
    for path in filter(None, (ca, certificate)):
        try:
            open(path, "rb").close()
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            return f"{path} holds no certificate, or a damaged one; it must be PEM"
        except (OSError, ValueError) as why:
            return str(why)
    key = key or certificate
    try:
        with open(key, "rb") as file:
            if b"PRIVATE KEY-----" not in file.read():
                return f"{key} holds no private key; it must be PEM"
    except (OSError, ValueError) as why:
        return str(why)
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"{key} is not the key of the first certificate in {certificate}"
    return f"{key}: {error}"


def refuse_to_ask() -> str:
    """Refuse a key with a passphrase. Without this OpenSSL asks for it at the terminal, while the event loop waits.

    Raises:
        ValueError: Always; a context that loads a key calls this only if it is encrypted.
    """
    raise ValueError("the key is encrypted; give one that is not, readable by this user only")


def hash_of(certificate: bytes | None) -> bytes:
    """Return the `tls_hash` of a channel whose server has shown this certificate (DER)."""
    return hashlib.sha256(certificate).digest() if certificate else NO_TLS


def _state(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    # The time of a change of status, too: a new key that this user may read at last is as good as another file.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
