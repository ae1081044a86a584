"""Wake-ups between processes of a host: a datagram socket for each watch, found through a folder for each channel, beside the store's file."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import socket
from collections.abc import Collection
from contextlib import suppress

from converge.contracts.store import Channel

_PATH_BYTES = 100
"""A socket's address holds 108 bytes on Linux, 104 elsewhere."""


class WakeUps:
    """Tells watchers, and makes sockets for them. A file that cannot be told is a watcher that has died: it is removed."""

    def __init__(self, path: str) -> None:
        self._folder = f"{path}.wake"
        self._sender: socket.socket | None = None
        self._descriptor = -1

    def open(self) -> None:
        """Make the folder and the sending socket."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        # A long path is reached through the folder's descriptor, so that any path serves.
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the sending socket."""
        if self._sender is not None:
            self._sender.close()
            os.close(self._descriptor)
            self._sender = None

    def tell(self, channels: Collection[Channel]) -> None:
        """Tell one watcher of each channel, if there is one."""
        for channel in channels:
            folder = os.path.join(self._folder, _hash(channel))
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                continue
            random.shuffle(names)
            for name in names:
                if self._send(os.path.join(_hash(channel), name)):
                    break
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name))

    def _send(self, name: str) -> bool:
        assert self._sender is not None, "opened before it tells"
        try:
            self._sender.sendto(b"!", self._address(name))
        except BlockingIOError:
            return True  # its queue is full: it has been told
        except OSError:
            return False
        return True

    def _address(self, name: str) -> str:
        path = os.path.join(self._folder, name)
        if len(os.fsencode(path)) <= _PATH_BYTES:
            return path
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def listen(self, channels: Collection[Channel]) -> tuple[socket.socket, list[str]]:
        """Return a socket that is told, and the paths to remove when it is closed."""
        own = secrets.token_hex(8)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        listener.bind(self._address(f"{own}.sock"))
        paths = [os.path.join(self._folder, f"{own}.sock")]
        for channel in channels:
            folder = os.path.join(self._folder, _hash(channel))
            os.makedirs(folder, mode=0o700, exist_ok=True)
            link = os.path.join(folder, own)
            os.symlink(f"../{own}.sock", link)
            paths.append(link)
        return listener, paths


def remove(paths: list[str]) -> None:
    """Remove what `listen` made, and the folders that are empty now."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)
    for folder in {os.path.dirname(path) for path in paths[1:]}:
        with suppress(OSError):
            os.rmdir(folder)


def _hash(channel: Channel) -> str:
    return hashlib.blake2b(channel.encode(), digest_size=8).hexdigest()

