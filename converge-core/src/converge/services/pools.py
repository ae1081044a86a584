"""PoolManager: pools as data, and their members."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import logging
from collections.abc import Collection, Sequence
from typing import Any

import attrs

from converge.codec import decode, decode_id, encode, moment_or
from converge.contracts.store import ABSENT, LIMITS, Batch, Conflict, Durability, Entry, Key, Store
from converge.errors import InvalidValue, PoolClosed, SchemaTooNew, StoreBusy, TornRecord, Unsupported
from converge.ids import check_name
from converge.model.keys import JOINED, MEMBER, POOL
from converge.model.pool import KEEP_FORMAT, KEEP_GREATEST, Pool
from converge.services.store.handle import PoolSeen, StoreHandle
from converge.services.store.lease import Lease
from converge.services.store.limits import timed
from converge.services.store.pages import read_all
from converge.services.store.patience import PATIENCE_SEC, attempts

log = logging.getLogger("converge.pools")

REMOVED = 500
"""Members that end in one step with their places on the allow-list: three operations each, of a batch's 2,000."""

PRIORITY_STEP_GREATEST_SEC = 86_400.0 * 365


class PoolManager:
    """Creates, reads and changes pools, and keeps their members. One record rules every process alike."""

    def __init__(self, store: Store) -> None:
        self._handle = StoreHandle.of(store)
        self._store = self._handle.store

    @timed
    async def create_pool(
        self, pool: Pool | dict[str, Any], *, secret: str | None = None, timeout: float | None = None
    ) -> bool:
        """Create the pool and return whether it is new; an existing one is left as it is, members and settings alike.

        Args:
            pool: A `Pool`, or a mapping with its attributes.
            secret: The join secret, for admission `secret`; only a salted hash of it is stored.

        Raises:
            InvalidValue, InvalidName: Which attribute, and what it should be.
            Unsupported: The pool requires a durability class that this store does not have.
        """
        pool = _checked(pool)
        _check_secret(secret)
        if (secret is not None) != (pool.admission == "secret"):
            raise InvalidValue("secret", "***" if secret else None, 'a secret exactly if the admission is "secret"')
        if secret is not None:
            pool = attrs.evolve(pool, secret_hash=_hash(secret, self._handle.env.entropy(16)))
        if pool.require_durability and self._store.durability < Durability[pool.require_durability]:
            raise Unsupported(
                f'pool "{pool.id}" requires durability {pool.require_durability}, this store has '
                f"{self._store.durability.name}; "
                "choose another store, or its stricter settings"
            )
        if pool.keeps_less:
            await self._handle.require_format(KEEP_FORMAT)
        key = POOL(pool.id)
        (outcome,) = await (await self._handle.commits()).commit([Batch([(key, ABSENT)], [(key, pool.encoded())])])
        self._handle.pools.pop(pool.id, None)
        return not isinstance(outcome, Conflict)

    @timed
    async def get(self, pool_id: str, *, timeout: float | None = None) -> Pool:
        """Return the pool.

        Raises:
            NoSuchPool: With the nearest name.
        """
        return (await self._handle.pool(pool_id, is_fresh=True)).pool

    @timed
    async def pools(self, *, timeout: float | None = None) -> list[Pool]:
        """Return all pools, by id; one that cannot be read is left out, and logged."""
        pools = []
        for entry in await read_all(self._store, POOL()):
            try:
                pools.append(decode(entry.value, Pool, f"pool {entry.key[1]}"))
            except (TornRecord, SchemaTooNew) as error:
                log.error("a pool is left out: %s", error)
        return pools

    @timed
    async def set_paused(self, pool_id: str, *, is_paused: bool, timeout: float | None = None) -> bool:
        """Pause or resume: claims check the pool's revision, so it holds from the next on. Return whether it changed.

        Raises:
            NoSuchPool: With the nearest name.
        """
        async for _ in attempts(self._handle.env):
            seen = await self._handle.pool(pool_id, is_fresh=True)
            if seen.pool.is_paused == is_paused:
                return False
            changed = attrs.evolve(seen.pool, is_paused=is_paused)
            batch = Batch([(POOL(pool_id), seen.revision)], [(POOL(pool_id), changed.encoded())])
            (outcome,) = await (await self._handle.commits()).commit([batch], wake=[f"pool.{pool_id}"])
            if not isinstance(outcome, Conflict):
                self._handle.pools.pop(pool_id, None)
                return True
        raise StoreBusy(f"pool {pool_id} kept changing for {PATIENCE_SEC:g} s; try again")

    @timed
    async def change_allowed(
        self, pool_id: str, *, add: Sequence[str] = (), remove: Sequence[str] = (), timeout: float | None = None
    ) -> bool:
        """Change the allow-list; agents that are removed lose their membership at once. Return whether it changed.

        Raises:
            NoSuchPool: With the nearest name.
            InvalidName: An agent's.
            InvalidValue: The pool's admission is not `allow`, so the list would not count; or these are too many agents
                at a time.
        """
        new, gone = ([check_name("agent", agent_id) for agent_id in dict.fromkeys(some)] for some in (add, remove))
        if len(new) + len(gone) > LIMITS.keys:
            raise InvalidValue("agents", f"{len(new) + len(gone):,} agents", f"at most {LIMITS.keys:,} at a time")
        is_changed = False
        async for _ in attempts(self._handle.env):
            seen = await self._handle.pool(pool_id, is_fresh=True)
            if seen.pool.admission != "allow":
                raise InvalidValue(
                    f"pool {pool_id}: admission",
                    seen.pool.admission,
                    '"allow": the list of another one would not count',
                )
            allow = tuple(agent_id for agent_id in dict.fromkeys((*seen.pool.allow, *new)) if agent_id not in gone)
            found = (
                [
                    entry
                    for entry in await self._store.get([MEMBER(pool_id, agent_id) for agent_id in gone])
                    if entry is not None
                ]
                if gone
                else []
            )
            if allow == seen.pool.allow and not found:
                return is_changed
            # In one step with the members' end: a claim that saw them as members is of the pool's old revision. The
            # last look finds who joined just before this step; after it nobody can.
            members = found[:REMOVED]
            checks = [(POOL(pool_id), seen.revision), *((entry.key, entry.revision) for entry in members)]
            deletes = [key for entry in members for key in (entry.key, _joined(entry))]
            batch = Batch(checks, [(POOL(pool_id), attrs.evolve(seen.pool, allow=allow).encoded())], deletes)
            (outcome,) = await (await self._handle.commits()).commit([batch], wake=[f"pool.{pool_id}"])
            self._handle.pools.pop(pool_id, None)
            is_changed |= not isinstance(outcome, Conflict)
        raise StoreBusy(f"pool {pool_id} kept changing for {PATIENCE_SEC:g} s; try again")

    @timed
    async def join_pool(
        self, agent_id: str, pool_id: str, *, secret: str | None = None, timeout: float | None = None
    ) -> bool:
        """Make the agent a member, as long as this process's lease lives; return whether it was none before.

        Raises:
            NoSuchPool: With the nearest name.
            PoolClosed: The pool does not admit this agent.
            LeaseEnded: This process has lost its lease.
        """
        return (await self.join_many([agent_id], pool_id, secret=secret))[0]

    @timed
    async def join_many(
        self, agent_ids: Sequence[str], pool_id: str, *, secret: str | None = None, timeout: float | None = None
    ) -> list[bool]:
        """Make the agents members, in few calls; return for each whether it was none before.

        Raises: As `join_pool`; then none of the agents has joined.
        """
        if not agent_ids:
            return []
        lease = await self._handle.lease()
        is_new: dict[str, bool] = {}
        todo = [check_name("agent", agent_id) for agent_id in dict.fromkeys(agent_ids)]
        _check_secret(secret)
        async for _ in attempts(self._handle.env):
            seen = await self._handle.pool(pool_id, is_fresh=True)
            _admit(seen.pool, todo, secret)
            todo = await self._join(todo, seen, lease, is_new)
            if not todo:
                return [is_new[agent_id] for agent_id in agent_ids]
        raise StoreBusy(
            f"pool {pool_id} kept changing for {PATIENCE_SEC:g} s while {len(todo)} agents joined; try again"
        )

    async def _join(self, agent_ids: list[str], seen: PoolSeen, lease: Lease, is_new: dict[str, bool]) -> list[str]:
        """Try each once; return those that must be tried again."""
        pool_id, again = seen.pool.id, list[str]()
        commits = await self._handle.commits()
        for at in range(0, len(agent_ids), LIMITS.batches):
            some = agent_ids[at : at + LIMITS.batches]
            batches, asked = [], []
            for agent_id, member in zip(
                some, await self._store.get([MEMBER(pool_id, agent_id) for agent_id in some]), strict=True
            ):
                is_new.setdefault(agent_id, member is None)
                if member is not None and member.value == encode(lease.id.hex()):
                    continue
                checks = [
                    (POOL(pool_id), seen.revision),
                    lease.check(),
                    (MEMBER(pool_id, agent_id), member.revision if member else ABSENT),
                ]
                puts = [(MEMBER(pool_id, agent_id), encode(lease.id.hex())), (JOINED(lease.id, pool_id, agent_id), b"")]
                batches.append(Batch(checks, puts))
                asked.append(agent_id)
            outcomes = zip(asked, await commits.commit(batches), strict=True)
            refused = {agent_id: outcome for agent_id, outcome in outcomes if isinstance(outcome, Conflict)}
            if refused:  # one look at the lease, however many name it
                await lease.check_not_ended(Conflict(tuple({key for one in refused.values() for key in one.keys})))
            again += refused
        return again

    @timed
    async def leave_pool(self, agent_id: str, pool_id: str, *, timeout: float | None = None) -> bool:
        """End the membership; return whether there was one.

        Raises:
            NoSuchPool: With the nearest name.
        """
        key = MEMBER(check_name("pool", pool_id), check_name("agent", agent_id))
        commits = await self._handle.commits()
        async for _ in attempts(self._handle.env):
            seen = await self._handle.pool(pool_id, is_fresh=True)
            (member,) = await self._store.get([key])
            if member is None:
                return False
            checks, puts = [(key, member.revision)], list[tuple[Key, bytes]]()
            if seen.pool.admission != "open":
                # A claim checks the pool's revision: one that saw the member is of the old one, and takes nothing.
                checks.append((POOL(pool_id), seen.revision))
                puts.append((POOL(pool_id), seen.pool.encoded()))
            (outcome,) = await commits.commit([Batch(checks, puts, [key, _joined(member)])])
            if not isinstance(outcome, Conflict):
                return True
        raise StoreBusy(f"pool {pool_id} kept changing for {PATIENCE_SEC:g} s; try again")

    @timed
    async def members(self, pool_id: str, *, timeout: float | None = None) -> list[str]:
        """Return the ids of the members, in order.

        Raises:
            NoSuchPool: With the nearest name: an empty list would hide a typo.
        """
        await self._handle.pool(pool_id)
        return [entry.key[2] for entry in await read_all(self._store, MEMBER(pool_id))]


