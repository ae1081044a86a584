"""Tasks that cannot be read: the steps that take them from where they stand, without a look into their records."""

from __future__ import annotations

import msgspec

from converge.codec import FIRST, Moment, encode, parse_hash
from converge.machines.lane import open_lane
from converge.machines.task import TaskState, free_next
from converge.model.batch import Batch, Check, Put
from converge.model.keys import ENDED, LIMIT, READY, TOLD, TORN, Key
from converge.model.place import Around, Found, LaneSeen
from converge.model.task import Ended, Spec


class Torn(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`torn/<id>`: a task that cannot be read, where it stood, why and when it was set aside, its pool if known."""

    place: str
    why: str
    at: Moment
    pool: str = ""
    v: int = FIRST


def set_aside_step(found: Found, own: Key, revision: int, torn: Torn, around: Around | None) -> Batch:
    """Return the batch that takes a task which cannot be read from its place; with `around`, the next of its ordering
    key is freed. Its parent is told that it failed: nobody will finish it. Not all of `found` need be known.
    """
    checks: list[Check] = [(own, revision)]
    puts: list[Put] = [(TORN(found.id), encode(torn))]
    deletes: list[Key] = [own]
    if found.spec.deadline and own[0] is not LIMIT:
        deletes.append(LIMIT(found.spec.deadline, found.id))
    if around is not None and around.key is not None:
        free_next(found, torn.at, around, checks, puts, deletes)
    if found.spec.parent:
        parent, ended = parse_hash(found.spec.parent), Ended(TaskState.FAILED.value, error=torn.why, at=torn.at)
        puts += ((ENDED(parent, found.id), encode(ended)), (TOLD(parent, found.id), b""))
    return Batch(checks, puts, deletes)


def place_text(key: Key) -> str:
    """Return a readable form of a key."""
    return "/".join([str(key[0]), *(part.hex() if isinstance(part, bytes) else str(part) for part in key[1:])])


def put_back_unread(spec: Spec, held: Key, revision: int, lane: LaneSeen | None) -> Batch:
    """Return the batch that hands back a claim which only a newer release can read: of its records nothing changes."""
    checks: list[Check] = [(held, revision)]
    puts: list[Put] = [(READY(parse_hash(spec.lane), held[2], held[3]), b"")]
    open_lane(spec, lane, checks, puts)
    return Batch(checks, puts, (held,))
