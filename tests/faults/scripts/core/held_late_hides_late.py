"""T-12, "timeouts and deadlines are enforced": 2,000 running tasks past their deadline keep every later deadline from being enforced.

A held task keeps its `limit` key until its attempt ends. `Sweep._move_some` looks through 10 pages of 200 for something to move, each time from the start
(`UNMOVED_PAGES`); what stands behind 2,000 such keys is never seen. The same for `later` and `held` of a dead lease behind 2,000 unreadable records.
"""
import sys, anyio, logging
from datetime import UTC, datetime, timedelta
from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.services.store.handle import StoreHandle
from converge.services.tasks.sweep import Sweep
logging.disable(logging.CRITICAL)

async def main() -> int:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=100)
    soon = datetime.now(UTC) + timedelta(seconds=4)
    await tasks.submit_many([Task(pool_id="p", type="run", deadline=soon) for _ in range(2000)])
    held = 0
    while held < 2000:
        held += len(await tasks.claim("a", ["p"], types=["run"], limit=1000))
    late = await tasks.submit(Task(pool_id="p", type="wait", deadline=soon + timedelta(milliseconds=10)))
    await anyio.sleep(max(0.0, (soon - datetime.now(UTC)).total_seconds()) + 0.3)
    sweep = Sweep(StoreHandle.of(store))
    moved = [await sweep.page() for _ in range(20)]
    state = str((await tasks.get(late)).state)
    await StoreHandle.of(store).close()
    if state == "FAILED": print("ok"); return 0
    print(f"FAULT: 20 sweeps after its deadline the waiting task is {state} (keys moved: {sum(moved)})"); return 1
sys.exit(anyio.run(main))
