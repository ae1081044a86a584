"""Accepting a store: draw a new epoch, and record it in `identity_dir`."""

from __future__ import annotations

from pathlib import Path

import anyio
import attrs

from converge.contracts.store import Store
from converge.env import SYSTEM, Env
from converge.runtime.config.config import Config
from converge.runtime.keys.folder import KeyFolder
from converge.runtime.keys.history import History
from converge.services.store import epoch as epochs


@attrs.frozen(kw_only=True)
class Accepting:
    """The epoch drawn, the one before (empty: the store had none), and the folder that remembers it now (empty: none is
    configured).
    """

    epoch: str
    before: str
    identity_dir: str


async def accept_store(store: Store, config: Config, env: Env = SYSTEM) -> Accepting:
    """Draw a new epoch: processes that found another history go on, those that start with the `identity_dir` find the
    history that it remembers.

    Raises:
        KeyFileRefused: The folder cannot be relied on; nothing was changed.
        StoreError: As `epochs.accept`.
    """
    folder = await anyio.to_thread.run_sync(_open, config.identity_dir) if config.identity_dir else None
    try:
        before, drawn = await epochs.accept(store, env)
        if folder is not None:
            history = History(folder, config.store, config.network)
            await anyio.to_thread.run_sync(history.accept, drawn.text)
    finally:
        if folder is not None:
            folder.close()
    return Accepting(epoch=drawn.text, before=before.text, identity_dir=config.identity_dir)


def _open(identity_dir: str) -> KeyFolder:
    return KeyFolder.open(Path(identity_dir), is_made=False)
