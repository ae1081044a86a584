"""The thread that writes for one handle, so that neither fsync nor the turnstile blocks the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import anyio
from anyio import lowlevel

from converge import forks
from converge.builtin.file._errors import Broken
from converge.builtin.file.database import Database
from converge.contracts.store import Batch, Channel, Take, Turned
from converge.errors import StoreBusy, StoreUnavailable
from converge.threads import NoThread, in_own_thread

CLOSE_SEC = 1.0
"""How long closing waits for a call that nobody waits for any more; it ends by itself, or with the process."""


_Step = Callable[[Database], None]
"""What a call does besides: a schema number to raise, say."""


class _Job:
    """One call. It begins, or is given up, never both."""

    __slots__ = ("_call", "_lock", "_state", "batches", "error", "event", "first", "result", "take", "wake")

    def __init__(
        self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel], first: _Step | None
    ) -> None:
        self.batches, self.take, self.wake, self.first = batches, take, wake, first
        self.event = anyio.Event()
        self.result: Turned | None = None
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._state = "waiting"
        native: Any = lowlevel.current_token().native_token
        self._call: Callable[..., Any] = (
            native.run_sync_soon if hasattr(native, "run_sync_soon") else native.call_soon_threadsafe
        )

    def may_begin(self) -> bool:
        """Begin, in the worker's thread; False if the caller has given up."""
        return self._move("begun")

    def give_up(self) -> bool:
        """Give up, in the caller's thread; False if it has begun: then its end is to be awaited."""
        return self._move("given up")

    def _move(self, to: str) -> bool:
        with self._lock:
            if self._state != "waiting":
                return False
            self._state = to
            return True

    def finish(self) -> None:
        """Wake the caller."""
        try:
            self._call(self.event.set)
        except RuntimeError:
            return  # its loop has ended: nobody waits


class Worker:
    """Runs the calls of one handle, one after another, on a connection of its own. `clock` and `settings` are there
    once `start` has returned.

    `tell` wakes the watchers of channels, in the worker's thread: they hear of a commit before its caller does, whose
    loop has to come round first.
    """

    def __init__(self, path: str, busy_sec: float, tell: Callable[[Collection[Channel]], None]) -> None:
        self._path, self._busy_sec, self._tell = path, busy_sec, tell
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.settings: Mapping[str, str | int] = {}
        self._thread: threading.Thread | None = None
        self._kept: list[object] = []
        forks.watch(self, Worker._lay_down)

    def _lay_down(self) -> None:
        """Forget the thread in a forked child, where it does not run."""
        self._thread = None

    def keep(self, connection: object) -> None:
        """Let a forked child never destroy the connection: the frames of threads that it has not are never freed."""
        self._kept.append(connection)

    async def start(self) -> None:
        """Open the file, making it a store if it is empty.

        Raises:
            StoreRefused, SchemaTooNew, StoreBusy, StoreUnavailable: Why it cannot be.
        """
        await self.turn((), None)

    async def do(self, step: _Step) -> None:
        """Let the thread do this with its database, in its turn.

        Raises:
            As `turn`.
        """
        await self.turn((), None, first=step)

    async def turn(
        self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel] = (), *, first: _Step | None = None
    ) -> Turned:
        """Run a call, then tell the watchers. A caller that is cancelled leaves its call behind, which is done or not.

        Raises:
            StoreBusy: Its turn did not come in time; nothing was written.
            StoreError: As the contract says.
        """
        job, jobs = _Job(batches, take, wake, first), self._jobs
        if self._thread is None:
            self._thread = self._started(jobs)
        jobs.put(job)
        with anyio.move_on_after(self._busy_sec):
            await job.event.wait()
        if not job.event.is_set():
            if job.give_up():
                if jobs is self._jobs:
                    self._leave_behind()
                raise StoreBusy(
                    f"{self._path}: no turn to write in {self._busy_sec:g} s; find the program that holds its lock, or "
                    "raise busy_sec"
                )
            await job.event.wait()  # it has begun, and ends by itself: SQLite's own wait is bounded
        if job.error is not None:
            raise job.error
        assert job.result is not None, "a call that was not given up has a result"
        return job.result

    def _started(self, jobs: SimpleQueue[_Job | None]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(jobs, self._kept), name="converge-file", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has none left
            raise StoreUnavailable(f"{self._path}: {error}; nothing was written, try again") from error
        return thread

    def _leave_behind(self) -> None:
        """Abandon the thread, which waits in the kernel and ends when it gets through; a new one serves from now on."""
        self._jobs.put(None)
        self._jobs, self._thread = SimpleQueue(), None

    def _run(self, jobs: SimpleQueue[_Job | None], kept: list[object]) -> None:
        database: Database | None = None
        while (job := jobs.get()) is not None:
            try:
                if database is None:
                    database = Database(self._path)
                    self.settings = database.settings
                if job.first is not None:
                    job.first(database)
                job.result = database.turn(job.batches, job.take, job.may_begin)
                if job.result is not None:
                    self._tell(job.wake)
            except Broken as broken:
                job.error = broken.cause
                if database is not None:
                    with suppress(Exception):  # of a disk that has just failed: the caller waits for its answer
                        database.close()
                    database = None
            except BaseException as error:  # handed to the caller, whatever it is
                job.error = error
            job.finish()
        if database is not None:
            database.close()

    async def close(self) -> None:
        """Close the connection once the calls under way have ended, or without them where another's lock keeps them."""
        if self._thread is not None:
            self._jobs.put(None)
            with suppress(NoThread):
                await in_own_thread(self._thread.join, CLOSE_SEC, abandon_on_cancel=True)
            self._thread = None
