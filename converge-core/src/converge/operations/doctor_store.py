"""The checks of `converge doctor` for a store: its durability, clock, free space, and unclaimed work."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from converge.codec import FORMAT, decode
from converge.contracts.store import (
    LIMITS,
    Durability,
    Feature,
    Finding,
    Inspection,
    Range,
    Store,
    StoreBackend,
    error,
    fine,
    warning,
)
from converge.errors import ConvergeError, NoSuchStore, SchemaTooNew, StoreError, TornRecord
from converge.ids import id_text
from converge.machines.lane import LANES, Lane
from converge.machines.match import Claimer, refusal
from converge.machines.task import TaskState
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.model.keys import DONE, HELD, LANE, READY, TASK, Key
from converge.model.pool import Pool
from converge.model.task import Spec, Task
from converge.operations.store_info import StoreFacts, store_facts
from converge.plugins import PluginHost
from converge.runtime.config.config import Config
from converge.runtime.keys.folder import KeyFolder
from converge.runtime.keys.history import History
from converge.services.discovery.service import DiscoveryService
from converge.services.messages.mailbox import PREFIX, mailbox_of
from converge.services.pools import PoolManager
from converge.services.store import epoch as epochs
from converge.services.store.handle import StoreHandle
from converge.services.store.opening import look
from converge.services.store.pages import read_all
from converge.services.tasks.counts import Census, bytes_each
from converge.services.tasks.explain import explain_task
from converge.services.tasks.listing import visit_tasks
from converge.services.tasks.torn import torn_tasks
from converge.threads import in_own_thread

SKEW_SEC = 1.0
"""A clock that differs by more: moments that people give (`not_before`, deadlines) are off by it."""

SKEW_GREATEST_SEC = 60.0
"""Signed and stored items have windows of minutes; with such a clock they begin to be refused."""

LANES_NEAR = 0.8
"""The part of a pool's lanes from which `doctor` warns: the next new combination may be refused."""

WEIGHT_BYTES = 10_000_000_000
"""Ended tasks of a pool that weigh so much fill the memory of a server, and take a backup long."""

LOOK_SEC = 10.0
"""How long tasks that cannot be read are looked for: who claims such a task, or ends it, says so anyway."""

EXPLAINED = 5
"""Lanes of a pool whose first task is explained; the rest is counted."""

SLOW_SEC = 0.1
"""An answer that takes so long is a finding: each claim waits for one."""


async def check_store(store: Store, config: Config, host: PluginHost) -> AsyncIterator[Finding]:
    """Check the opened store.

    Raises:
        StoreError: It could not be read.
    """
    facts = await store_facts(store, config, host)
    backend = host.store_backend(config.store)
    yield fine(
        "store", f"{facts.store} answers in {facts.answer_sec * 1_000:.1f} ms; it has {sum(facts.keys.values()):,} keys"
    )
    if facts.answer_sec > SLOW_SEC:
        yield warning(
            "latency",
            f"the store took {facts.answer_sec:.2f} s to answer",
            "look at its load, and at the network between",
        )
    for one in (
        *_server(backend, facts.durability, await store.inspect()),
        *_clock(facts),
        *_versions(facts),
        *_leases(facts),
    ):
        yield one
    async for one in _set_aside(store):
        yield one
    for one in await check_standing(store):
        yield one
    if (history := await _history(store, config)) is not None:
        yield history
    pools = await PoolManager(store).pools()
    agents = await DiscoveryService(store=store, network=config.network).query(
        DiscoveryQuery(), refresh_from_store=True
    )
    for pool in pools:
        own = [agent for agent in agents if pool.id in agent.pools or pool.id == mailbox_of(agent.id)]
        async for one in _pool(store, pool, facts, own):
            yield one


async def _set_aside(store: Store) -> AsyncIterator[Finding]:
    """List the tasks that were set aside, since nobody could read them."""
    count = 0
    async for id_, torn in torn_tasks(StoreHandle.of(store)):
        count += 1
        if count <= EXPLAINED:
            yield warning(
                "set-aside",
                f"task {id_text(id_)} cannot be read and was taken from {torn.place or 'its place'}: {torn.why}",
                f"converge tasks retry {id_text(id_)}, which makes a copy if its inputs can be read; or tasks purge",
            )
    if count > EXPLAINED:
        yield warning("set-aside", f"so it is with {count - EXPLAINED:,} more tasks", "as above")


