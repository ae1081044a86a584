"""What `converge plugins check redis` needs: a server of its own, to restart, make read-only and lock out of."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from converge.testing import ServerBench
from converge.testing.servers import ServerUrl, redis_server
from converge_store_redis.options import RedisOptions

USER = "bench"
ANSWER_BYTES = 1_024


class RedisBench(ServerBench):
    """A server with a user whose password is in a file; each test has a network of its own."""

    def server(self, folder: Path, port: int | None) -> AbstractContextManager[ServerUrl]:
        """Run Redis, which syncs each write; its users are in a file, so that a restart keeps them."""
        users = folder / "users.acl"
        if not users.exists():
            folder.mkdir()
            self.password.write_text(secrets.token_hex(16))
            users.write_text(f"user default on nopass ~* &* +@all\nuser {USER} on >{self._secret()} ~* &* +@all\n")
        options = ("--appendfsync", "always", "--aclfile", str(users))
        return redis_server(options=options, directory=folder, port=port)

    def store_url(self, url: str) -> str:
        """Return the URL with the user's name."""
        return url.replace("//", f"//{USER}@", 1)

    def options(self) -> RedisOptions:
        """Return options that name a network of its own, and where the password is."""
        made: RedisOptions = super().options()
        return attrs.evolve(made, password_file=self.password) if self.is_own else made

    @contextmanager
    def refuse_writes(self) -> Iterator[None]:
        """Let the server ask for a replica, which it has not. (At its limit of memory it takes small commits.)"""
        self._ask("CONFIG SET min-replicas-to-write 1")
        try:
            yield
        finally:
            self._ask("CONFIG SET min-replicas-to-write 0")

    def rotate(self) -> None:
        """Give the user another password, and end the connections that it made with the old one."""
        old = self._secret()
        self.password.write_text(secrets.token_hex(16))
        self._ask(f"ACL SETUSER {USER} <{old} >{self._secret()}")
        self._ask("ACL SAVE")
        self._ask(f"CLIENT KILL USER {USER}")

    @property
    def password(self) -> Path:
        """Return the file whose first line is the user's password."""
        return self.folder / "password"

    def _secret(self) -> str:
        return self.password.read_text()

    def _ask(self, command: str) -> None:
        """Send the server itself a command, as its operator."""
        port = urlsplit(self.url_of_server).port
        with socket.create_connection(("127.0.0.1", port), timeout=10.0) as connection:
            connection.sendall(command.encode() + b"\r\n")
            answer = connection.recv(ANSWER_BYTES)
        if answer.startswith(b"-"):
            raise RuntimeError(f"{command.split()[0]}: {answer.decode(errors='replace')}")
