"""Copying one network's keys from a store to an empty one, and comparing the two.

While it runs the destination says in its `format` that it is a copy under way, so that nobody opens it half copied;
begun again after a failure, it is emptied first. Every key is copied as it is but for those that belong to processes:
the source's leases have ended, so the copy has them as dead, and the first sweep puts back what they held.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from hashlib import blake2b

import attrs

from converge.codec import decode, encode, moment_or, parse_hash
from converge.contracts.store import LIMITS, Batch, Conflict, Entry, Key, Put, Range, Store
from converge.env import Env
from converge.errors import CopyRefused, StoreBusy, TornRecord
from converge.model.formats import FORMATS, UNFINISHED, StoreFormat
from converge.model.keys import (
    ALSO,
    DEAD,
    DONE,
    EPOCH,
    EXPIRY,
    FAMILIES,
    FORMAT,
    HELD,
    LATER,
    LEASE,
    ORDER,
    READY,
    STATE,
    TASK,
    TORN,
    Family,
    pack,
)
from converge.services.store import epoch as epochs
from converge.services.store.formats import read_format
from converge.services.store.pages import Pages

COPY_PAGE = 100
"""Keys of a page: with each come the two records of its task, of up to a mebibyte each."""

PUT_OPS, PUT_BYTES = 1_000, 4_194_304
"""Puts or deletes, and bytes of the values, of one commit."""

OWN = (EPOCH, FORMAT, LEASE)
"""What belongs to a store and its processes, and is not copied."""

COPIED = tuple(family for family in FAMILIES.values() if family not in (*OWN, *ALSO))

_ID_AT: Mapping[Family, int] = {READY: 3, LATER: 2, HELD: 3, DONE: 4, TORN: 1}
"""Where a key that says where a task stands has the task's id; `order` has it in its value."""

_MODULUS = 1 << 128

Progress = Callable[[int, int], None]


@attrs.frozen(kw_only=True)
class Contents:
    """What a store holds of one family: how many keys, and a digest of keys and values in whatever order."""

    keys: int = 0
    digest: int = 0

    def with_entry(self, key: Key, value: bytes) -> Contents:
        """Return the contents with one key more."""
        packed = pack(key)
        hashed = blake2b(len(packed).to_bytes(4) + packed + value, digest_size=16, person=key[0].encode()[:16])
        return Contents(keys=self.keys + 1, digest=(self.digest + int.from_bytes(hashed.digest())) % _MODULUS)


@attrs.frozen(kw_only=True)
class Copied:
    """What was copied: keys by family, the digest over all of them (hex), and the leases that ended with it."""

    keys: Mapping[str, int]
    digest: str
    leases: int
    epoch: str


async def copy_store(source: Store, target: Store, name: str, env: Env, on_progress: Progress | None = None) -> Copied:
    """Copy everything, compare both stores, and give the copy an epoch of its own.

    Args:
        name: The source, without its password, as the destination shows it while the copy is under way.

    Raises:
        Unsupported: The destination's kind of store cannot take a copy.
        CopyRefused: A process lives on the source, the destination is not empty, or the two differ in the end.
        StoreError: One of the two failed; the destination stays closed to everybody until it is copied again.
    """
    await target.advance(0)  # or it refuses, before anything was written
    await _check_source(source)
    await _begin(source, target, name)
    total = sum(await source.count([family() for family in COPIED]))
    # The epoch of a store that is itself a copy was written behind the revisions of its source.
    greatest, done, writer = (await epochs.read(source)).revision, 0, _Writer(target)
    async for entries in _everything(source):
        greatest = max(greatest, *(entry.revision for entry in entries))
        await writer.put([_as_copied(entry) for entry in entries])
        done += sum(entry.key[0] not in ALSO for entry in entries)
        if on_progress is not None:
            on_progress(done, max(total, done))
    await writer.flush()
    await target.advance(greatest)
    return await _end(source, target, env)


async def _check_source(source: Store) -> None:
    now, living = await source.time(), 0
    longest = 0
    async for page in Pages(source, EXPIRY()):
        ends = [until for entry in page if (until := moment_or(entry.value, 0)) > now]
        living, longest = living + len(ends), max(longest, *ends, 0)
    if living:
        raise CopyRefused(
            f"{living} process{'' if living == 1 else 'es'} may still use the source; stop them first. What was killed "
            f"counts until its lease has passed, in {(longest - now) / 1_000_000:.0f} s"
        )


