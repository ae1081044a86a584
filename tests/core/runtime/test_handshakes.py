"""What strangers may take before they have proven who they are: places, hellos and connections."""

from __future__ import annotations

from collections import Counter

import anyio
import attrs
from anyio.lowlevel import checkpoint

from converge.env import SYSTEM
from converge.runtime.network.handshakes import (
    ADDRESSES,
    CONNECTIONS_PER_ADDRESS,
    CROWDED_SEC,
    HELLOS_PER_ADDRESS,
    HELLOS_PER_SEC,
    UNFINISHED,
    UNFINISHED_PER_ADDRESS,
    Handshakes,
    Place,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _limits(clock: Clock) -> Handshakes:
    return Handshakes(attrs.evolve(SYSTEM, monotonic=clock))


async def test_unfinished_handshakes_are_bounded_in_all_and_for_an_address() -> None:
    limits = _limits(Clock())
    places = [limits.enter("10.0.0.1") for _ in range(UNFINISHED_PER_ADDRESS + 1)]
    assert [place is not None for place in places] == [True] * UNFINISHED_PER_ADDRESS + [False]
    others = [limits.enter(f"10.0.{number % 3}.9") for number in range(200)]
    assert sum(place is not None for place in others) == UNFINISHED - UNFINISHED_PER_ADDRESS


async def test_a_newcomer_takes_a_place_of_the_most_crowded_address_and_never_that_of_one_alone() -> None:
    limits = _limits(Clock())
    alone = limits.enter("10.0.9.9")
    crowd = [limits.enter(f"10.0.0.{number % 4}") for number in range(UNFINISHED - 1)]
    assert limits.enter("10.0.8.8") is not None
    assert [place for place in crowd if place is not None and place.scope.cancel_called]
    assert alone is not None and not alone.scope.cancel_called


async def test_where_no_address_is_crowded_only_a_handshake_that_takes_long_gives_its_place_up() -> None:
    clock = Clock()
    limits = _limits(clock)
    first = limits.enter("10.1.0.0")
    for number in range(1, UNFINISHED):
        assert limits.enter(f"10.1.0.{number}") is not None
    assert limits.enter("10.2.0.0") is None
    clock.now += CROWDED_SEC
    assert limits.enter("10.2.0.0") is not None
    assert first is not None and first.scope.cancel_called


async def test_an_address_that_has_proven_a_key_has_places_that_strangers_cannot_use() -> None:
    limits = _limits(Clock())
    known = limits.enter("10.3.0.1")
    assert known is not None
    limits.leave(known, is_proven=True)
    for number in range(UNFINISHED):
        assert limits.enter(f"10.4.0.{number}") is not None
    assert limits.enter("10.5.0.0") is None
    assert limits.enter("10.3.0.1") is not None


async def test_no_number_of_strangers_makes_a_known_address_forgotten() -> None:
    limits = _limits(Clock())
    known = limits.enter("10.3.0.1")
    assert known is not None
    limits.leave(known, is_proven=True)
    for number in range(2 * ADDRESSES):
        stranger = limits.enter(f"10.{number // 250}.4.{number % 250}")
        assert stranger is not None
        limits.leave(stranger)
    assert all(limits.enter(f"10.5.{number}.1") is not None for number in range(UNFINISHED))
    assert limits.enter("10.6.0.1") is None
    assert limits.enter("10.3.0.1") is not None


async def test_first_hellos_are_answered_at_a_bounded_rate_for_an_address_and_for_all() -> None:
    clock = Clock()
    limits = _limits(clock)
    places = [limits.enter(f"10.6.0.{number}") for number in range(4)]

    async def admitted(place: Place | None) -> int:
        assert place is not None
        return sum([await limits.admit_hello(place) for _ in range(300)])

    assert [await admitted(place) for place in places] == [HELLOS_PER_ADDRESS, HELLOS_PER_ADDRESS, 0, 0]
    clock.now += 3600
    assert sum([await admitted(place) for place in places]) == HELLOS_PER_SEC


async def test_of_hellos_that_come_together_each_has_a_turn_of_the_loop() -> None:
    limits = _limits(Clock())
    place = limits.enter("10.6.0.1")
    assert place is not None
    turns, at = 0, list[int]()

    async def answer() -> None:
        assert await limits.admit_hello(place)
        at.append(turns)

    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(answer)
        while len(at) < 30 and turns < 10_000:
            await checkpoint()
            turns += 1
    assert max(Counter(at).values()) <= 2, "trio runs the tasks of one turn in any order"
    assert at[-1] - at[0] >= 28, at


async def test_connections_of_one_address_are_bounded_a_second() -> None:
    clock = Clock()
    limits = _limits(clock)
    for _ in range(CONNECTIONS_PER_ADDRESS):
        place = limits.enter("10.7.0.1")
        assert place is not None
        limits.leave(place)
    assert limits.enter("10.7.0.1") is None
    clock.now += 1
    assert limits.enter("10.7.0.1") is not None