async def check_standing(store: Store) -> list[Finding]:
    """List tasks that cannot be read and that nobody holds or has met, for as long as it may take."""
    unread: dict[str, TornRecord] = {}
    seen, until = 0, time.monotonic() + LOOK_SEC

    def see(page: Sequence[Task]) -> bool:
        nonlocal seen
        seen += len(page)
        return time.monotonic() < until

    def note(key: Key, id_: bytes, problem: StoreError) -> None:
        if isinstance(problem, TornRecord) and key[0] is not HELD:
            unread[id_text(id_)] = problem

    await visit_tasks(store, None, None, see, note)
    findings = [
        warning(
            "unreadable", str(problem), f"converge tasks retry {id_}, which sets it aside, and makes a copy if it can"
        )
        for id_, problem in list(unread.items())[:EXPLAINED]
    ]
    if len(unread) > EXPLAINED:
        findings.append(warning("unreadable", f"so it is with {len(unread) - EXPLAINED:,} more tasks", "as above"))
    if time.monotonic() >= until:
        findings.append(fine("unreadable", f"in {LOOK_SEC:g} s {seen:,} tasks were looked at for any that is torn"))
    return findings


async def _history(store: Store, config: Config) -> Finding | None:
    """Compare the store with what the folder of keys remembers of it: processes refuse another one."""
    if not config.identity_dir or not await anyio.Path(config.identity_dir).is_dir():
        return None
    try:
        await in_own_thread(_look_back, config, await epochs.read(store))
    except ConvergeError as problem:
        return error("history", str(problem), "find out what became of its data, then `converge store accept`")
    return fine("history", f"it is the store that {config.identity_dir} remembers, or one that it does not know yet")


def _look_back(config: Config, epoch: epochs.Epoch) -> None:
    folder = KeyFolder.open(Path(config.identity_dir), is_made=False)
    try:
        History(folder, config.store, config.network).floor(epoch.text, epoch.accepted_at)
    finally:
        folder.close()


async def check_place(missing: NoSuchStore, config: Config, host: PluginHost) -> AsyncIterator[Finding]:
    """Check a place where nothing was stored yet.

    Raises:
        StoreError: It cannot be reached, or used.
    """
    told = await look(config.store, plugins=host, options=config.options, network=config.network)
    if told is None:
        yield error("store", str(missing), "fix that first; the contents of the store could not be checked")
        return
    yield warning("store", str(missing), "nothing to do at a place that is new; else look at the URL and the network")
    for one in _server(host.store_backend(config.store), told.durability.name, told):
        yield one


def _server(backend: StoreBackend, class_now: str, told: Inspection | None) -> Iterator[Finding]:
    """Report the store's class of durability, and what it knows of its server."""
    durability, own = (told.durability, told.findings) if told else (Durability[class_now], ())
    said = f"{durability.name}: {_SURVIVES[durability]}"
    if told is None:
        yield fine("server", f"{backend.name} does not tell about its server, nor whether its settings are safe")
    else:
        as_what = f", {told.role}" if told.role else ""
        tested = "" if told.is_tested else "; this version is expected to work, and not tested"
        yield fine("server", f"{told.product}{as_what}{tested}")
    is_explained = any(one.code == "durability" for one in own)
    if is_explained:
        yield fine("class", said)
    elif durability < backend.durability:
        best = backend.durability.name
        mend = f"choose the stricter settings of {backend.name}, and require_durability = {best} to refuse others"
        yield warning("durability", f"{said}; {backend.name} can do {best}", mend)
    else:
        yield fine("durability", said)
    yield from own


_SURVIVES = {
    Durability.D0: "what was acknowledged is lost with the store's process",
    Durability.D1: "what was acknowledged survives kill -9, but no power cut",
    Durability.D2: "what was acknowledged survives a power cut",
    Durability.D3: "what was acknowledged survives the loss of the store's host",
}


