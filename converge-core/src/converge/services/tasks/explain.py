"""Why one task is, or is not, claimed: what the explanation needs, read from the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from converge.codec import decode, decode_id, moment_or, parse_hash
from converge.errors import NoSuchPool
from converge.ids import id_bytes, id_text
from converge.machines.explain import Beside, Explanation, Group, Holder, explain
from converge.machines.match import Claimer
from converge.model.descriptor import AgentDescriptor
from converge.model.keys import ACTIVE, DEAD, EXPIRY, KEY, LEASE
from converge.model.place import Held, KeyRow, Place
from converge.model.task import Spec
from converge.services.store.handle import StoreHandle
from converge.services.store.processes import id_of_node
from converge.services.tasks.surroundings import find


async def explain_task(handle: StoreHandle, task_id: str, agents: Sequence[AgentDescriptor]) -> Explanation:
    """Return why the task is or is not claimed; `agents` are those that live, of any pool.

    Raises:
        NoSuchTask: There is none.
    """
    id_ = id_bytes("task id", task_id)
    spec, state, place = await find(handle.store, id_)
    now = await handle.store.time()
    try:
        pool = (await handle.pool(spec.pool, is_fresh=True)).pool
    except NoSuchPool:
        pool = None
    groups = _groups([agent for agent in agents if spec.pool in agent.pools])
    holder = await _holder(handle, place, now) if isinstance(place, Held) else None
    beside = Beside(pool=pool, groups=groups, holder=holder, active=await _active(handle, id_, spec, place))
    return explain(spec, state, place, beside, now)


def _groups(agents: Sequence[AgentDescriptor]) -> list[Group]:
    counts = Counter((agent.name, Claimer.of(agent.capabilities, agent.topics, None)) for agent in agents)
    return [Group(name=name, count=count, claimer=claimer) for (name, claimer), count in counts.items()]


async def _active(handle: StoreHandle, id_: bytes, spec: Spec, place: Place | None) -> str:
    if spec.ordering_key is None or place is None:
        return ""
    row, apart = await handle.store.get([KEY(spec.pool, spec.ordering_key), ACTIVE(spec.pool, spec.ordering_key)])
    active = "" if row is None else decode(row.value, KeyRow, "key").active
    if apart is not None:
        active = decode_id(apart.value, f"active {spec.pool}/{spec.ordering_key}").hex()
    return "" if active in ("", id_.hex()) else id_text(parse_hash(active))


async def _holder(handle: StoreHandle, place: Held, now: int) -> Holder | None:
    lease, expiry, dead = await handle.store.get([LEASE(place.lease), EXPIRY(place.lease), DEAD(place.lease)])
    if lease is None:
        return None if dead is None else Holder(lease=place.lease.hex(), is_alive=False)
    record = decode(lease.value, dict[str, Any], "lease")
    return Holder(
        lease=place.lease.hex(),
        node=id_of_node(record.get("node")),
        endpoints=tuple(map(str, record.get("endpoints", ()))),
        host=str(record.get("host", "")),
        pid=pid if type(pid := record.get("pid")) is int else 0,
        is_alive=expiry is not None and moment_or(expiry.value, 0) >= now,
    )
