"""One connection to the file: batches and takes, each in one transaction. Synchronous; `worker.py` has the thread."""

from __future__ import annotations

import heapq
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

from converge import forks
from converge.builtin.file import statements as sql
from converge.builtin.file._errors import is_full, translated
from converge.builtin.file.clock import READ as READ_CLOCK
from converge.builtin.file.clock import FileClock
from converge.builtin.file.guard import Guard
from converge.builtin.file.place import give_reserve_up, keep_reserve
from converge.builtin.file.plan import Missed, Plan, run_many
from converge.builtin.file.reader import decoder
from converge.builtin.file.schema import add_missing, connect_writer, missing, raise_schema, settings
from converge.builtin.file.turnstile import Turnstile
from converge.contracts.store import ABSENT, Batch, Committed, Conflict, Key, Range, Rest, Take, Taken, Turned, Window
from converge.errors import OutcomeUnknown, StoreReplaced, StoreUnavailable
from converge.model.keys import EXPIRY, NAME, Family

ROOM_LOOK_SEC = 10.0
"""How often a writer looks how much room is left on the disk."""

_BEGIN = f"update meta set value = value + 1 where name = 'revision' returning value, ({READ_CLOCK})"


class Database:
    """A writing connection with its place in the turnstile."""

    def __init__(self, path: str, *, adds: bool = True) -> None:
        self._path = path
        self._in_use = threading.RLock()
        self._look_at = time.monotonic() + ROOM_LOOK_SEC
        forks.hold(self, self._in_use)
        with translated(path), ExitStack() as stack:
            self._guard = Guard.acquire(path)
            stack.callback(self._guard.close, None)
            self._turnstile = Turnstile(path)
            stack.callback(self._turnstile.close)
            with self._turnstile.turn():
                keep_reserve(path, is_opening=True)
                self._guard.check_log(self._turnstile.note)
                is_alone = self._guard.is_alone()
                with self._in_use:
                    self._connection = connect_writer(path)
                    stack.callback(self._connection.close)
                    if adds:
                        add_missing(self._connection)
                    self.clock = FileClock(self._connection)
                    with _transaction(self._connection):
                        self.clock.load(is_alone=is_alone)
                    self.settings = settings(self._connection)
                self._turnstile.note = self._guard.seal()
            stack.pop_all()

    def close(self) -> None:
        """Close the connection and the locks, in a turn: the last handle of a process tidies up the log."""
        try:
            with self._turnstile.turn(is_urgent=True):
                self._guard.close(self._connection)
        finally:
            self._turnstile.close()

    def turn(self, batches: Sequence[Batch], take: Take | None, may_begin: Callable[[], bool]) -> Turned | None:
        """Apply the batches, then the take, in one transaction; None if the caller gave up before its turn came."""
        plan = _plan(batches)
        with translated(self._path), self._turnstile.turn(is_urgent=take is None and _is_renewal(batches)):
            if not may_begin():
                return None
            if gone := self._guard.gone():
                raise StoreReplaced(
                    f"{gone} since it was opened; nothing was written: close the store and open it again"
                )
            turned = self._transact(batches, take, plan)
            if time.monotonic() > self._look_at:
                self._look_at = time.monotonic() + ROOM_LOOK_SEC
                with suppress(OSError):  # what was written stands
                    keep_reserve(self._path)
            if gone := self._guard.gone():
                raise OutcomeUnknown(
                    f"{gone} since it was opened, so what was written may be lost; close the store and open it again"
                )
            return turned

    def missing(self) -> list[str]:
        """Return what this release makes and the file has not yet, a line each."""
        return list(missing(self._connection))

    def raise_schema(self, number: int) -> None:
        """Raise the file's schema number to this one, unless it is greater."""
        with self._alone():
            raise_schema(self._connection, number)

    def advance(self, revision: int) -> None:
        """Go on with the revisions behind this one, unless the file is past it."""
        with self._alone(), _transaction(self._connection):
            self._connection.execute("update meta set value = ?1 where name = 'revision' and value < ?1", (revision,))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with translated(self._path), self._turnstile.turn(), self._in_use:
            if gone := self._guard.gone():
                raise StoreReplaced(
                    f"{gone} since it was opened; nothing was written: close the store and open it again"
                )
            yield

    def _transact(self, batches: Sequence[Batch], take: Take | None, plan: Plan | None) -> Turned:
        try:
            return self._once(batches, take, plan)
        except (sqlite3.Error, StoreUnavailable) as error:
            if sql.is_adapted(self._connection):  # what was bound was another value; it is not, the next time
                return self._once(batches, take, _plan(batches))
            if not isinstance(error, sqlite3.Error) or not is_full(error):
                raise
        self._make_room(is_clearing=take is None and not any(batch.puts for batch in batches))
        return self._once(batches, take, _plan(batches))

    def _once(self, batches: Sequence[Batch], take: Take | None, plan: Plan | None) -> Turned:
        try:
            with self._in_use, _transaction(self._connection):
                return self._turn(batches, take, plan)
        except Missed:
            with self._in_use, _transaction(self._connection):
                return self._turn(batches, take, None)

    def _make_room(self, *, is_clearing: bool) -> None:
        """Fold the log back into the file, which gives its room free. What only deletes may use the reserve, too: else
        a disk that is full could never be cleared.
        """
        if is_clearing:
            give_reserve_up(self._path)
        with self._in_use, suppress(sqlite3.Error):  # the call is tried again, and says what it meets
            self._connection.execute("pragma wal_checkpoint(truncate)")

    def _turn(self, batches: Sequence[Batch], take: Take | None, plan: Plan | None) -> Turned:
        outcomes: list[Committed | Conflict] = []
        if batches:
            revision = self._begin()
            outcomes = self._slowly(batches, revision) if plan is None else self._quickly(batches, plan, revision)
        elif take is not None:
            self.clock.read(self._connection.execute(READ_CLOCK).fetchone()[0])
        return Turned(outcomes, None if take is None else self._take(take))

    def _next_revision(self) -> int:
        (revision,) = self._connection.execute(
            "update meta set value = value + 1 where name = 'revision' returning value"
        ).fetchone()
        return int(revision)

    def _begin(self) -> int:
        """Read the clock; return the next revision."""
        revision, clock = self._connection.execute(_BEGIN).fetchone()
        self.clock.read(clock)
        return int(revision)

    def _quickly(self, batches: Sequence[Batch], plan: Plan, revision: int) -> list[Committed | Conflict]:
        """Apply all as one set, on the assumption that every check holds.

        Raises:
            Missed: One does not.
        """
        for batch in batches:
            if batch.window is not None and not self._is_inside(batch.window):
                raise Missed
        plan.run(self._connection, revision)
        return [Committed(revision)] * len(batches)

    def _slowly(self, batches: Sequence[Batch], revision: int) -> list[Committed | Conflict]:
        outcomes: list[Committed | Conflict] = []
        for batch in batches:
            failed = tuple(key for key, expected in batch.checks if self._revision(key) != expected)
            is_out = batch.window is not None and not self._is_inside(batch.window)
            if failed or is_out:
                outcomes.append(Conflict(failed, is_out))
                continue
            for key in batch.deletes:
                self._connection.execute(sql.delete(key[0]), sql.row(key))
            for key, value in batch.puts:
                self._connection.execute(sql.put(key[0]), (*sql.row(key), value.decode(), revision))
            outcomes.append(Committed(revision))
        return outcomes

    def _revision(self, key: Key) -> int:
        row = self._connection.execute(sql.revision(key[0]), sql.row(key)).fetchone()
        return ABSENT if row is None else int(row[0])

    def _is_inside(self, window: Window) -> bool:
        now = self.clock.now()
        return (window.at_least is None or now >= window.at_least) and (window.at_most is None or now <= window.at_most)

    def _take(self, take: Take) -> Taken | Conflict:
        failed = tuple(key for key, expected in take.checks if self._revision(key) != expected)
        if failed:
            return Conflict(failed)
        rests, numbers, heads = self._choose(take)
        now = self.clock.now()
        if not rests:
            return Taken(0, (), (), heads, now)
        revision, to, tail, value = self._next_revision(), take.to[1:], take.tail, str(now)
        self._remove(take.ranges, rests, numbers)
        run_many(self._connection, sql.put, take.to[0], [(*to, *rest, *tail, value, revision) for rest in rests])
        return Taken(revision, rests, self._also(take.also, [rest[-1] for rest in rests]), heads, now)

    def _choose(self, take: Take) -> tuple[list[Rest], list[int], list[Rest | None]]:
        """Return the first rests, the number of the range of each, and what is then the first of each range."""
        cursors = [self._rests(range_, take.limit + 1) for range_ in take.ranges]
        if len(cursors) == 1:
            found = list(cursors[0])
            return (
                found[: take.limit],
                [0] * min(len(found), take.limit),
                [found[take.limit] if len(found) > take.limit else None],
            )
        # Merged: a cursor reads no further than it is asked.
        heap = [(rest, number) for number, cursor in enumerate(cursors) if (rest := next(cursor, None)) is not None]
        heapq.heapify(heap)
        rests: list[Rest] = []
        numbers: list[int] = []
        while heap and len(rests) < take.limit:
            rest, number = heap[0]
            rests.append(rest)
            numbers.append(number)
            following = next(cursors[number], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following, number))
        heads: list[Rest | None] = [None] * len(cursors)
        for rest, number in heap:
            heads[number] = rest
        return rests, numbers, heads

    def _rests(self, range_: Range, limit: int) -> Iterator[Rest]:
        prefix, after = range_.prefix, range_.after
        statement = sql.heads(prefix[0], len(prefix) - 1, after is not None)
        rows = self._connection.execute(statement, (*prefix[1:], *(after or ()), limit))
        return map(decoder(prefix[0], skip=len(prefix) - 1), rows) if NAME in prefix[0].parts.values() else iter(rows)

    def _remove(self, ranges: Sequence[Range], rests: Sequence[Rest], numbers: Sequence[int]) -> None:
        """Delete what was chosen: of each range the first ones, up to the last that was chosen of it."""
        for number, last in dict(zip(numbers, rests, strict=True)).items():
            prefix, after = ranges[number].prefix, ranges[number].after
            statement = sql.delete_until(prefix[0], len(prefix) - 1, after is not None)
            self._connection.execute(statement, (*prefix[1:], *(after or ()), *last))

    def _also(self, families: Sequence[Family], ids: list[bytes]) -> list[list[bytes | None]]:
        """Return for each id its values in the families."""
        found: list[dict[bytes, bytes]] = []
        for family in families:
            values: dict[bytes, bytes] = {}
            for at in range(0, len(ids), sql.SIZES[0]):
                some = ids[at : at + sql.SIZES[0]]
                size = min(size for size in sql.SIZES if size >= len(some))
                # an id may be asked for twice; a statement for each number of ids would not stay prepared
                some += some[-1:] * (size - len(some))
                values.update(self._connection.execute(sql.values(family, size), some))
            found.append(values)
        return [[values.get(id_) for values in found] for id_ in ids]


def pending(path: str) -> list[str]:
    """Return what opening the file would add to it, a line each."""
    with closing(Database(path, adds=False)) as database:
        return database.missing()


class _transaction:
    """`begin immediate` ... `commit`; or `rollback` after an error, or where nothing was changed: that writes nothing.

    A class, since a generator costs more than the statements of a small call.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._changes = 0

    def __enter__(self) -> None:
        sql.pass_adapters(self._connection)
        self._connection.execute("begin immediate")
        self._changes = self._connection.total_changes

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                sql.check_bound(self._connection)
                if self._connection.total_changes != self._changes:
                    self._connection.execute("commit")
        finally:
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):  # what went wrong before is what is told
                    self._connection.execute("rollback")


def _plan(batches: Sequence[Batch]) -> Plan | None:
    """Return how to apply the batches as one set; None if that cannot be."""
    try:
        return Plan(batches)
    except Missed:
        return None


def _is_renewal(batches: Sequence[Batch]) -> bool:
    """Return whether this is only a renewal of a lease, which goes ahead of the queue: small, rare and important."""
    return len(batches) == 1 and not batches[0].deletes and all(key[0] is EXPIRY for key, _ in batches[0].puts)
