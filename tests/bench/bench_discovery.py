"""What does a query cost, what a change, what a look that finds nothing? 1,000 to 100,000 agents in memory, against a
linear scan, in one run.

    python tests/bench/bench_discovery.py [--agents 1000 10000 100000] [--verified 2000]

A query names one topic of ten and two capabilities of fifty, of which an agent has three; a common one is of ten and of
ten. "by id" includes the order of the answer. `load` reads signed descriptors from a store and verifies them; `verify`
is what Ed25519 alone takes for them.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import attrs

from converge.builtin.memory import MemoryStore
from converge.contracts.discovery import Sighting
from converge.env import SYSTEM
from converge.machines.match import matches
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery, network_tag, sign_descriptor
from converge.model.identity import Identity, verify
from converge.services.discovery.directory import Directory
from converge.services.discovery.service import DiscoveryService
from converge.services.discovery.sightings import StoreSightings
from converge.services.store.handle import StoreHandle

NETWORK = "bench"
ROUNDS = 200


def agents(count: int, capabilities: int, seed: random.Random) -> list[AgentDescriptor]:
    """Agents that nobody has signed, for the index alone."""
    names = [f"capability-{number}" for number in range(capabilities)]
    return [
        AgentDescriptor(
            id=f"cv1{seed.getrandbits(256):052x}"[:55],
            public_key="",
            topics=(f"topic-{seed.randrange(10)}",),
            capabilities=tuple(seed.sample(names, 3)),
            pools=(f"pool-{seed.randrange(5)}",),
        )
        for _ in range(count)
    ]


def queries(capabilities: int, seed: random.Random) -> list[DiscoveryQuery]:
    names = [f"capability-{number}" for number in range(capabilities)]
    return [
        DiscoveryQuery(topics=[f"topic-{seed.randrange(10)}"], capabilities=seed.sample(names, 2))
        for _ in range(ROUNDS)
    ]


def scan(everyone: Sequence[AgentDescriptor], query: DiscoveryQuery) -> list[AgentDescriptor]:
    """The plain way: look at each."""
    found = []
    for one in everyone:
        has = (set(one.topics), set(one.capabilities), set(one.pools))
        if matches(topics=query.topics, capabilities=query.capabilities, pool_id=query.pool_id, has=has):
            found.append(one)
    return sorted(found, key=lambda one: one.id)


def median_us(call: Callable[[Any], Any], over: Sequence[Any]) -> float:
    took = []
    for one in over:
        began = time.perf_counter()
        call(one)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def of_queries(count: int, capabilities: int) -> None:
    seed = random.Random(1)
    everyone, asked = agents(count, capabilities, seed), queries(capabilities, seed)
    directory = Directory(NETWORK)
    for one in everyone:
        directory.put(one, b"")
    for query in asked:
        directory.query(query)  # a bitmap is made when it is first asked for
    hits = statistics.mean(len(directory.query(query)) for query in asked)
    indexed = median_us(directory.query, asked)
    worst = max(median_us(directory.query, [query] * 3) for query in asked)
    first = median_us(lambda query: directory.query(attrs.evolve(query, limit=1)), asked)
    linear = median_us(lambda query: scan(everyone, query), asked[:3])
    assert directory.query(asked[0]) == scan(everyone, asked[0])
    changed = median_us(
        lambda one: directory.put(attrs.evolve(one, sequence=1), b""), everyone[:: max(1, count // 200)]
    )
    print(
        f"{count:>8,} agents, {capabilities:>3} capabilities: query {indexed:>7.1f} us (worst {worst:.0f}), limit 1 "
        f"{first:>6.1f} us, {hits:>6.1f} hits; linear {linear / 1000:>7.2f} ms, {linear / indexed:>6,.0f} x; change "
        f"{changed:>5.1f} us"
    )


async def of_reading(count: int) -> None:
    """Load, look again, and take one change, through a store in memory."""
    store = MemoryStore()
    opened = StoreHandle.of(store)
    lease = await opened.lease()
    identities = [Identity.generate(os.urandom) for _ in range(count)]
    about = {"topics": ("a",), "capabilities": ("b", "c"), "lease": lease.id.hex(), "pools": ("docs",)}

    def sighting(one: Identity, sequence: int) -> Sighting:
        descriptor = AgentDescriptor(id=one.id, public_key=one.public_key.hex(), sequence=sequence, **about)  # type: ignore[arg-type]
        return Sighting(one.id, ("tcp://10.0.0.1:7000",), sign_descriptor(one, descriptor, NETWORK))

    signed = [sighting(one, 1) for one in identities]
    own = StoreSightings(opened)
    await own.publish(signed)

    tag, began = b"converge/desc/v1\0" + network_tag(NETWORK), time.perf_counter()
    for one, identity in zip(signed, identities, strict=True):
        assert verify(identity.public_key, one.descriptor[:64], tag + one.descriptor[64:])
    alone = time.perf_counter() - began

    reading = StoreHandle(store, SYSTEM, None)
    service = DiscoveryService(store=store, network=NETWORK, discovery=StoreSightings(reading))
    began = time.perf_counter()
    await service.refresh()
    loaded = time.perf_counter() - began
    assert len(service.directory) == count

    async def refreshed() -> float:
        began = time.perf_counter()
        await service.refresh()
        return (time.perf_counter() - began) * 1e6

    nothing = statistics.median([await refreshed() for _ in range(50)])
    changes = []
    for number in range(20):
        await own.publish([sighting(identities[number], 2)])
        changes.append(await refreshed())
    await opened.close()
    print(
        f"{count:>8,} agents: load {loaded:.2f} s, verify alone {alone:.2f} s ({alone / loaded:.0%} of it); "
        f"a look that finds nothing {nothing:.0f} us, one change {statistics.median(changes):.0f} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--verified", type=int, default=2_000)
    parser.add_argument("--quick", action="store_true", help="1,000 and 10,000 agents, 500 of them signed")
    given = parser.parse_args()
    if given.quick:
        given.agents, given.verified = [1_000, 10_000], 500
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores: {' '.join(sys.argv)}")
    for capabilities in (50, 10):
        for count in given.agents:
            of_queries(count, capabilities)
    for count in sorted({given.verified // 10, given.verified}):
        anyio.run(of_reading, count)


if __name__ == "__main__":
    main()
