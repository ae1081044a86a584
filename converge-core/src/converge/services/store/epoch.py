"""The epoch of a store: drawn when it is new, and again when an operator accepts what has become of the store (G15)."""

from __future__ import annotations

import attrs

from converge.contracts.store import ABSENT, Batch, Conflict, Entry, Store
from converge.env import Env
from converge.errors import StoreBusy
from converge.model.keys import EPOCH

_ACCEPTED = ".accepted."
"""Between an epoch's random half and the store time at which an operator accepted it."""

ACCEPT_TRIES = 3


@attrs.frozen(kw_only=True)
class Epoch:
    """A store's epoch; `accepted_at` in store time, 0 for one drawn for a new store. All empty: there is none yet."""

    text: str = ""
    revision: int = ABSENT
    accepted_at: int = 0


async def read(store: Store) -> Epoch:
    """Return the store's epoch.

    Raises:
        StoreError: As `Store.get`.
    """
    (entry,) = await store.get([EPOCH()])
    return parsed(entry)


def parsed(entry: Entry | None) -> Epoch:
    """Return the decoded entry; an epoch of unknown form has no moment."""
    if entry is None:
        return Epoch()
    text = entry.value.decode("utf-8", "replace").strip('"')
    at = text.partition(_ACCEPTED)[2]
    return Epoch(
        text=text, revision=entry.revision, accepted_at=int(at) if at.isascii() and at.isdigit() and len(at) < 20 else 0
    )


async def accept(store: Store, env: Env) -> tuple[Epoch, Epoch]:
    """Draw a new epoch, which accepts the store as it is now; return the one before, and the new one.

    Processes that found another history go on with it; all others begin their leases anew, since they cannot tell
    whether what they hold is in it.

    Raises:
        StoreBusy: Others accepted at the same time, again and again.
        StoreError: As `Store.commit`.
    """
    for _ in range(ACCEPT_TRIES):
        before = await read(store)
        text = f"{env.entropy(16).hex()}{_ACCEPTED}{await store.time()}"
        (outcome,) = await store.commit([Batch([(EPOCH(), before.revision)], [(EPOCH(), f'"{text}"'.encode())])])
        if not isinstance(outcome, Conflict):
            return before, parsed(Entry(EPOCH(), f'"{text}"'.encode(), outcome.revision))
    raise StoreBusy("the store's epoch was drawn by others at the same time; try again")