async def note_rest(handle: StoreHandle, agent_id: str, pools: Sequence[str], until: int) -> None:
    """Write until when an agent of this process rests (store time, microseconds; 0: it works), for listings.

    Raises:
        LeaseEnded, StoreError: It was not written.
    """
    lease, value = await handle.lease(), encode(until) if until else b""
    found = await handle.store.get([JOINED(lease.id, pool_id, agent_id) for pool_id in pools])
    batches = [
        Batch([(entry.key, entry.revision), lease.check()], [(entry.key, value)])
        for entry in found
        if entry is not None and entry.value != value
    ]
    await (await handle.commits()).commit(batches)


async def rests_of(store: Store, agents: Sequence[tuple[str, str, Sequence[str]]]) -> dict[str, int]:
    """Return until when agents rest, each given with its lease (hex) and its pools; those that work are left out.

    Raises:
        StoreError: As `Store.get`.
    """
    keys = [JOINED(bytes.fromhex(lease), pool_id, id_) for id_, lease, pools in agents if lease for pool_id in pools]
    found = [entry for at in range(0, len(keys), LIMITS.keys) for entry in await store.get(keys[at : at + LIMITS.keys])]
    rests = {entry.key[3]: moment_or(entry.value, 0) for entry in found if entry is not None}
    return {id_: until for id_, until in rests.items() if until}


