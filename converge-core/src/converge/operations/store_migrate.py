"""Adding to a store what a newer release keeps in it, or telling what would be added."""

from __future__ import annotations

import attrs

from converge.operations.run import checked_host, opened_store
from converge.runtime.config.config import Config, options_with_origin
from converge.secret import without_password
from converge.services.store.opening import pending


@attrs.frozen(kw_only=True)
class Migration:
    """What was missing in the store, a line each; it was added unless it `is_dry_run`."""

    store: str
    network: str
    missing: tuple[str, ...]
    is_dry_run: bool


async def migrate_store(config: Config, *, is_dry_run: bool) -> Migration:
    """Find what is missing, and add it unless `is_dry_run`. Idempotent; processes of this release and of the one before
    may use the store meanwhile.

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
        async with opened_store(config):
            pass  # opening adds it
    return Migration(
        store=without_password(config.store), network=config.network, missing=tuple(missing), is_dry_run=is_dry_run
    )
