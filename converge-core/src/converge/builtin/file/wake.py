"""Wake-ups between processes of a host: a datagram socket a watch, found through a folder a channel beside the file.

    state.db.wake/<watch>.sock            the socket of a watch
    state.db.wake/<channel>/<watch>       a link to it, for each channel that it watches

A socket that refuses belongs to a process that has died: whoever meets it removes it.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import socket
from collections.abc import Collection
from contextlib import suppress

from converge import forks
from converge.contracts.store import Channel

_ADDRESS_BYTES = 100
"""A socket's address holds 108 bytes on Linux, 104 elsewhere."""

_DATAGRAMS = 1_000
"""How many wake-ups are read at once: more than a socket's queue holds, so that a flood of them ends."""

_COMPARED = 8
"""How many watches of a channel are compared by when they were told last: with more of them chance spreads well."""

_SWEEP = 1_000
"""How many sockets one sweep looks at; the rest is left to the next who opens the store."""


class WakeUps:
    """Tells watchers, and makes sockets for them."""

    def __init__(self, path: str) -> None:
        self._folder = f"{path}.wake"
        self._sender: socket.socket | None = None
        self._descriptor = -1
        forks.watch(self, WakeUps.close)

    def open(self) -> None:
        """Make the folder and the sending socket, and sweep out what processes that were killed have left."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        # A long path is reached through the folder's descriptor, so that any path serves where there is a /proc.
        self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._sender = _socket()
        self._sweep()

    def close(self) -> None:
        """Close what `open` has opened, also where it has failed half way."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def tell(self, channels: Collection[Channel]) -> None:
        """Wake one watcher of each channel, if there is one; from any thread."""
        for channel in channels:
            folder = _hash(channel)
            for name in _longest_untold(os.path.join(self._folder, folder)):
                if self._send(f"{folder}/{name}"):
                    with suppress(OSError):
                        os.utime(os.path.join(self._folder, folder, name), follow_symlinks=False)
                    break
                remove([os.path.join(self._folder, f"{name}.sock"), os.path.join(self._folder, folder, name)])

    def _send(self, name: str) -> bool:
        sender = self._sender
        if sender is None:
            return True  # closed while a call that nobody waits for was under way: polls serve the watchers
        try:
            sender.sendto(b"!", self._address(name))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            return True  # its queue is full: it has been told
        except OSError:
            return True  # not known to be dead, so left alone; its poll serves it
        return True

    def _address(self, name: str) -> str:
        path = os.path.join(self._folder, name)
        return path if len(os.fsencode(path)) <= _ADDRESS_BYTES else f"/proc/self/fd/{self._descriptor}/{name}"

    def listen(self, channels: Collection[Channel]) -> Listener:
        """Return what is told when one of the channels is.

        Raises:
            OSError: The folder cannot be written.
        """
        own = secrets.token_hex(8)
        listener = Listener(os.path.join(self._folder, f"{own}.sock"))
        try:
            listener.socket.bind(self._address(f"{own}.sock"))
            for channel in channels:
                listener.paths.append(self._link(own, _hash(channel)))
        except BaseException:
            listener.close()
            raise
        return listener

    def _link(self, own: str, channel: str) -> str:
        folder = os.path.join(self._folder, channel)
        link = os.path.join(folder, own)
        for _ in range(10):  # somebody may remove the folder, empty as it is, before the link is in it
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                os.symlink(f"../{own}.sock", link)
                return link
        raise FileNotFoundError(f"{folder} vanishes again and again")

    def _sweep(self) -> None:
        names = _names(self._folder)
        for name in [name for name in names if name.endswith(".sock")][:_SWEEP]:
            if self._is_dead(name):
                _unlink([os.path.join(self._folder, name)])
        for folder in [os.path.join(self._folder, name) for name in names if not name.endswith(".sock")][:_SWEEP]:
            # The socket is made before the link, so a link to nothing is never one that is being made.
            _unlink([link for name in _names(folder) if not os.path.exists(link := os.path.join(folder, name))])
            _remove_empty([folder])

    def _is_dead(self, name: str) -> bool:
        with _socket() as probe:
            try:
                probe.connect(self._address(name))  # tells nobody anything
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
        return False


class Listener:
    """The socket of a watch, and what of it stands in the folder."""

    def __init__(self, path: str) -> None:
        self.paths = [path]
        with forks.LOCK:
            self.socket = _socket()
            forks.watch(self, Listener._lay_down)

    def _lay_down(self) -> None:
        """Close the socket in a forked child, where it would seem to be listened to after the parent's death."""
        self.paths = []
        self.socket.close()

    def drain(self) -> bool:
        """Read what has come; return whether anything has."""
        is_told = False
        for _ in range(_DATAGRAMS if self.paths else 0):
            try:
                self.socket.recv(16)
            except BlockingIOError:
                break
            is_told = True
        return is_told

    def close(self) -> None:
        """Close the socket; remove what leads to it."""
        self.socket.close()
        if self.paths:
            remove(self.paths)


def remove(paths: list[str]) -> None:
    """Remove what `listen` made, or a dead process left: the socket, the links, and their folders if they are empty."""
    _unlink(paths)
    _remove_empty([os.path.dirname(path) for path in paths[1:]])


def _longest_untold(folder: str) -> list[str]:
    """Return the watches of a channel, the one woken longest ago first, out of a sample: so all get their share."""
    names = _names(folder)
    if len(names) < 2:
        return names
    random.shuffle(names)
    told = {name: _told_at(os.path.join(folder, name)) for name in names[:_COMPARED]}
    return [*sorted(told, key=told.__getitem__), *names[_COMPARED:]]


def _told_at(link: str) -> int:
    try:
        return os.lstat(link).st_mtime_ns
    except OSError:
        return 0


def _unlink(paths: list[str]) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)


def _remove_empty(folders: list[str]) -> None:
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # mostly it is not there; and where there are no descriptors left, say, polls serve the watchers
        return []


def _hash(channel: Channel) -> str:
    return hashlib.blake2b(channel.encode(), digest_size=8).hexdigest()
