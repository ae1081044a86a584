"""Contract: the inherited take breaks the contract's own limits: `claim(limit=1000)` on a third party's store makes a batch of over 4,000 operations.

`_take._move`: for each key a check of it, an ABSENT check, a put and a delete: `LIMITS.batch_ops` is 2,000. A store that enforces what `StoreLimits` says
refuses every large claim. (And with 1,000 wanted the page of 1,000 leaves no head: the lane counts as empty.) CheckedStore does not look.
"""
import sys, anyio, logging
from converge import Pool, PoolManager, Task, TaskManager
from converge.contracts.store import LIMITS, Store
from converge.builtin.memory.store import MemoryStore
from converge.errors import ConvergeError, InvalidValue
from converge.services.store.handle import StoreHandle
logging.disable(logging.CRITICAL)

class Strict(MemoryStore):
    turn, count = Store.turn, Store.count  # a third party's: inherited
    greatest = 0
    async def commit(self, batches, *, wake=()):
        for b in batches:
            ops = len(b.checks) + len(b.puts) + len(b.deletes)
            Strict.greatest = max(Strict.greatest, ops)
            if ops > LIMITS.batch_ops: raise InvalidValue("batch", f"{ops} operations", f"at most {LIMITS.batch_ops}")
        return await super().commit(batches, wake=wake)

async def main() -> int:
    store = Strict()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    await tasks.submit_many([Task(pool_id="p") for _ in range(1000)])
    try:
        got = len(await tasks.claim("a", ["p"], limit=1000)); said = f"{got} claimed"
    except RecursionError:
        said = "RecursionError"
    except ConvergeError as error:
        said = f"{type(error).__name__}: {str(error)[:80]}"
    await StoreHandle.of(store).close()
    bad = Strict.greatest > LIMITS.batch_ops
    print(("FAULT" if bad else "ok") + f": claim(limit=1000) made a batch of {Strict.greatest:,} operations; {said}"); return 1 if bad else 0
sys.exit(anyio.run(main))
