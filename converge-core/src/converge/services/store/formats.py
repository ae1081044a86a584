"""The format of a store: read when it is opened, raised when something newer is first used."""

from __future__ import annotations

from converge.codec import FORMAT as KNOWN
from converge.codec import decode, encode
from converge.contracts.store import ABSENT, Batch, Committed, Store
from converge.errors import SchemaTooNew, StoreBusy, StoreUnfinished
from converge.model.formats import FORMATS, StoreFormat
from converge.model.keys import FORMAT

NOTE_TRIES = 10


async def read_format(store: Store) -> StoreFormat:
    """Return the newest format that is used in the store.

    Raises:
        TornRecord: Something else wrote the record of it.
        StoreError: As `Store.get`.
    """
    (entry,) = await store.get([FORMAT()])
    return StoreFormat() if entry is None else decode(entry.value, StoreFormat, "format")


async def check_format(store: Store, where: str, *, may_be_unfinished: bool = False) -> None:
    """Refuse a store in which a newer format is used than this release knows.

    Raises:
        SchemaTooNew: Which, and which release knows it.
        StoreUnfinished: It is being copied to, or that was broken off.
    """
    found = await read_format(store)
    if found.copied_from and may_be_unfinished:
        return
    if found.copied_from:
        raise StoreUnfinished(
            f"{where} is a copy of {found.copied_from} that was not finished; run `converge store copy` again, which "
            "begins anew"
        )
    if found.number > KNOWN:
        raise SchemaTooNew(
            f"{where} has format {found.number}, which converge-core {found.oldest} and newer know; this one knows "
            f"{KNOWN}: upgrade it"
        )


async def raise_format(store: Store, number: int) -> None:
    """Record that this format is used, so that releases that do not know it refuse the store. A newer one stays.

    Raises:
        StoreRefused: The role may not write the schema number.
        StoreError: As `Store.commit`.
    """
    wanted = next(one for one in FORMATS if one.number == number)
    for _ in range(NOTE_TRIES):
        (entry,) = await store.get([FORMAT()])
        if entry is not None and decode(entry.value, StoreFormat, "format").number >= number:
            return
        await store.note_format(number)  # first: where this process dies in between, it is done again
        checks = [(FORMAT(), entry.revision if entry is not None else ABSENT)]
        value = encode(StoreFormat(wanted.number, wanted.oldest))
        (outcome,) = await store.commit([Batch(checks, [(FORMAT(), value)])])
        if isinstance(outcome, Committed):
            return
    raise StoreBusy("the store's format was raised by others at the same time; try again")
