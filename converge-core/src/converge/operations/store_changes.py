"""What an operator changes in a store: a new epoch for one that was replaced, and what a newer release keeps in it."""

from __future__ import annotations

from pathlib import Path

import attrs

from converge.codec import decode
from converge.contracts.store import Batch, Entry, Store
from converge.env import SYSTEM, Env
from converge.errors import SchemaTooNew, TornRecord
from converge.machines.convert import split_key
from converge.model.keys import KEY
from converge.model.place import SPLIT_KEYS, KeyRow, KeySeen
from converge.operations.run import checked_host, opened_store
from converge.runtime.config.config import Config, options_with_origin
from converge.runtime.keys.folder import KeyFolder
from converge.runtime.keys.history import History
from converge.secret import without_password
from converge.services.store import epoch as epochs
from converge.services.store.handle import StoreHandle
from converge.services.store.opening import pending
from converge.services.store.pages import Pages
from converge.threads import in_own_thread


@attrs.frozen(kw_only=True)
class Accepting:
    """The epoch drawn, the one before (empty: none), and the folder that remembers it now (empty: none is set)."""

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
    folder = await in_own_thread(_open, config.identity_dir) if config.identity_dir else None
    try:
        before, drawn = await epochs.accept(store, env)
        if folder is not None:
            history = History(folder, config.store, config.network)
            await in_own_thread(history.accept, drawn.text)
    finally:
        if folder is not None:
            folder.close()
    return Accepting(epoch=drawn.text, before=before.text, identity_dir=config.identity_dir)


def _open(identity_dir: str) -> KeyFolder:
    return KeyFolder.open(Path(identity_dir), is_made=False)


@attrs.frozen(kw_only=True)
class Migration:
    """What was missing in the store, a line each; it was added unless it `is_dry_run`. `old`: how many records of an
    older format there were; None if nobody asked.
    """

    store: str
    network: str
    missing: tuple[str, ...]
    is_dry_run: bool
    old: int | None = None


async def migrate_store(config: Config, *, is_dry_run: bool, converts: bool = False) -> Migration:
    """Find what is missing, and add it unless `is_dry_run`. Idempotent; processes of this release and of the one before
    may use the store meanwhile.

    Args:
        converts: Bring records of an older format to the newest, too, which raises the store's format: processes of
            releases that do not know it refuse the store from then on.

    Raises:
        ConfigError: Only this process would see the store, or its plugin cannot be used.
        StoreRefused: There is no store, or the role may not add what is missing.
        StoreError: It cannot be reached.
    """
    with options_with_origin(config):
        missing = await pending(
            config.store, plugins=checked_host(config), network=config.network, options=config.options
        )
    if missing and not is_dry_run:
        async with opened_store(config, must_exist=False):
            pass  # opening adds it, a network of which nothing is there as well
    old = None
    if converts:
        async with opened_store(config) as store:
            old = await convert_keys(StoreHandle.of(store), is_dry_run=is_dry_run)
    return Migration(
        store=without_password(config.store),
        network=config.network,
        missing=tuple(missing),
        is_dry_run=is_dry_run,
        old=old,
    )


async def convert_keys(handle: StoreHandle, *, is_dry_run: bool) -> int:
    """Bring the rows of all ordering keys to the newest format, beside processes that change them; return how many
    there were of an older one. One that cannot be read stays.

    Raises:
        StoreError: As `Store.commit`; what was converted stays so.
    """
    count = 0
    async for page in Pages(handle.store, KEY()):
        batches = [batch for entry in page if (batch := _converted(entry)) is not None]
        if batches and not is_dry_run:
            await handle.require_format(SPLIT_KEYS)
            # A conflict is another process that submits to the key, which converts it.
            await (await handle.commits()).commit(batches)
        count += len(batches)
    return count


def _converted(entry: Entry) -> Batch | None:
    try:
        row = decode(entry.value, KeyRow, "key")
    except (TornRecord, SchemaTooNew):
        return None
    return split_key(entry.key, KeySeen(entry.revision, row))
