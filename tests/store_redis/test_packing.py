"""Keys as fields keep the order of keys, and come back as they were."""

from __future__ import annotations

import random
from typing import Any

import pytest

from converge.contracts.store import Batch, Conflict, Range, Take
from converge.model.keys import DONE, FAMILIES, HELD, INT, INT_MAX, INT_MIN, NAME, READY, Family, Key
from converge_store_redis import RedisStore
from converge_store_redis.packing import PACKERS, TAGS, bounds, field, member_unpacker, rests_unpacker, tail_of


def some_keys(family: Family, seed: int) -> list[Key]:
    draw = random.Random(seed)
    values: dict[Any, list[Any]] = {
        INT: [INT_MIN, -1, 0, 1, 255, 256, INT_MAX],
        NAME: ["", "a", "a\x01", "ab", "b", "é", "\U00010000"],
    }
    ids = [bytes(16), b"\0" * 15 + b"\1", b"\x80" + bytes(15), b"\xff" * 16]
    return [family(*(draw.choice(values.get(part, ids)) for part in family.parts.values())) for _ in range(60)]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=str)
def test_fields_have_the_order_of_their_keys_and_come_back(family: Family, seed: int) -> None:
    keys = some_keys(family, seed)
    assert sorted(keys) == sorted(keys, key=field)
    assert [member_unpacker(family)(field(key)) for key in keys] == keys
    for skip in range(family.arity):
        prefix = field(keys[0][: skip + 1])
        packed = [field(key)[len(field(key[: skip + 1])) :] for key in keys]
        assert rests_unpacker(family, skip)(b"".join(packed)) == [key[skip + 1 :] for key in keys]
        assert field(keys[0]).startswith(prefix)


def test_a_range_holds_the_keys_under_its_prefix_and_no_neighbour() -> None:
    lanes = [b"\xab" * 15 + bytes((n,)) for n in (0, 1, 255)] + [b"\xff" * 16]
    keys = [READY(lane, rank, bytes(16)) for lane in lanes for rank in (INT_MIN, 0, INT_MAX)]
    for lane in lanes:
        least, greatest = bounds(READY(lane), None)
        assert [key for key in keys if least[1:] <= field(key) < greatest[1:]] == [
            key for key in keys if key[1] == lane
        ]
    least, greatest = bounds((READY,), None)
    assert all(least[1:] <= field(key) < greatest[1:] for key in keys)


def test_each_family_has_its_own_first_byte_for_ever() -> None:
    """They stand in stored data: a family that is added goes to the end."""
    assert list(TAGS) == [
        "epoch", "task", "state", "dedup", "lane", "ready", "later", "limit", "key", "order", "held", "lease",
        "expiry", "dead", "notice", "done",
        "pool", "member", "joined", "agent", "format", "active", "torn",
        "step", "signals", "signal", "chunk", "reader", "child", "cut", "ended", "told", "outbox", "actor",
        "kept", "gone",
    ]  # fmt: skip
    assert [TAGS[family] for family in TAGS] == [bytes((number,)) for number in range(1, len(TAGS) + 1)]
    assert set(PACKERS) == set(FAMILIES.values())


def test_a_tail_is_the_end_of_a_packed_key() -> None:
    key = HELD(b"\1" * 16, 7, b"\2" * 16, b"\3" * 16)
    assert tail_of(key[:2], key[4:]) == field(key)[-16:]
    assert tail_of(key[:2], ()) == b""
    done = DONE("docs", "é", -7, b"\4" * 16)
    for skip in range(1, 5):
        assert tail_of(done[:skip], done[skip:]) == field(done)[len(field(done[:skip])) :]


async def test_a_take_merges_ranges_byte_by_byte(store: RedisStore, seed: int) -> None:
    """Rests that differ in their last bytes only, with every byte that a locale might order otherwise."""
    draw = random.Random(seed)
    lanes = [bytes((n,)) * 16 for n in range(1, 33)]
    ids = [
        b"same" + bytes((a, b)) + bytes(9) + bytes((c,))
        for a in (0, 1, 0x41, 0x61, 0x80, 0xFF)
        for b in (0, 0x20, 0xE9)
        for c in (0, 0x5F, 0xFF)
    ]
    rests = [(rank, id_) for rank in (-1, 0, 65_535, 65_536) for id_ in ids]
    draw.shuffle(rests)
    await store.commit([Batch(puts=[(READY(draw.choice(lanes), *rest), b"") for rest in rests])])
    moved: list[Any] = []
    for limit in (1, 7, 100, 1_000):
        taken = (
            await store.turn([], Take([Range(READY(lane)) for lane in lanes], limit, HELD(bytes(16)), (bytes(16),)))
        ).taken
        assert taken is not None and not isinstance(taken, Conflict)
        heads = [head for head in taken.heads if head is not None]
        assert heads == [] or min(heads) == sorted(rests)[len(moved) + len(taken.rests)]
        moved += taken.rests
    assert moved == sorted(rests)
