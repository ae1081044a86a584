"""The discovery service answers from memory; what it reads from the store is what has changed."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from converge.codec import encode
from converge.contracts.discovery import Sighting
from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Range, Store
from converge.env import SYSTEM
from converge.errors import StoreUnavailable
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery, sign_descriptor
from converge.model.identity import Identity
from converge.model.keys import AGENT, EXPIRY
from converge.services.discovery.reader import marker_key, marker_value
from converge.services.discovery.service import DiscoveryService
from converge.services.discovery.sightings import StoreSightings
from converge.services.store.handle import StoreHandle
from converge.services.store.opening import open_store
from converge.testing.fixtures import wait_until

NETWORK = "here"


class Counting(Store):
    """Counts what it is asked, and the records that it answers; may be away."""

    def __init__(self, inner: Store) -> None:
        self.inner, self.calls, self.records, self.is_away = inner, 0, 0, False

    def count(self, entries: int) -> None:  # type: ignore[override]  # nobody here counts keys
        if self.is_away:
            raise StoreUnavailable("it is away")
        self.calls, self.records = self.calls + 1, self.records + entries

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self.count(len(keys))
        return await self.inner.get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        found = await self.inner.scan(ranges)
        self.count(sum(map(len, found)))
        return found

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self.count(0)
        return await self.inner.commit(batches, wake=wake)

    async def time(self) -> int:
        self.count(0)
        return await self.inner.time()

    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        return self.inner.watch(channels)

    @contextmanager
    def counted(self) -> Iterator[Counting]:
        self.calls = self.records = 0
        yield self


class Bench:
    """A process that publishes agents, and another one's service."""

    def __init__(self, store: Store) -> None:
        self.handle = StoreHandle.of(store)
        self.own = StoreSightings(self.handle)
        self.reading = Counting(store)
        self.service = DiscoveryService(store=self.reading, network=NETWORK)
        self.identities: list[Identity] = []

    async def sighting(self, who: Identity, sequence: int, **about: tuple[str, ...]) -> Sighting:
        lease = await self.handle.lease()
        descriptor = AgentDescriptor(
            id=who.id, public_key=who.public_key.hex(), sequence=sequence, lease=lease.id.hex()
        )
        return Sighting(who.id, (), sign_descriptor(who, attrs.evolve(descriptor, **about), NETWORK))  # type: ignore[arg-type]

    async def publish(self, count: int, **about: tuple[str, ...]) -> list[str]:
        new = [Identity.generate(SYSTEM.entropy) for _ in range(count)]
        await self.own.publish([await self.sighting(one, 1, **about) for one in new])
        self.identities += new
        return [one.id for one in new]

    async def found(self, *, refresh: bool = True, **query: Any) -> list[str]:
        return [one.id for one in await self.service.query(DiscoveryQuery(**query), refresh_from_store=refresh)]


@pytest.fixture(params=["memory:", "file:"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    url = str(request.param)
    async with open_store(url if url == "memory:" else f"{url}{tmp_path}/state.db") as store:
        one = Bench(store)
        yield one
        await one.handle.close()


async def test_a_query_is_answered_by_topic_capability_and_pool_in_the_order_of_ids(bench: Bench) -> None:
    both = await bench.publish(3, topics=("news", "sport"), capabilities=("read", "write"), pools=("docs",))
    news = await bench.publish(2, topics=("news",), capabilities=("read",))
    assert await bench.found() == sorted(both + news)
    assert await bench.found(topics=["news"]) == sorted(both + news)
    assert await bench.found(topics=["sport", "nothing"]) == sorted(both), "any of the topics"
    assert await bench.found(capabilities=["read", "write"]) == sorted(both), "all of the capabilities"
    assert await bench.found(capabilities=["read"], topics=["sport"], pool_id="docs") == sorted(both)
    assert await bench.found(capabilities=["read"], pool_id="other") == []
    assert await bench.found(topics=["NEWS"]) == [], "topics match exactly"
    assert await bench.found(limit=2) == sorted(both + news)[:2]


async def test_candidates_are_filtered_and_nothing_is_read(bench: Bench) -> None:
    await bench.publish(2, topics=("news",))
    candidates = [AgentDescriptor(id=f"cv1{name}", public_key="", topics=(name,)) for name in ("news", "sport")]
    with bench.reading.counted() as counted:
        found = await bench.service.query(DiscoveryQuery(topics=["news"]), candidates)
    assert (found, counted.calls) == ([candidates[0]], 0)


async def test_a_second_query_within_a_poll_reads_nothing(bench: Bench) -> None:
    await bench.publish(2)
    assert len(await bench.found(refresh=False)) == 2
    with bench.reading.counted() as counted:
        assert len(await bench.found(refresh=False)) == 2
    assert counted.calls == 0


async def test_a_look_that_finds_nothing_new_costs_the_same_with_any_number_of_agents(bench: Bench) -> None:
    costs = []
    for more in (10, 500):
        await bench.publish(more)
        await bench.found()
        with bench.reading.counted() as counted:
            await bench.found()
        costs.append((counted.calls, counted.records))
    assert costs[0] == costs[1]
    assert costs[0][0] <= 3


async def test_a_change_of_one_agent_reads_and_verifies_that_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.publish(400)
    await bench.found()
    verified: list[str] = []
    straight = bench.service.directory.offer

    def offer(agent_id: str, signed: bytes) -> bool:
        verified.append(agent_id)
        return straight(agent_id, signed)

    monkeypatch.setattr(bench.service.directory, "offer", offer)
    changed = bench.identities[17]
    await bench.own.publish([await bench.sighting(changed, 2, topics=("new",))])
    with bench.reading.counted() as counted:
        assert await bench.found(topics=["new"]) == [changed.id]
    assert verified == [changed.id]
    assert counted.records <= 4
    await bench.own.withdraw([bench.identities[3].id])
    with bench.reading.counted() as counted:
        assert len(await bench.found()) == 399
    assert (verified, counted.records <= 4) == ([changed.id], True)


async def test_followed_a_query_reads_nothing_and_a_change_arrives_within_a_poll(bench: Bench) -> None:
    await bench.publish(1)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.service.follow, 0.05)
        await wait_until(lambda: len(bench.service.directory) == 1)
        (new,) = await bench.publish(1, topics=("new",))

        async def is_there() -> bool:
            return await bench.found(refresh=False, topics=["new"]) == [new]

        await wait_until(is_there)
        await bench.own.withdraw([new])

        async def is_gone() -> bool:
            return await bench.found(refresh=False, topics=["new"]) == []

        await wait_until(is_gone)
        group.cancel_scope.cancel()


async def test_while_the_store_is_away_the_last_that_was_known_is_kept_and_a_query_says_so(bench: Bench) -> None:
    (one,) = await bench.publish(1)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.service.follow, 0.02)
        await wait_until(lambda: len(bench.service.directory) == 1)
        bench.reading.is_away = True
        with pytest.raises(StoreUnavailable):
            await bench.found()
        assert bench.service.directory.get(one) is not None, "who is known can be talked to"
        await bench.publish(1)
        bench.reading.is_away = False
        await wait_until(lambda: len(bench.service.directory) == 2)
        group.cancel_scope.cancel()


