"""A task as it was read: its records, the key under which it stands, and what stands around it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from converge.codec import FIRST, Int, moment_or, parse_hash
from converge.model.keys import HELD, LATER, ORDER, READY, Key
from converge.model.pool import Pool
from converge.model.task import Spec, State

SPLIT_KEYS = 2
"""The format that keeps the active task of an ordering key apart from its next number."""


class Ready(NamedTuple):
    """`ready/...`, at this revision."""

    revision: int


class Later(NamedTuple):
    """`later/...`, at this revision."""

    revision: int


class Waiting(NamedTuple):
    """`order/...`: behind another task of its ordering key, at this revision."""

    revision: int


class Held(NamedTuple):
    """`held/...`: an attempt is under way. The token is the key's revision."""

    lease: bytes
    nonce: bytes
    token: int
    claimed_at: int = 0


Place = Ready | Later | Waiting | Held


class Found(msgspec.Struct, frozen=True):
    """A task, as it was read: a Struct, since a claim makes one a task, whose fields are read again and again."""

    id: bytes
    spec: Spec
    state: State | None
    place: Place


class LaneSeen(NamedTuple):
    """`lane/...` at this revision."""

    revision: int
    is_closing: bool = False


class KeyRow(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`key/<pool>/<ordering key>`: there as long as a task of the key has not ended; the number of the next one.

    Who is active (hex) stood here in the first format; its finishes keep to that, a submit brings it to `SPLIT_KEYS`.
    """

    next: Int
    active: str = ""
    v: int = FIRST

    def check(self) -> None:
        """Raise ValueError for an invalid id."""
        if self.v < SPLIT_KEYS:
            parse_hash(self.active)


class KeySeen(NamedTuple):
    """The row of an ordering key, at this revision."""

    revision: int
    row: KeyRow


class Successor(NamedTuple):
    """The first task that waits behind an ordering key: its id, specification, `order` key's revision, and lane."""

    id: bytes
    spec: Spec
    revision: int
    lane: LaneSeen | None


class Around(NamedTuple):
    """What a step may need: the pool always; the lane (None: absent) if it puts the task back; key and successor if the
    task is the active one of an ordering key.
    """

    pool: Pool
    lane: LaneSeen | None = None
    key: KeySeen | None = None
    successor: Successor | None = None


def waiting_keys(id_: bytes, spec: Spec, state: State | None) -> tuple[Key, ...]:
    """Return the keys under which a task that nobody holds may stand: ready, later, and order if it has that key."""
    due, rank = (state.due, state.rank) if state is not None else (spec.due, spec.rank)
    keys = (READY(parse_hash(spec.lane), rank, id_), LATER(due, id_))
    return keys if spec.ordering_key is None else (*keys, ORDER(spec.pool, spec.ordering_key, spec.number))


def place_of(key: Key, revision: int, value: bytes = b"") -> Place:
    """Return the place that one of the task's keys means."""
    family = key[0]
    if family is HELD:
        return Held(key[1], key[4], revision, moment_or(value, 0))
    return Ready(revision) if family is READY else Later(revision) if family is LATER else Waiting(revision)


def key_of(found: Found) -> Key:
    """Return the key of the place where the task was found."""
    spec, place = found.spec, found.place
    if type(place) is Held:
        rank = found.state.rank if found.state is not None else spec.rank
        return HELD(place.lease, rank, found.id, place.nonce)
    keys = waiting_keys(found.id, spec, found.state)
    return keys[0] if type(place) is Ready else keys[1] if type(place) is Later else keys[2]


def revision_of(place: Place) -> int:
    """Return the revision of the key under which a task was found."""
    return place.token if type(place) is Held else place.revision  # type: ignore[union-attr]  # the other three have a revision
