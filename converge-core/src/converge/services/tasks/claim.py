"""Claims of one group of agents: which lanes it may take from, its takes, and their results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from converge.codec import FORMAT, decode, decoder, moment_or, parse_hash
from converge.contracts.store import (
    LIMITS,
    Batch,
    Channel,
    Check,
    Conflict,
    Key,
    Range,
    Rest,
    Store,
    Take,
    Taken,
    Turned,
)
from converge.errors import (
    ConvergeError,
    InputError,
    LeaseEnded,
    NoSuchPool,
    NotApplied,
    PoolClosed,
    SchemaTooNew,
    StaleClaim,
    StoreError,
    TornRecord,
)
from converge.ids import id_text
from converge.machines.events import Released
from converge.machines.lane import Lane
from converge.machines.match import Claimer, lane_news, refusal, watched_news
from converge.model.keys import HELD, INT_MIN, LANE, MEMBER, POOL, READY, STATE, TASK
from converge.model.place import Found, Held, key_of
from converge.model.task import Spec, State
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages, get_all, parts, read_all
from converge.services.tasks.finish import Finishes
from converge.services.tasks.torn import put_away

log = logging.getLogger("converge.claims")

FROM_START_EVERY = 8
"""How often a take looks from the start of its lanes, not from the head seen last: smaller ranks may be back."""

LEASE_WAS_LOST = "its process lost its lease while it was being claimed"
"""Why a claim goes back that nobody has begun."""

Unread = tuple[Key, int, bytes, StoreError]
"""A claim that cannot be read or ended: key, token, task id and why."""

_FIRST: Rest = (INT_MIN, bytes(16))
"""Below every rest of a ready key."""


class _LaneSeen:
    """One lane that the group may take from, and the head seen last (None: it was empty)."""

    __slots__ = ("head", "lane", "pool_id")

    def __init__(self, pool_id: str, lane: Lane) -> None:
        self.pool_id, self.lane = pool_id, lane
        self.head: Rest | None = None


class Claims:
    """The takes of one group: agents of one process with the same pools, capabilities, topics and types.

    `agent_ids` are the agents that it claims for: each must be a member of each pool that is not open; `on_missing` is
    told of those that are not, and a group that has it goes on without a pool that is gone. `look` reads the lanes;
    `take` makes the next take, or None where nothing is known to be ready; `taken` turns its answer into claims.
    """

    def __init__(
        self,
        handle: StoreHandle,
        agent_id: str,
        pools: Sequence[str],
        claimer: Claimer,
        on_missing: Callable[[str, Sequence[str]], None] | None = None,
        *,
        unread: list[Unread] | None = None,
    ) -> None:
        self.agent_ids: Collection[str] = (agent_id,)
        self.claimer = claimer
        self._on_missing = on_missing
        self._left_out = (TornRecord, SchemaTooNew) if on_missing is None else (TornRecord, SchemaTooNew, NoSuchPool)
        self.pools = tuple(pools)
        self._handle = handle
        self._lanes: dict[bytes, _LaneSeen] = {}
        self._checks: dict[str, Check] = {}
        # Pool: the revision at which these agents were seen to be members.
        self._admitted: dict[str, tuple[int, frozenset[str]]] = {}
        self.paused: frozenset[str] = frozenset()
        """Those of the pools that were seen to be paused."""
        self._takes = 0
        self._logged: set[str] = set()
        self.unread: list[Unread] = [] if unread is None else unread
        """Claims that cannot be read or ended; see `put_unread_away`."""
        self._steady_channels = [
            channel for pool in self.pools for channel in (f"pool.{pool}", *watched_news(pool, claimer))
        ]

    async def look(self) -> bool:
        """Read pools and lanes again, with the head of each lane that is eligible; return whether anything is ready.

        Raises:
            NoSuchPool, PoolClosed: One of the pools is not there, or does not admit the agent.
            TornRecord, SchemaTooNew: The record of none of the pools can be read; one that can't does not keep the
                others waiting.
        """
        # What was seen last stays in force, checks and lanes together, until all is read: a look that fails half way
        # must not leave a take unchecked.
        checks: dict[str, Check] = {}
        paused: set[str] = set()
        lanes: dict[bytes, _LaneSeen] = {}
        torn: list[ConvergeError] = []
        for pool_id in self.pools:
            try:
                seen = await self._handle.pool(pool_id, is_fresh=True)
            except self._left_out as error:
                torn.append(error)
                self._log_once(error)
                continue
            await self._check_admitted(pool_id, seen.revision)
            if seen.pool.is_paused:
                paused.add(pool_id)
            else:
                checks[pool_id] = POOL(pool_id), seen.revision
                await self._read_lanes(pool_id, lanes)
        if torn and len(torn) == len(self.pools):
            raise torn[0]
        await self._read_heads(lanes)
        self._checks, self._lanes, self.paused = checks, lanes, frozenset(paused)
        return self.has_ready

    async def _read_lanes(self, pool_id: str, lanes: dict[bytes, _LaneSeen]) -> None:
        for entry in await read_all(self._handle.store, LANE(pool_id)):
            try:
                lane = decode(entry.value, Lane, f"lane {entry.key[2].hex()} of pool {pool_id}")
            except (TornRecord, SchemaTooNew) as error:
                self._log_once(error)
                continue
            if refusal(lane, self.claimer) is None and entry.key[2] not in self._handle.newer_lanes:
                lanes[entry.key[2]] = _LaneSeen(pool_id, lane)

    def _log_once(self, error: ConvergeError) -> None:
        if str(error) not in self._logged:
            self._logged.add(str(error))
            log.error("nothing is claimed from there, other work goes on: %s", error)

    async def _read_heads(self, lanes: dict[bytes, _LaneSeen]) -> None:
        hashes = list(lanes)
        for some in parts(hashes, LIMITS.ranges):
            pages = await self._handle.store.scan([Range(READY(lane), None, 1) for lane in some])
            for lane, page in zip(some, pages, strict=True):
                lanes[lane].head = page[0].key[2:] if page else None

    async def _check_admitted(self, pool_id: str, revision: int) -> None:
        pool = self._handle.pools[pool_id].pool
        if pool.admission == "open":
            return
        seen, members = self._admitted.get(pool_id, (revision, frozenset()))
        if seen != revision:
            members = frozenset()
        agent_ids = tuple(self.agent_ids)
        asked = [agent_id for agent_id in agent_ids if agent_id not in members]
        if missing := await not_members(self._handle.store, pool_id, asked):
            if self._on_missing is not None:
                self._on_missing(pool_id, missing)
            raise PoolClosed(pool_id, missing[0], "it has not joined the pool; use join_pool")
        self._admitted[pool_id] = revision, frozenset(agent_ids)

    @property
    def has_ready(self) -> bool:
        """Whether some lane was seen to have a ready task."""
        return any(lane.head is not None for lane in self._lanes.values())

    def assume_ready(self) -> bool:
        """Make the next take ask every known lane from its start; return whether any lane is known."""
        for lane in self._lanes.values():
            lane.head = _FIRST
        self._takes = 0
        return bool(self._lanes)

    @property
    def channels(self) -> list[str]:
        """What to watch: the eligible lanes, the news of others that would be, and what is done to the pools."""
        return [f"lane.{lane.hex()}" for lane in self._lanes] + self._steady_channels

    @property
    def ready_channels(self) -> set[str]:
        """What others watch for the lanes in which something is known to be left, whether they know the lane or not."""
        left = [(hash_, seen.lane) for hash_, seen in self._lanes.items() if seen.head not in (None, _FIRST)]
        return {channel for hash_, lane in left for channel in (f"lane.{hash_.hex()}", *lane_news(lane))}

    async def next_take(self, limit: int, nonce: bytes) -> Take | None:
        """Return the take of the best tasks over the best 32 lanes of the pool that has the best of all, or None if
        nothing is known to be ready. No take is of two pools, so that each pool may be kept elsewhere.

        Raises:
            LeaseEnded: This process has lost its lease.
        """
        for newer in self._handle.newer_lanes:
            self._lanes.pop(newer, None)
        lanes = [(lane.head, hash_) for hash_, lane in self._lanes.items() if lane.head is not None]
        if not lanes:
            return None
        pool_id = self._lanes[min(lanes)[1]].pool_id
        if len(self._checks) > 1:
            lanes = [one for one in lanes if self._lanes[one[1]].pool_id == pool_id]
        if len(lanes) > LIMITS.ranges:
            lanes = sorted(lanes)[: LIMITS.ranges]
        lease = await self._handle.lease()
        from_start = self._takes % FROM_START_EVERY == 0
        self._takes += 1
        return Take(
            [Range(READY(hash_), None if from_start else _before(head)) for head, hash_ in lanes],
            min(limit, LIMITS.taken),
            HELD(lease.id),
            (nonce,),
            [lease.check(), self._checks[pool_id]],
            (TASK, STATE),
        )

    def taken(self, take: Take, answer: Taken) -> list[Found]:
        """Return the claims, and remember the heads that are left."""
        for range_, head in zip(take.ranges, answer.heads, strict=True):
            lane = self._lanes.get(range_.prefix[1])
            if lane is not None:
                lane.head = head
        place = Held(take.to[1], take.tail[0], answer.revision, answer.time)
        self._handle.saw_time(answer.time)
        found = []
        for rest, (raw_spec, raw_state) in zip(answer.rests, answer.also, strict=True):
            id_ = rest[-1]
            try:
                found.append(read_found(id_, raw_spec, raw_state, place))
            except (TornRecord, SchemaTooNew) as error:
                self.unread.append((HELD(place.lease, *rest, place.nonce), place.token, id_, error))
        return found

    def put_away_later(self, found: Found, error: StoreError) -> None:
        """Record a claim that cannot be worked on, or ended, for what stands in the store."""
        assert isinstance(found.place, Held), "only a claim is put away"
        self.unread.append((key_of(found), found.place.token, found.id, error))

    async def put_unread_away(self) -> None:
        """Set aside claims that cannot be read, and release those of a newer format: neither may stay held.

        Raises:
            StoreError: As `Store.commit`; they are tried again by the next call.
        """
        while self.unread:
            one = self.unread.pop()
            try:
                await put_away(self._handle, *one)
            except (TornRecord, SchemaTooNew) as error:
                self._log_once(error)
            except BaseException:
                self.unread.append(one)
                raise

    async def refused(self, conflict: Conflict) -> None:
        """Handle a take whose checks failed: read the pools again, or find that the lease has ended.

        Raises:
            LeaseEnded: It has.
        """
        lease = await self._handle.lease()
        await lease.check_not_ended(conflict)
        await self.look()


async def not_members(store: Store, pool_id: str, agent_ids: Sequence[str]) -> list[str]:
    """Return those of the agents that are not members of the pool.

    Raises:
        StoreError: As `Store.get`.
    """
    found = await get_all(store, [MEMBER(pool_id, agent_id) for agent_id in agent_ids])
    return [agent_id for agent_id, member in zip(agent_ids, found, strict=True) if member is None]


async def turn(
    handle: StoreHandle,
    batches: Sequence[Batch],
    take: Take | None,
    *,
    wake: Collection[Channel] = (),
    are_apart: bool = False,
) -> Turned:
    """Commit and take as `Commits.turn` does. A take whose answer was lost, or whose caller was cancelled, is noted in
    the handle: `settle_takes` before anybody takes again.

    Raises: As `Commits.turn`.
    """
    commits = await handle.commits()
    try:
        return await commits.turn(batches, take, wake=wake, are_apart=are_apart)
    except (NotApplied, InputError):
        raise
    except BaseException:
        if take is not None:
            handle.unsettled[take.tail[0]] = take.to[1]
        raise


async def settle_takes(handle: StoreHandle) -> None:
    """Make sure that the takes whose answers were lost hold nothing, and never will: that is released, uncounted.

    What they hold under a lease that has ended is the reaper's.

    Raises:
        StoreError: As `Store.commit`; what is not settled stays noted.
    """
    async with handle.settling:
        lease = handle.lease_opened
        for nonce, lease_id in tuple(handle.unsettled.items()):
            if lease is None or lease_id != lease.id:
                del handle.unsettled[nonce]
        nonces = set(handle.unsettled)
        if lease is None or not nonces or lease.remaining_sec() <= 0:
            return  # of a lease that has run out but is renewed yet they stay noted
        try:
            await lease.touch()
            await _release_taken(handle, lease.id, nonces)
        except LeaseEnded:
            log.warning("lease %s has ended: what its last takes took goes back with it", lease.id.hex())
        for nonce in nonces:
            handle.unsettled.pop(nonce, None)


async def _release_taken(handle: StoreHandle, lease_id: bytes, nonces: set[bytes]) -> None:
    finishes = Finishes(handle)
    async for page in Pages(handle.store, HELD(lease_id)):
        for entry in page:
            if entry.key[4] not in nonces:
                continue
            task, state = await handle.store.get([TASK(entry.key[3]), STATE(entry.key[3])])
            place = Held(lease_id, entry.key[4], entry.revision, moment_or(entry.value, 0))
            try:
                await finishes.finish(
                    read_found(entry.key[3], task and task.value, state and state.value, place),
                    Released("", "its claim was never answered"),
                )
            except StaleClaim as error:
                log.warning("%s", error)  # it was cancelled meanwhile
            except (TornRecord, SchemaTooNew) as error:
                await put_away(handle, entry.key, entry.revision, entry.key[3], error)


def read_found(id_: bytes, raw_spec: bytes | None, raw_state: bytes | None, place: Held) -> Found:
    """Return the task that a claim, or a sweep, read with its place.

    Raises:
        TornRecord, SchemaTooNew: It cannot be read.
    """
    if raw_spec is None:
        raise TornRecord(f"task {id_text(id_)}", "its specification is missing")
    try:
        spec = _decode_spec(raw_spec)
        parse_hash(spec.lane)
        is_plain = spec.v <= FORMAT and spec.ordering_key is None
    except (ValueError, RecursionError):
        is_plain = False
    if not is_plain:
        spec = decode(raw_spec, Spec, id_text(id_))  # checks all of it, and says what is wrong
    return Found(id_, spec, None if raw_state is None else decode(raw_state, State, id_text(id_)), place)


_decode_spec = decoder(Spec)  # a claim decodes one a task


def _before(head: Rest | None) -> Rest | None:
    """Return the greatest rest below `head`, so that a range after it begins with `head`."""
    if head is None or head == _FIRST:
        return None
    rank, id_ = head
    number = int.from_bytes(id_, "big")
    return (rank - 1, b"\xff" * 16) if number == 0 else (rank, (number - 1).to_bytes(16, "big"))
