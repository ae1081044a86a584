"""TaskContract: the task machine and its services over a store, clause by clause. An author writes one subclass, as for
StoreContract.

class TestMyTasks(TaskContract):
    backend = MY_BACKEND
"""

from __future__ import annotations

from converge.testing._task.durable import DurableClauses
from converge.testing._task.groups import GroupClauses
from converge.testing._task.history import TaskHistoryClauses
from converge.testing._task.lives import LifeClauses
from converge.testing._task.processes import TaskProcessClauses
from converge.testing._task.race import RaceClauses

__all__ = ["TaskContract"]


class TaskContract(LifeClauses, GroupClauses, DurableClauses, TaskHistoryClauses, RaceClauses, TaskProcessClauses):
    """The clauses of `converge.machines.task` and `converge.machines.durable`; see
    `converge.testing._store.base.StoreCase` for what an author may set.
    """
