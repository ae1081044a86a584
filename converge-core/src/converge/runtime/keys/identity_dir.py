"""What a node keeps between its starts in `identity_dir`: its keys, the pinned ids, what it saw of its store."""

from __future__ import annotations

import logging

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from converge.contracts.store import Feature
from converge.env import Env
from converge.errors import KeyFileRefused, StoreError
from converge.model.identity import Identity, is_agent_id
from converge.plugins import PluginHost
from converge.runtime.keys.history import History
from converge.runtime.keys.keyring import NODE, Keyring
from converge.services.store import epoch as epochs
from converge.services.store.handle import StoreHandle
from converge.threads import NoThread, in_own_thread

log = logging.getLogger("converge.keys")

PINS = "pins"
"""The file of pinned ids, one a line; a line that begins with # is a comment."""


NOTE_SEC = 2.0
"""How long a node that stops may take to remember what it saw of its store."""

NAMES_TOGETHER = 100
"""Keys that are drawn before others run: some milliseconds."""


class IdentityDir:
    """Keys that are fresh, or those of the folder."""

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self._history: History | None = None
        self._handle: StoreHandle | None = None

    @classmethod
    async def open(cls, identity_dir: str, env: Env) -> IdentityDir:
        """Open the folder, if one is named.

        Raises:
            KeyFileRefused: It cannot be relied on.
        """
        return cls(await in_own_thread(Keyring.open, identity_dir, env))

    def close(self) -> None:
        """Release the keys for other processes."""
        self.keyring.close()

    async def acquire(self, kind: str = NODE, count: int = 1) -> list[Identity]:
        """Do as `Keyring.acquire`; others run meanwhile."""
        if self.keyring.folder is None:
            found: list[Identity] = []
            while len(found) < count:
                await checkpoint()
                found += self.keyring.acquire(kind, min(NAMES_TOGETHER, count - len(found)))
            return found
        return await in_own_thread(self.keyring.acquire, kind, count)

    def pins(self) -> list[str]:
        """Return the ids of the folder's `pins`.

        Raises:
            KeyFileRefused: Somebody else could have written it, or a line is not an id.
        """
        folder = self.keyring.folder
        lines = [] if folder is None else (folder.read(PINS) or b"").decode("utf-8", "replace").splitlines()
        ids = [text for line in lines if (text := line.partition("#")[0].strip())]
        wrong = next((one for one in ids if not is_agent_id(one)), None)
        if wrong is not None and folder is not None:
            raise KeyFileRefused(
                folder.path / PINS, f"{wrong[:80]!r} is not an agent's id", "write one id a line: cv1 and 52 characters"
            )
        return ids

    async def check_history(self, handle: StoreHandle, url: str, network: str, host: PluginHost) -> None:
        """Compare the store with what is remembered of it, and remember what it is now.

        Raises:
            StoreRolledBack: It is another store, or will show to be an older state of it with the first commit.
            StoreError, KeyFileRefused: One of both cannot be read.
        """
        folder = self.keyring.folder
        if folder is None or not url or Feature.PERSISTENT not in host.store_backend(url).features:
            return
        history, found = History(folder, url, network), await epochs.read(handle.store)
        floor = await in_own_thread(history.floor, found.text, found.accepted_at)
        commits = await handle.commits()  # which draws the epoch of a new store
        commits.history.remember(floor)
        self._history, self._handle = history, handle
        await self.note_history()

    async def note_history(self) -> None:
        """Remember the greatest revision seen; while the store is away or unreliable, the remembered one stays."""
        if self._history is None or self._handle is None:
            return
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + NOTE_SEC):
            try:
                commits, found = await self._handle.commits(), await epochs.read(self._handle.store)
                if not commits.is_rolled_back:
                    await in_own_thread(
                        self._history.note, found.text, commits.history.greatest, await self._handle.store.time()
                    )
            except (StoreError, KeyFileRefused, NoThread) as error:
                log.warning("what this process saw of its store is not remembered: %s", error)
