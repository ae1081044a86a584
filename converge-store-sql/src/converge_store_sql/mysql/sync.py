"""Tasks in a transaction of the caller's on MariaDB and MySQL, for code without an event loop."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Prefix
from converge.errors import NotApplied
from converge.model.keys import pack
from converge.model.task import Task
from converge.transactions import submit_through
from converge_store_sql.mysql._errors import RETRIED, call_failed, connecting_failed, number_of
from converge_store_sql.mysql.plan import Missed, Plan
from converge_store_sql.mysql.texts import bounds, source
from converge_store_sql.mysql.within import MysqlInside, lookup, run
from converge_store_sql.riding import Beside

WHERE = "the caller's database"
TRIES = 20


def submit(connection: Connection, tasks: Sequence[Task], network: str) -> list[str]:
    """Submit the tasks in the connection's transaction; return their ids in order."""
    with _Outside(connection.engine, network) as outside:
        return submit_through(outside, MysqlInside(connection, network, outside.get), tasks)


class _Outside(Beside):
    """The other side: a second connection of the caller's engine, each of whose calls is a transaction."""

    def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        try:
            return lookup(self._own(), self._network, keys)
        except (SQLAlchemyError, OSError) as error:
            raise call_failed(error, WHERE, writes=False) from error

    def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        return [
            int(
                self._run(
                    f"select count(*) from {source(self._network, prefix[0])} where {bounds(pack(prefix), None)}"
                )[0][0]
            )
            for prefix in prefixes
        ]

    def time(self) -> int:
        # Without setting the session's time zone: the connection goes back to the caller's pool.
        return int(self._run("select timestampdiff(microsecond, '1970-01-01', utc_timestamp(6))")[0][0])

    def note_format(self, number: int) -> None:
        self._run(f"insert ignore into {self._network}_schema (version) values ({number:d})", writes=True)

    def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        plan, is_careful = Plan(self._network, batches, None), False
        for attempt in range(TRIES):
            try:
                return self._carefully(plan) if is_careful else self._bet(plan)
            except Missed:
                is_careful = True
            except NotApplied as error:
                self._run("rollback")
                if attempt == TRIES - 1 or number_of(error) not in RETRIED:
                    raise
                is_careful = True
        raise AssertionError("unreachable: the last try returns or raises")

    def _bet(self, plan: Plan) -> Sequence[Committed | Conflict]:
        rows = self._run(*plan.bet(), "select last_insert_id()")
        self._run("commit", writes=True)
        return [Committed(rows[0][0])] * len(plan.batches)

    def _carefully(self, plan: Plan) -> Sequence[Committed | Conflict]:
        answers = [self._run(statement) for statement in plan.look()]
        found = plan.revisions(answers[:-1])
        failed = plan.decide(found, int(answers[-1][0][0]))
        statements = plan.write(failed)
        revision = self._run(*statements, "select last_insert_id()")[0][0] if statements else 0
        self._run("commit", writes=True)
        return plan.outcomes(failed, revision)

    def _own(self) -> Connection:
        try:
            return self._opened()
        except (SQLAlchemyError, OSError) as error:
            raise connecting_failed(error, WHERE) from error

    def _run(self, *statements: str, writes: bool = False) -> Sequence[Sequence[Any]]:
        """Run statements; return the rows of the last one."""
        rows: Sequence[Sequence[Any]] = ()
        try:
            for statement in statements:
                rows = run(self._own(), statement)
        except (SQLAlchemyError, OSError) as error:
            raise call_failed(error, WHERE, writes=writes) from error
        return rows