async def test_a_refresh_that_is_cancelled_loses_no_agent(bench: Bench) -> None:
    await bench.publish(300)
    for _ in range(400):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await bench.service.refresh()
        with anyio.move_on_after(0.002):
            await bench.service.refresh()
    assert len(await bench.found()) == 300


async def test_a_reader_that_missed_more_changes_than_the_marker_names_reads_all(bench: Bench) -> None:
    await bench.publish(5)
    await bench.found()
    for _ in range(3):
        await bench.publish(50)
    assert len(await bench.found()) == 155


# What a store writer may do.


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"[]",
        b"[1]",
        b'["a", []]',
        b"[5, [3]]",
        b'[5, ["a\\u0000b"]]',
        b'[-1, ["x"]]',
        b"[" * 3_000,
        b'[99999999999999999999, ["x"]]',
    ],
)
async def test_a_marker_that_somebody_has_spoiled_hides_no_agent(bench: Bench, marker: bytes) -> None:
    ids = await bench.publish(3)
    await bench.found()
    lease = await bench.handle.lease()
    await bench.reading.commit([Batch((), [(marker_key(lease.id), marker)])])
    assert await bench.found() == sorted(ids)
    new = await bench.publish(1)
    assert await bench.found() == sorted(ids + new)


@pytest.mark.parametrize("value", [b"", b"soon", b"1e99"])
async def test_an_expiry_that_cannot_be_read_hides_its_own_agents_only(bench: Bench, value: bytes) -> None:
    ids = await bench.publish(1)
    other = bytes(16)
    await bench.reading.commit(
        [Batch((), [(EXPIRY(other), value), (marker_key(other), marker_value(1, ["x"])), (AGENT(other, "x"), b"x")])]
    )
    assert await bench.found() == ids


async def test_a_descriptor_that_was_rewritten_in_the_store_is_refused_or_has_no_effect(bench: Bench) -> None:
    (victim,) = await bench.publish(1, topics=("news",))
    assert await bench.found() == [victim]
    sound = await bench.sighting(bench.identities[0], 1, topics=("news",))
    lease = await bench.handle.lease()
    thief = Identity.generate(SYSTEM.entropy)
    fields: dict[str, Any] = {
        "id": thief.id,
        "public_key": thief.public_key.hex(),
        "name": "x",
        "topics": ("evil",),
        "capabilities": ("evil",),
        "pools": ("evil",),
    }
    fields |= {
        "node_key": "00" * 32,
        "endpoints": ("tcp://evil:1",),
        "sequence": 9,
        "issued_at": 9,
        "succession": ("00",),
    }
    original = AgentDescriptor(
        id=victim, public_key=bench.identities[0].public_key.hex(), sequence=1, lease=lease.id.hex(), topics=("news",)
    )
    for number, (name, value) in enumerate(fields.items(), 2):
        changed = encode(attrs.evolve(original, **{name: value}))
        record = encode([[], base64.b64encode(sound.descriptor[:64] + changed).decode()])
        await bench.reading.commit(
            [Batch((), [(AGENT(lease.id, victim), record), (marker_key(lease.id), marker_value(number, [victim]))])]
        )
        (found,) = await bench.service.query(DiscoveryQuery(), refresh_from_store=True)
        assert found == original, name
    assert bench.service.directory.refused == len(fields)