def _clock(facts: StoreFacts) -> Iterator[Finding]:
    said = (
        f"store time is {abs(facts.skew_sec):.3f} s {'ahead of' if facts.skew_sec > 0 else 'behind'} this host's clock"
    )
    if abs(facts.skew_sec) <= SKEW_SEC:
        yield fine("clock", said)
    elif abs(facts.skew_sec) <= SKEW_GREATEST_SEC:
        yield warning(
            "clock", said, "leases are not affected; moments that people give are. Let both hosts keep time by NTP"
        )
    else:
        yield error(
            "clock", said, "signed and stored items are refused with such a clock; let both hosts keep time by NTP"
        )


def _versions(facts: StoreFacts) -> Iterator[Finding]:
    yield fine("format", f"format {facts.format} is used in the store; this release knows {facts.newest_format}")
    newer = [name for name in facts.versions if name.isdigit() and int(name) > FORMAT]
    if newer:
        yield error(
            "records",
            f"a newer release has written records of version {', '.join(newer)}; this one reads {FORMAT}",
            "upgrade converge-core here",
        )
    if torn := facts.versions.get("unreadable"):
        yield error(
            "records",
            f"{torn} of the records looked at cannot be read: damaged, or foreign",
            "find out what else writes to this store",
        )


def _leases(facts: StoreFacts) -> Iterator[Finding]:
    alive = [one for one in facts.leases if one.is_alive]
    late = [one for one in facts.leases if not one.is_alive]
    agents = sum(one.agents for one in alive)
    yield fine(
        "leases",
        f"{_count(len(alive), 'process lives', 'processes live')}, with {_count(agents, 'descriptor', 'descriptors')}",
    )
    if late and alive:
        held = sum(one.held for one in late)
        yield warning(
            "lease-late",
            f"{_count(len(late), 'lease', 'leases')} passed and not ended yet, with {held} claims",
            "look again in some seconds",
        )
    elif late:
        text = (
            f"{_count(len(late), 'process', 'processes')} stopped without ending the lease, and none lives that puts "
            "the work back"
        )
        yield warning("lease-late", text, "start a process: its first sweep puts the work back")


async def _pool(
    store: Store, pool: Pool, facts: StoreFacts, agents: Sequence[AgentDescriptor]
) -> AsyncIterator[Finding]:
    count = facts.pools[pool.id]
    waiting = count.live - count.held
    if pool.is_paused and waiting:
        yield warning(
            "paused",
            f'pool "{pool.id}" is paused, and {_count(waiting, "task waits", "tasks wait")}',
            f"converge pools resume {pool.id}",
        )
    if count.failed:
        text = f'{_count(count.failed, "task", "tasks")} of pool "{pool.id}" failed for good'
        yield warning(
            "dead-letters",
            text,
            f"converge tasks list --dead-letters --pool {pool.id}; then tasks retry ID, or tasks purge",
        )
    if count.done:
        yield await _weight(store, pool, count)
    lanes = await _lanes(store, pool.id)
    if len(lanes) >= LANES_NEAR * LANES:
        found = warning if len(lanes) < LANES else error
        text = (
            f'pool "{pool.id}" has {len(lanes):,} of {LANES:,} lanes: combinations of topic, type and required '
            f"capabilities"
        )
        yield found("lanes", text, "use fewer; a lane without tasks is closed after a while")
    if not pool.is_paused:
        async for one in _unclaimable(store, pool, lanes, agents):
            yield one


async def _weight(store: Store, pool: Pool, count: Census) -> Finding:
    """Report the bytes of a pool's ended tasks now, and once its retention is reached at the present rate."""
    each, by_retention = await bytes_each(store, pool, random.random()), 0.0
    now, rates = await store.time(), list[str]()
    for state, kept, keep_sec in (
        (TaskState.COMPLETED, count.completed, pool.keep_completed_sec),
        (TaskState.FAILED, count.failed, pool.keep_failed_sec),
    ):
        (oldest,) = await store.scan([Range(DONE(pool.id, state.value), None, 1)])
        if oldest and kept > 1:
            if await _has_dedup_key(store, oldest[0].key[4]):
                keep_sec = max(keep_sec, pool.dedup_window_sec)
            since = max(1.0, keep_sec - (oldest[0].key[3] - now) / 1_000_000)
            by_retention += kept / since * keep_sec * each
            rates.append(f"{kept / since:,.3g} {state.value.lower()} a second are kept for {keep_sec:,.0f} s")
    limits = [pool.keep_count * each] if pool.keep_count else []
    weighs = min([by_retention, *limits, *([pool.keep_bytes] if pool.keep_bytes else [])])
    said = f'pool "{pool.id}" keeps {_count(count.done, "ended task", "ended tasks")} of about {each:,.0f} bytes'
    if rates:
        said += f": {' and '.join(rates)}, which will weigh {weighs / 1_000_000:,.1f} MB, and what the store adds"
    if weighs < WEIGHT_BYTES:
        return fine("weight", said)
    return warning("weight", said, "keep them for less time, or at most --keep-count or --keep-mb of them")


