"""Tasks in a transaction of the caller's, for code without an event loop."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Prefix
from converge.errors import NotApplied
from converge.model.task import Task
from converge.transactions import submit_through
from converge_store_sql.postgresql._errors import RETRIED, call_failed, connecting_failed, sqlstate
from converge_store_sql.postgresql.calls import count_calls, get_call, got, turn_arguments
from converge_store_sql.postgresql.fragments import NOW
from converge_store_sql.postgresql.plan import Plan, Shape
from converge_store_sql.postgresql.riding.riders import Riders
from converge_store_sql.postgresql.riding.within import TRIES, Inside, check_dialect, run
from converge_store_sql.postgresql.statements import Statements
from converge_store_sql.postgresql.waiters import DEAD_SEC
from converge_store_sql.riding import Beside

WHERE = "the caller's database"

_LOG = logging.getLogger(__name__)


def submit(connection: Connection, tasks: Sequence[Task], network: str) -> list[str]:
    """Submit the tasks in the connection's transaction; return their ids in order."""
    check_dialect(connection)

    def on_written(xid: int, wake: Collection[Channel]) -> None:
        if not connection.dialect.is_async:  # in `run_sync`: no other thread can use a connection of that engine
            _WAKERS.of(connection.engine, network).add(xid, wake)

    with _Outside(connection.engine, network) as outside:
        return submit_through(outside, Inside(connection, network, outside.get, on_written), tasks)


class _Outside(Beside):
    """The other side: a second connection of the caller's engine, each of whose statements is a transaction."""

    def __init__(self, engine: Engine, network: str) -> None:
        super().__init__(engine, network)
        self._statements = Statements(network)

    def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return got(keys, self._run(*get_call(self._statements, keys))) if keys else []

    def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        found = [0] * len(prefixes)
        for text, arguments in count_calls(self._statements, prefixes):
            for number, total in self._run(text, arguments):
                found[number] = total
        return found

    def time(self) -> int:
        ((now,),) = self._run(f"select {NOW}", ())
        return int(now)

    def note_format(self, number: int) -> None:
        text = f"insert into {self._network}_schema (version) values ($1) on conflict do nothing"
        self._run(text, (number,), writes=True)

    def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        plan = Plan(batches, None)
        work, gates = plan.work(), plan.gates()
        parts = tuple(part for part, _ in work)
        shape = Shape(parts, bool(gates), bool(plan.runs), bool(plan.windows), None, replaces=True)
        arguments = turn_arguments(plan, work, gates, None)
        for attempt in range(TRIES):
            try:
                (row,) = self._run(self._statements.turn(shape), arguments, writes=True)
                break
            except NotApplied as error:
                if attempt == TRIES - 1 or sqlstate(error) not in RETRIED:
                    raise
        if wake:
            self._run(self._statements.wake(), (sorted(wake), DEAD_SEC))
        bad, late, there, missed, revision, _ = row
        return plan.outcomes(bad, late, there, missed, revision)

    def _run(self, text: str, arguments: Sequence[Any], *, writes: bool = False) -> Sequence[Sequence[Any]]:
        try:
            connection = self._opened()
        except (SQLAlchemyError, OSError) as error:
            raise connecting_failed(error, WHERE) from error
        try:
            return run(connection, text, arguments)
        except (SQLAlchemyError, OSError) as error:
            raise call_failed(error, WHERE, writes=writes) from error


class _Waker:
    """Wakes once transactions of an engine have committed, on a thread that lives while there are any."""

    def __init__(self, engine: Engine, network: str) -> None:
        self._engine, self._network = weakref.ref(engine), network
        self._riders, self._lock = Riders(), threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, xid: int, channels: Collection[str]) -> None:
        with self._lock:
            self._riders.add(xid, channels)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="converge-wake", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        connection: Connection | None = None
        try:
            while (pause := self._pause()) is not None:
                time.sleep(pause)  # nobody tells when somebody else's transaction ends
                connection = connection or self._connect()
                self._ask(connection)
        except Exception:  # a hint: those who sleep look for themselves after their poll interval
            _LOG.debug("a wake-up was not told; sleepers look for themselves", exc_info=True)
            with self._lock:
                self._riders, self._thread = Riders(), None
        finally:
            if connection is not None:
                connection.close()

    def _pause(self) -> float | None:
        with self._lock:
            pause = self._riders.pause_sec
            if pause is None:
                self._thread = None
            return pause

    def _connect(self) -> Connection:
        """Return a connection that the engine's pool does not know: it is closed when it is used no more, even if the
        caller has disposed of the engine before.
        """
        engine = self._engine()
        if engine is None:
            raise ReferenceError("the engine is gone")
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()
        return connection

    def _ask(self, connection: Connection) -> None:
        with self._lock:
            text, arguments = self._riders.question
        rows = run(connection, text, arguments)
        with self._lock:
            wake = self._riders.heed(rows)
        if wake:
            run(connection, Statements(self._network).wake(), (sorted(wake), DEAD_SEC))


class _Wakers:
    """One waker for each engine and network."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Engine, dict[str, _Waker]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, engine: Engine, network: str) -> _Waker:
        with self._lock:
            return self._kept.setdefault(engine, {}).setdefault(network, _Waker(engine, network))


_WAKERS = _Wakers()
