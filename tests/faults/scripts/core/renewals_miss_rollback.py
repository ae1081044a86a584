"""G15: an idle worker never notices that the store's history went back: the revisions of its lease's renewals are compared with nothing.

The renewal runs on a handle of its own, past `Commits`: neither is its revision remembered, nor does it check the epoch. After a lossy failover (here: the
store is put back to a snapshot that is one renewal old) it even meets its own key at a *lower* revision than it wrote itself, and goes on from there
(`Lease._look_again`). "A client ... whose commit gets a revision not above one that it had seen before it began, stops claiming and raises StoreRolledBack".
"""
import copy, sys, anyio, logging
from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.contracts.store import Batch
from converge.errors import StoreRolledBack
from converge.model.keys import NOTICE
from converge.services.store.lease import LeaseSettings
from converge.services.store.handle import StoreHandle
logging.disable(logging.CRITICAL)

async def main() -> int:
    store = MemoryStore()
    opened = StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=1.5))
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=0.1)
    await opened.lease()
    lease, core = opened.lease_opened, store._core
    while lease.renewals < 1: await anyio.sleep(0.01)
    with core.lock: snapshot = (dict(core.entries), core.revision)
    async with store.reopen() as other:  # others are busy: acknowledged writes that the failover will lose
        for n in range(500):
            await other.commit([Batch((), [(NOTICE(bytes(16), n.to_bytes(16, "big")), b"")])])
        lost = await TaskManager(other).submit(Task(pool_id="p"))
    while lease.renewals < 2: await anyio.sleep(0.01)
    seen = lease._expiry_revision
    with core.lock:  # the replica that takes over has the snapshot
        core.entries.clear(); core.entries.update(snapshot[0]); core.revision = snapshot[1]; core._families.clear()
        for key in core.entries:
            if key[0] not in ("task", "state"): core._index(key).add(key)
    renewals = lease.renewals
    with anyio.move_on_after(6):
        while lease.renewals < renewals + 2: await anyio.sleep(0.02)
    now = lease._expiry_revision
    try:
        new = await tasks.submit(Task(pool_id="p")); raised = False
    except StoreRolledBack:
        raised = True
    rolled = (await opened.commits()).is_rolled_back
    print(f"renewal was committed at revision {seen}; after the failover renewals at {now} are taken as good; a submit then raises StoreRolledBack: {raised}")
    await opened.close()
    if rolled: print("ok"); return 0
    print("FAULT: the process saw revision", seen, "of its own commit, later commits at lower ones, and noticed nothing"); return 1
sys.exit(anyio.run(main))
