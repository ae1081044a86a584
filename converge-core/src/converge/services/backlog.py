"""How much of a pool has not ended yet: what a drain waits for."""

from __future__ import annotations

from converge.codec import decode
from converge.contracts.store import LIMITS, Range, Rest
from converge.ids import id_text
from converge.model.keys import HELD, LANE, LATER, ORDER, READY, TASK
from converge.model.task import Spec
from converge.services.around import lease_ids
from converge.services.opened import Opened


async def backlog(opened: Opened, pool_id: str) -> int:
    """Count the pool's tasks that are not terminal: ready, later, waiting behind a key, held. A task that moves meanwhile may count twice or not."""
    store = opened.store
    (lanes,) = await store.scan([Range(LANE(pool_id), None, LIMITS.keys)])
    total = sum(await store.count([ORDER(pool_id), *(READY(lane.key[2]) for lane in lanes)]))
    hashes = {lane.key[2].hex() for lane in lanes}
    after: Rest | None = None
    while True:
        (page,) = await store.scan([Range(LATER(), after, LIMITS.keys)])
        total += sum(entry.value[1:-1].decode() in hashes for entry in page)
        if len(page) < LIMITS.keys:
            break
        after = page[-1].key[1:]
    for lease in await lease_ids(store):
        (held,) = await store.scan([Range(HELD(lease), None, LIMITS.keys)])
        for task in await store.get([TASK(entry.key[3]) for entry in held]):
            total += task is not None and decode(task.value, Spec, id_text(task.key[1])).pool == pool_id
    return total