async def _has_dedup_key(store: Store, id_: bytes) -> bool:
    (spec,) = await store.get([TASK(id_)])
    with suppress(TornRecord, SchemaTooNew):
        return spec is not None and decode(spec.value, Spec, id_text(id_)).dedup_key is not None
    return False


async def _unclaimable(
    store: Store, pool: Pool, lanes: dict[bytes, Lane], agents: Sequence[AgentDescriptor]
) -> AsyncIterator[Finding]:
    """Find ready tasks that none of the agents may claim, and let `explain` say why."""
    claimers = {Claimer.of(agent.capabilities, agent.topics, None) for agent in agents}
    idle = [hash_ for hash_, lane in lanes.items() if all(refusal(lane, claimer) is not None for claimer in claimers)]
    ready: dict[bytes, int] = {}
    for at in range(0, len(idle), LIMITS.ranges):
        some = idle[at : at + LIMITS.ranges]
        ready |= {
            hash_: count
            for hash_, count in zip(some, await store.count([READY(hash_) for hash_ in some]), strict=True)
            if count
        }
    if not ready:
        return
    if pool.id.startswith(PREFIX):
        if not agents:
            mail = _count(sum(ready.values()), "message waits", "messages wait")
            text = f"{mail} in the mailbox of agent {pool.id.removeprefix(PREFIX)}, which does not run"
            yield warning("unclaimable", text, "start it again, under the identity that its identity_dir has")
        return
    if not claimers:
        text = f'{_count(sum(ready.values()), "task is", "tasks are")} ready in pool "{pool.id}", and no agent is in it'
        yield warning("unclaimable", text, f"converge run module:Class --pool {pool.id}")
        return
    for hash_, count in sorted(ready.items(), key=lambda one: -one[1])[:EXPLAINED]:
        (heads,) = await store.scan([Range(READY(hash_), None, 1)])
        if not heads:
            continue
        id_ = id_text(heads[0].key[3])
        try:
            reasons = (await explain_task(StoreHandle.of(store), id_, agents)).reasons
        except ConvergeError:
            continue  # it was claimed or cancelled meanwhile
        text = f'{_count(count, "task is", "tasks are")} ready in pool "{pool.id}" that no agent there may claim'
        text += f" (each needs {_needs(lanes[hash_])}): {'; '.join(reasons)}"
        yield error("unclaimable", text, f"converge tasks explain {id_}; then start an agent that can do it")
    if len(ready) > EXPLAINED:
        yield error(
            "unclaimable", f'so it is with {len(ready) - EXPLAINED} more kinds of task in pool "{pool.id}"', "as above"
        )


async def _lanes(store: Store, pool_id: str) -> dict[bytes, Lane]:
    found: dict[bytes, Lane] = {}
    for entry in await read_all(store, LANE(pool_id)):
        try:
            found[entry.key[2]] = decode(entry.value, Lane, "lane")
        except ConvergeError:
            continue  # `records` reports those
    return found


def _needs(lane: Lane) -> str:
    kinds = [f"{what} {name}" for what, name in (("type", lane.type), ("topic", lane.topic)) if name]
    return ", ".join([*kinds, *lane.capabilities]) or "nothing"


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def is_looked_into(config: Config, host: PluginHost) -> bool:
    """Return whether other processes see the store: a store of this process alone has nothing to check."""
    return Feature.SHARED in host.store_backend(config.store).features
