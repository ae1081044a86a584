"""G1, G2, G6: after a suspend (or any stretch that CLOCK_MONOTONIC does not count) a process believes an old store time for up to 10 s.

`StoreHandle.now()` is store time as read last plus CLOCK_MONOTONIC, which stands still while a laptop sleeps or a VM is frozen. What ends in those seconds is
kept from a moment that has long passed: `done/.../<until>` is already due, the next sweep of anybody removes task and result at once, and the dedup key
with them. The lease's own deadline runs on the same clock, so handlers go on under a lease that ended hours ago until the next renewal.
"""
import sys, anyio, logging
from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.errors import NoSuchTask
from converge.services.store.handle import StoreHandle
from converge.services.tasks.sweep import Sweep
logging.disable(logging.CRITICAL)
SLEPT = 2 * 3600

async def main() -> int:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p", keep_completed_sec=3600, dedup_window_sec=3600))
    tasks = TaskManager(store)
    id_ = await tasks.submit(Task(pool_id="p", dedup_key="once"))
    (task,) = await tasks.claim("a", ["p"])
    # The machine sleeps for two hours: the store's clock goes on (a server's, or CLOCK_BOOTTIME of `file`), this process's monotonic clock does not.
    store._core._offset += SLEPT * 1_000_000_000
    lease = StoreHandle.of(store).lease_opened
    print(f"just awake: by its own account the lease has {lease.remaining_sec():.1f} s left, 2 h after it ended")
    await tasks.complete(task, "precious")  # nobody has swept yet: everybody slept
    async with store.reopen() as other:
        await Sweep(StoreHandle.of(other)).page()  # any process's next sweep
        beside = TaskManager(other)
        try:
            await beside.get(id_); gone = False
        except NoSuchTask:
            gone = True
        again = await beside.submit(Task(pool_id="p", dedup_key="once"))
    await StoreHandle.of(store).close()
    if gone or again != id_:
        print(f"FAULT: completed a moment ago, kept for 3600 s: removed by the next sweep: {gone}; same dedup key gives the same task: {again == id_}")
        return 1
    print("ok"); return 0
sys.exit(anyio.run(main))
