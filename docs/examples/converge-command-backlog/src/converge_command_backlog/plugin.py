"""`converge backlog`: what waits in a pool, by type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import anyio
from cyclopts import Parameter

from converge import PoolManager, Task, TaskManager, TaskState, open_store
from converge.cli.options import NONE, Common
from converge.contracts.commands import Command
from converge.hookspecs import hookimpl

MOST = 10_000
"""Tasks that are read at most: a backlog beyond it is long, whatever its parts."""


async def waiting(common: Common, pool: str) -> list[Task]:
    """Return the tasks of a pool that no agent has claimed.

    Raises:
        NoSuchPool: There is no such pool.
    """
    config = common.configured()
    async with open_store(config.store, plugins=config.plugins, network=config.network, must_exist=True) as store:
        await PoolManager(store).get(pool)
        return list(await TaskManager(store).list(state=TaskState.PENDING, pool_id=pool, limit=MOST))


def backlog(
    pool: Annotated[str, Parameter(help="The pool's id.")],
    /,
    *,
    common: Common = NONE,
) -> int:
    """List how many tasks of each type wait in a pool, and for how long the oldest has waited.

    The exit code is 1 where something waits, so that a script can tell.
    """
    tasks = anyio.run(partial(waiting, common, pool))
    now = datetime.now(UTC)
    for type_, count in sorted(Counter(task.type for task in tasks).items()):
        oldest = min(task.submitted_at or now for task in tasks if task.type == type_)
        print(f"{type_}: {count}, the oldest for {(now - oldest).total_seconds():.0f} s")
    return 1 if tasks else 0


@hookimpl
def converge_commands() -> Iterable[Command]:
    """Declare the command."""
    return [Command(name="backlog", run=backlog, help="List what waits in a pool, by type.")]
