"""A worker's desk: the attempt of the task that its handler runs, created when the handler first uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import anyio

from converge.codec import parse_hash
from converge.contracts.store import Entry, Key
from converge.errors import NotRunning, SchemaTooNew, StaleClaim
from converge.foreign import Raised, leaves
from converge.ids import id_text
from converge.machines.events import Completed, Event, Failed, Parked, Released
from converge.model.place import Found, Held
from converge.model.task import DURABLE, Calling
from converge.runtime.attempts.attempt import WENT_ON, Attempt, Parking
from converge.runtime.attempts.names import STEP_NAME
from converge.runtime.attempts.threads import InThread
from converge.services.store.handle import StoreHandle
from converge.services.tasks.torn import log_once


class Named(Protocol):
    """An agent, as far as its name goes: it is set when the agent starts."""

    id: str


class Desk:
    """`current` is what the worker runs, `end_handler` ends it from the event loop."""

    __slots__ = ("_agent", "_current", "_end_handler", "_handle", "_is_threaded", "opened")

    def __init__(
        self, handle: StoreHandle, agent: Named, current: Callable[[], Found | None], end_handler: Callable[[], None]
    ) -> None:
        self._handle, self._agent, self._current, self._end_handler = handle, agent, current, end_handler
        self._is_threaded = False
        self.opened: Attempt | None = None

    def attempt(self, task_id: str, token: int, call: str) -> Attempt | None:
        """See `Runs`."""
        if call and not _is_in_loop():
            raise NotRunning(
                f"{call} cannot wait in a thread of its own; use {call.replace('task.', 'task.blocking.')}"
            )
        return self._attempt_of(task_id, token)

    def blocking(self, task_id: str, token: int, call: str) -> InThread | None:
        """See `Runs`."""
        if _is_in_loop():
            raise NotRunning(f"{call} would block the event loop; use `await task.step(...)` and the like")
        if not STEP_NAME.get():  # it is the handler's own thread, and not that of a plain function of a step
            self._is_threaded = True
        attempt = self._attempt_of(task_id, token)
        return None if attempt is None else InThread(attempt)

    def _attempt_of(self, task_id: str, token: int) -> Attempt | None:
        found = self._current()
        if (
            found is None
            or not isinstance(found.place, Held)
            or found.place.token != token
            or id_text(found.id) != task_id
        ):
            return None
        return self._open(found)

    def _open(self, found: Found) -> Attempt:
        if self.opened is None:
            self.opened = Attempt(self._handle, found, self._on_park)
        return self.opened

    def _on_park(self) -> None:
        if self._is_threaded:
            raise Parking
        self._end_handler()

    async def read(self, key: Key) -> Entry | None:
        """See `Runs`."""
        found = self._current()
        if found is None:
            return await self._handle.reads.get(key)
        return await self._open(found).ledger.patiently(lambda: self._handle.reads.get(key))

    async def keep(self, task_id: str, token: int, also: tuple[Key, bytes, int]) -> None:
        """See `Runs`."""
        attempt = self._attempt_of(task_id, token)
        if attempt is None:
            raise StaleClaim(task_id, token=token)
        await attempt.ledger.patiently(lambda: self._handle.require_format(DURABLE))
        attempt.also = also

    def leave(self, task_id: str, token: int, newer: SchemaTooNew) -> None:
        """See `Runs`."""
        attempt = self._attempt_of(task_id, token)
        if attempt is not None:
            attempt.ledger.newer = newer

    def call_off(self, found: Found, calling: Calling) -> None:
        """Tell the handler that its task is being cancelled with grace."""
        self._open(found).call_off(calling)

    @property
    def is_called_off(self) -> bool:
        """Whether the handler was told so."""
        return self.opened is not None and self.opened.is_called_off

    def claim(self, found: Found) -> Found:
        """Return the claim as the attempt has changed it."""
        return found if self.opened is None else self.opened.ledger.found

    def close(self, found: Found, result: object) -> tuple[Found, Event | None]:
        """Forget the attempt; return its claim, and how it ended if its task is parked or restarted. A handler that
        went on nevertheless has failed.
        """
        attempt, self.opened, self._is_threaded = self.opened, None, False
        if attempt is None:
            return found, None
        attempt.close()
        event = attempt.event
        if event is not None and not _has_ended(result):
            event = Failed(f"WentOn: {WENT_ON.format(attempt.id)}", self._agent.id, True, 1.0)
        if isinstance(event, Parked):
            attempt.ledger.keep(event)
        newer = attempt.ledger.newer
        if event is None and newer is not None and _is_newer(result):
            event = self._leave(found, newer)
        if event is None and attempt.also is not None and type(result) is bytes:
            event = Completed(result, self._agent.id, attempt.also)
        return attempt.ledger.found, event

    def _leave(self, found: Found, newer: SchemaTooNew) -> Event:
        """Hand the task back, and leave its lane to processes that read what a newer release has recorded."""
        self._handle.newer_lanes.add(parse_hash(found.spec.lane))
        log_once(self._handle, f"lane {found.spec.lane} of pool {found.spec.pool}", newer)
        return Released(self._agent.id, str(newer))


PARKED = object()
"""The result of a handler that was ended since its task is parked."""


def _has_ended(result: object) -> bool:
    return result is PARKED or (
        type(result) is Raised and all(type(error) is Parking for error in leaves(result.error))
    )


def _is_newer(result: object) -> bool:
    return type(result) is Raised and all(type(error) is SchemaTooNew for error in leaves(result.error))


def _is_in_loop() -> bool:
    try:
        anyio.get_current_task()
    except RuntimeError:
        return False
    return True