def _joined(member: Entry) -> Key:
    """Return the key under its process's lease that says the same as the member's entry."""
    _, pool_id, agent_id = member.key
    return JOINED(decode_id(member.value, f"member {agent_id} of pool {pool_id}"), pool_id, agent_id)


def _checked(pool: Pool | dict[str, Any]) -> Pool:
    if isinstance(pool, dict):
        known = [field.name for field in attrs.fields(Pool)]
        for name in pool:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f'no such attribute; did you mean "{near[0]}"?' if near else f"one of {', '.join(known)}"
                raise InvalidValue(f"pool.{name}", pool[name], hint)
        if "id" not in pool:
            raise InvalidValue("pool.id", None, "the pool's name")
        pool = Pool(**pool)
    if not isinstance(pool, Pool):
        raise InvalidValue("pool", pool, "a Pool, or a mapping with its attributes")
    check_name("pool", pool.id)
    if pool.admission not in ("open", "allow", "secret"):
        raise InvalidValue("pool.admission", pool.admission, "open, allow or secret")
    for name in ("priority_step_sec", "dedup_window_sec", "keep_completed_sec", "keep_failed_sec"):
        value = getattr(pool, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= PRIORITY_STEP_GREATEST_SEC
        ):
            raise InvalidValue(f"pool.{name}", value, "seconds, from 0 to a year")
    for name in ("keep_count", "keep_bytes"):
        value = getattr(pool, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= KEEP_GREATEST:
            raise InvalidValue(f"pool.{name}", value, "a whole number; 0: without a limit")
    required: object = pool.require_durability
    if not isinstance(required, str) or (required and required not in Durability.__members__):
        raise InvalidValue("pool.require_durability", pool.require_durability, "D0, D1, D2 or D3")
    if not isinstance(pool.is_paused, bool):
        raise InvalidValue("pool.is_paused", pool.is_paused, "True or False")
    allow: object = pool.allow
    if isinstance(allow, str) or not isinstance(allow, Collection):
        raise InvalidValue("pool.allow", allow, "a sequence of agent ids")
    # What of a hash is given is not looked at: `create_pool` makes it of the secret.
    return attrs.evolve(pool, allow=tuple(check_name("agent", agent) for agent in allow), secret_hash="")


def _admit(pool: Pool, agent_ids: Sequence[str], secret: str | None) -> None:
    for agent_id in agent_ids:
        if pool.admission == "allow" and agent_id not in pool.allow:
            raise PoolClosed(pool.id, agent_id, "it is not on the pool's allow-list")
    if pool.admission == "secret":
        salt = bytes.fromhex(pool.secret_hash[:32])
        if secret is None or not hmac.compare_digest(_hash(secret, salt), pool.secret_hash):
            raise PoolClosed(pool.id, agent_ids[0], "the join secret is missing or wrong")


def _check_secret(secret: object) -> None:
    if secret is not None and not (isinstance(secret, str) and secret and secret.isprintable()):
        raise InvalidValue("secret", "***", "text of printable characters")


def _hash(secret: str, salt: bytes) -> str:
    # scrypt at the cost its RFC (7914) suggests for interactive logins: a reader of the store cannot try many secrets.
    return salt.hex() + hashlib.scrypt(secret.encode(), salt=salt, n=2**14, r=8, p=1).hex()
