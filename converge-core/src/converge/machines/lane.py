"""Lanes: what every task of one kind requires of its claimer. Eligibility is decided once per lane, never per task."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import msgspec

from converge.codec import FIRST, encode, parse_hash
from converge.model.batch import ABSENT, Check, Put
from converge.model.keys import LANE
from converge.model.place import LaneSeen
from converge.model.task import Spec

LANES = 1_024
"""Lanes of one pool at a time: a claimer looks at all of them when it is woken, 32 at a time when it claims."""


class Lane(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`lane/<pool>/<id>`: the requirements that its tasks share. `is_closing`: empty, and about to be removed."""

    pool: str
    topic: str = ""
    type: str = ""
    capabilities: tuple[str, ...] = ()
    is_closing: bool = False
    v: int = FIRST


@lru_cache(maxsize=4_096)  # a submit computes one a task, and a pool has at most 1,024
def lane_id(pool: str, topic: str, type_: str, capabilities: tuple[str, ...]) -> bytes:
    """Return the 16 bytes that name the lane; `capabilities` sorted, without repeats."""
    text = msgspec.json.encode(("converge/lane/v1", pool, topic, type_, capabilities))
    return hashlib.blake2b(text, digest_size=16).digest()


def lane_of(spec: Spec) -> Lane:
    """Return the record of the task's lane."""
    return Lane(spec.pool, spec.topic, spec.type, spec.capabilities)


def open_lane(spec: Spec, lane: LaneSeen | None, checks: list[Check], puts: list[Put]) -> None:
    """Open a task's lane: a `ready` key is only put together with a check of its open lane, or with the lane itself."""
    key = LANE(spec.pool, parse_hash(spec.lane))
    checks.append((key, lane.revision if lane else ABSENT))
    if lane is None or lane.is_closing:
        puts.append((key, encode(lane_of(spec))))