async def _begin(source: Store, target: Store, name: str) -> None:
    """Mark the destination as unfinished; empty it if it is a copy of this source that was not finished."""
    mark = await read_format(target)
    if mark.copied_from and mark.copied_from != name:
        raise CopyRefused(f"the destination is an unfinished copy of {mark.copied_from}, not of {name}; empty it first")
    if not mark.copied_from:
        heads = [await target.scan([Range(family(), None, 1)]) for family in (*COPIED, LEASE)]
        filled = next((page[0].key[0] for (page,) in heads if page), None)
        if filled is not None:
            raise CopyRefused(
                f"the destination is not empty (it has keys of `{filled}`); name an empty store, or another --network"
            )
    await target.note_format((await read_format(source)).number)
    (was,) = await target.get([FORMAT()])
    value = encode(StoreFormat(UNFINISHED, FORMATS[-1].oldest, copied_from=name))
    await _commit(target, Batch((), [(FORMAT(), value)]))
    if (await read_format(source)).copied_from:
        await _commit(target, _with_format(was))
        raise CopyRefused("source and destination are one store, by two names; name another destination")
    if mark.copied_from:
        await _empty(target)


async def _empty(target: Store) -> None:
    keys = dict[Key, None]()
    async for entries in _everything(target):
        keys.update((entry.key, None) for entry in entries)
        if len(keys) >= PUT_OPS:
            await _commit(target, Batch((), (), list(keys)))
            keys.clear()
    if keys:
        await _commit(target, Batch((), (), list(keys)))


async def _end(source: Store, target: Store, env: Env) -> Copied:
    before, after = await contents(source), await contents(target)
    wrong = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if wrong:
        raise CopyRefused(
            f"source and destination differ in {', '.join(wrong)}: did something write to one of them? Stop it, and "
            "copy again; until then the destination stays closed"
        )
    leases = sum(await source.count([EXPIRY()]))
    _, drawn = await epochs.accept(target, env)
    (entry,) = await source.get([FORMAT()])
    await _commit(target, _with_format(entry))
    digest = sum(one.digest for one in before.values()) % _MODULUS
    return Copied(
        keys={name: one.keys for name, one in before.items()}, digest=f"{digest:032x}", leases=leases, epoch=drawn.text
    )


def _with_format(entry: Entry | None) -> Batch:
    return Batch((), (), [FORMAT()]) if entry is None else Batch((), [(FORMAT(), entry.value)])


async def contents(store: Store) -> dict[str, Contents]:
    """Return what is copied of a store, by family.

    Raises:
        StoreError: As `Store.scan`.
    """
    found: dict[str, Contents] = {}
    async for entries in _everything(store):
        for entry in entries:
            key, value = _as_copied(entry)
            found[key[0]] = found.get(key[0], Contents()).with_entry(key, value)
    return found


async def _everything(store: Store) -> AsyncIterator[Sequence[Entry]]:
    """Yield every entry of every family; a place of a task together with its records, for a parked one is known by its
    place and its state having one revision.
    """
    for family in COPIED:
        async for page in Pages(store, family(), size=COPY_PAGE):
            ids = {id_: None for entry in page if (id_ := _task_of(entry)) is not None}
            read = await store.get([also(id_) for id_ in ids for also in ALSO]) if ids else ()
            records = {entry.key: entry for entry in read if entry is not None}
            for entry in page:
                id_ = _task_of(entry)
                yield [entry, *(records[key] for also in ALSO if id_ is not None and (key := also(id_)) in records)]


def _task_of(entry: Entry) -> bytes | None:
    """Return the task whose place this is; None: it is no place, or the task is lost on the source already."""
    family = entry.key[0]
    if family is ORDER:
        try:
            return parse_hash(decode(entry.value, str, "order"))
        except (TornRecord, ValueError):
            return None
    at = _ID_AT.get(family)
    return None if at is None else entry.key[at]


def _as_copied(entry: Entry) -> Put:
    """Return what is put into the copy. Records are JSON; what is none any more may be no text either, which some
    stores do not take: its odd bytes are spelt out, so that it stays as torn as it is.
    """
    if entry.key[0] is EXPIRY:
        return DEAD(entry.key[1]), b""
    return entry.key, entry.value.decode(errors="backslashreplace").replace("\0", r"\x00").encode()


class _Writer:
    """Puts keys into the destination, as many in a commit as it takes at a time."""

    def __init__(self, target: Store) -> None:
        self._target = target
        self._puts: dict[Key, bytes] = {}
        self._bytes = 0

    async def put(self, together: Sequence[Put]) -> None:
        """Put these few into one commit, with what it has room for besides."""
        size = sum(len(value) for _, value in together)
        if len(self._puts) + len(together) > PUT_OPS or self._bytes + size > PUT_BYTES:
            await self.flush()
        self._puts.update(together)
        self._bytes += size

    async def flush(self) -> None:
        if self._puts:
            await _commit(self._target, Batch((), list(self._puts.items())))
            self._puts, self._bytes = {}, 0


async def _commit(target: Store, batch: Batch) -> None:
    (outcome,) = await target.commit([batch])
    if isinstance(outcome, Conflict):
        raise StoreBusy("the destination refused a batch without checks; copy again")


assert LIMITS.keys >= 2 * COPY_PAGE and LIMITS.batch_ops >= PUT_OPS + 2 * COPY_PAGE
assert set(ALSO) == {TASK, STATE}
