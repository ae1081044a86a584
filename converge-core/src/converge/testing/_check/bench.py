"""Bench: what `converge plugins check` needs to know of a backend's place, where the defaults are not enough.

An author's package names a subclass in the entry-point group `converge.testing`, under the plugin's name:

    [project.entry-points."converge.testing"]
    acme = "converge_store_acme.testing:AcmeBench"

What a bench does not have is reported as not tried.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs

from converge.plugins.declaration import Backend
from converge.testing._store.base import Cut
from converge.testing.servers import SERVER_MARK


class Bench:
    """The backend that is checked, where, and a folder for what it writes.

    Attributes:
        backend: The declaration.
        given: The URL that `converge plugins check` was given; empty: none.
        folder: Is removed after the check.
        cut: Breaks the connection of the store's next call (S-16); None: there is no connection, or no means.
        near_sec: How soon a backend must be well again after what certification does to it.
    """

    cut: Callable[[Cut], None] | None = None
    near_sec: float = 5.0

    def __init__(self, backend: Backend, given: str, folder: Path) -> None:
        self.backend, self.given, self.folder = backend, given, folder
        self._number = count()

    def running(self) -> AbstractContextManager[object]:
        """Return what runs while the backend is checked, such as a server of the check's own, whose URL it may note as
        `given`.
        """
        return nullcontext()

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        """Start a server of the check's own, whose output is a pipe; no test counts it as left behind."""
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {SERVER_MARK: "1"})

    def fresh(self) -> Path:
        """Return a folder that no other test uses."""
        folder = self.folder / str(next(self._number))
        folder.mkdir()
        return folder

    def url(self) -> str:
        """Return the URL of an empty store: the one given, where the options name networks, else another path."""
        if not self.given:
            return f"{self._scheme}:"
        parts = urlsplit(self.given)
        if self._has_networks or not parts.path or parts.netloc:
            return self.given
        return urlunsplit(parts._replace(path=str(self.fresh() / (Path(parts.path).name or "place"))))

    def options(self) -> Any:
        """Return options that name a place which no other test uses: a network of its own, where there are networks."""
        made = {"network": f"check-{uuid.uuid4().hex[:16]}"} if self._has_networks else {}
        return self.backend.options(**made)

    def address(self) -> str:
        """Return where a transport listens: an address that draws a free port or name each time."""
        return self.given or f"{self._scheme}://127.0.0.1:0"

    def foreign_address(self) -> str:
        """Return an address at which this host cannot listen; TEST-NET-1 belongs to nobody."""
        return f"{self._scheme}://192.0.2.1:1"

    def unknown_address(self) -> str:
        """Return an address that cannot be found."""
        return f"{self._scheme}://nobody.invalid:1"

    die: Callable[[Any], None] | None = None
    """Lets the process that is given have died, as far as others can see, for a discovery with a liveness of its own;
    `process.discovery` is what its `open` gave. None: its entries end with the lease of the node's store.
    """

    # What certification does to the place. None: not tried.

    restart: Callable[[], None] | None = None
    """Ends the server and starts it again, at the same address; what it keeps is there again."""
    freeze: Callable[[], AbstractContextManager[object]] | None = None
    """Stops the server from answering while the block lasts, without closing connections: SIGSTOP, SIGCONT."""
    refuse_writes: Callable[[], AbstractContextManager[object]] | None = None
    """Lets the server refuse writes while the block lasts: read-only, or full."""
    other_python: str | None = None
    """An interpreter of an environment with another release of the plugin, for two releases side by side."""
    rotate: Callable[[], None] | None = None
    """Changes the credentials, as an operator does: new ones are where the options say, the old ones end."""

    @property
    def _scheme(self) -> str:
        return self.backend.schemes[0] if self.backend.schemes else self.backend.name

    @property
    def _has_networks(self) -> bool:
        return "network" in {field.alias or field.name for field in attrs.fields(self.backend.options)}
