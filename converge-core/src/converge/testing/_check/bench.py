"""Bench: what `converge plugins check` needs to know of a backend's place, where the defaults are not enough.

An author's package names a subclass in the entry-point group `converge.testing`, under the plugin's name:

    [project.entry-points."converge.testing"]
    acme = "converge_store_acme.testing:AcmeBench"

What a bench does not have is reported as not tried.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

import attrs

from converge.contracts.discovery import Sighting
from converge.plugins.declaration import Backend
from converge.testing._processes.still import stand_still
from converge.testing._store.base import Cut
from converge.testing.cuts import cut_proxy
from converge.testing.servers import SERVER_MARK, ServerUrl


class Bench:
    """The backend that is checked, where, and a folder for what it writes.

    Attributes:
        backend: The declaration.
        given: The URL that `converge plugins check` was given; empty: none.
        folder: Is removed after the check.
        cut: Breaks the connection of the store's next call (S-16); None: there is no connection, or no means.
        begin: Begins a transaction of a caller's and gives what `within` takes (S-26); None: there are none.
        drop_unsynced: Given the URL and the options of a test's store, whose process is dead, leaves its place as a
            power loss of its host would: what was not synced is gone (S-14, class D2); None: no means to do so.
        near_sec: How soon a backend must be well again after what certification does to it.
        suffer_sec: How long certification lets the server stay frozen, or refuse writes.
        is_own: Whether the server is the check's own: a server that was given is not restarted, frozen or changed.
    """

    cut: Callable[[Cut], None] | None = None
    begin: Callable[[], AbstractAsyncContextManager[Any]] | None = None
    drop_unsynced: Callable[[str, Any], None] | None = None
    near_sec: float = 5.0
    suffer_sec: float = 2.0

    def __init__(self, backend: Backend, given: str, folder: Path) -> None:
        self.backend, self.given, self.folder = backend, given, folder
        self.is_own = not given
        self.left: list[Any] = []
        """Options of places that were emptied."""
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
        made = {"network": f"check_{uuid.uuid4().hex[:16]}"} if self._has_networks else {}
        return self.backend.options(**made)

    def emptied(self, options: Any) -> bool:
        """Empty the place of a test that has ended, if that takes less than a new one, and nobody uses it any more;
        return whether another test may have it. Only `--quick` asks.
        """
        return False

    def address(self) -> str:
        """Return where a transport listens: an address that draws a free port or name each time."""
        return self.given or f"{self._scheme}://127.0.0.1:0"

    def foreign_address(self) -> str:
        """Return an address at which this host cannot listen; TEST-NET-1 belongs to nobody."""
        return f"{self._scheme}://192.0.2.1:1"

    def unknown_address(self) -> str:
        """Return an address that cannot be found."""
        return f"{self._scheme}://nobody.invalid:1"

    oversized: bytes = b""
    """Bytes that announce a frame over the limit, where one could begin, to a transport over TCP connections: then what
    is seen on the wire alone is tried, too (C-12, C-14). Empty: it has no such wire.
    """
    malformed: ClassVar[Mapping[str, bytes]] = {}
    """Bytes, by a name, that break its framing where a frame could begin."""
    patience_sec: float = 12.0
    """How long a channel of these options may take to notice that a frame never becomes whole."""

    die: Callable[[Any], None] | None = None
    """Lets the process that is given have died, as far as others can see, for a discovery with a liveness of its own;
    `process.discovery` is what its `open` gave. None: its entries end with the lease of the node's store.
    """

    configure: Callable[[Any, int], Sequence[Sighting]] | None = None
    """Lets what is behind a discovery with `publishes=False` and these options name another set, drawn from the number,
    and returns what the discovery must say from then on. None: it says nothing.
    """

    # What certification does to the place. None, or a server that is not the check's own: not tried.

    restart: Callable[[], None] | None = None
    """Ends the server and starts it again, at the same address; what it keeps is there again."""
    freeze: Callable[[], AbstractContextManager[object]] | None = None
    """Stops the server from answering while the block lasts, without closing connections: SIGSTOP, SIGCONT."""
    refuse_writes: Callable[[], AbstractContextManager[object]] | None = None
    """Lets the server refuse writes while the block lasts: read-only, or full."""
    other_python: str | None = None
    """An interpreter of an environment with another release of the plugin, for two releases side by side; the option
    `--other-python` names it, too.
    """
    rotate: Callable[[], None] | None = None
    """Changes the credentials, as an operator does: new ones are where the options say, the old ones end."""

    @property
    def _scheme(self) -> str:
        return self.backend.schemes[0] if self.backend.schemes else self.backend.name

    @property
    def _has_networks(self) -> bool:
        return "network" in {field.alias or field.name for field in attrs.fields(self.backend.options)}


class ServerBench(Bench, ABC):
    """A bench that runs a server of the check's own, unless it was given one, behind a proxy that can cut connections.

    A package of a store whose server `converge.testing.servers` or the author can run gives `server`.
    """

    def __init__(self, backend: Backend, given: str, folder: Path) -> None:
        super().__init__(backend, given, folder)
        self.url_of_server = given
        """Where the server itself is, past the proxy."""
        self._server, self._pid = ExitStack(), 0

    @abstractmethod
    def server(self, folder: Path, port: int | None) -> AbstractContextManager[ServerUrl]:
        """Return what runs the server, with its data in a folder that may have some: at a port, if one is named."""

    def prepare(self) -> None:
        """Set up the server on its first run, as its operator would: create users, for example."""

    def store_url(self, url: str) -> str:
        """Return the URL by which the store is opened, from the server's: with another user's name, for example."""
        return url

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server and the proxy while the store is checked."""
        with self._server:
            if self.is_own:
                self.url_of_server = self._start(None)
                self.prepare()
            with cut_proxy(self.store_url(self.url_of_server) if self.is_own else self.given) as proxy:
                self.given, self.cut = proxy.url, proxy.cut
                yield

    def _start(self, port: int | None) -> str:
        found = self._server.enter_context(self.server(self.folder / "server", port))
        self._pid = found.pid
        return found

    def restart(self) -> None:
        """End the server and start it again at its port, on its data."""
        self._server.close()
        self._start(urlsplit(self.url_of_server).port)

    @contextmanager
    def freeze(self) -> Iterator[None]:
        """Stop the server's processes while the block lasts."""
        stopped = [self._pid]
        stand_still(self._pid)  # first, so that it starts no more of them
        try:
            for listing in Path(f"/proc/{self._pid}/task").glob("*/children"):
                for pid in map(int, listing.read_text().split()):
                    stand_still(pid)
                    stopped.append(pid)
            yield
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)
