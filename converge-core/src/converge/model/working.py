"""The calls of a running handler; each goes to the handler's attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypeVar, TypeVarTuple, overload

import attrs

from converge.errors import InvalidValue, NotRunning, SchemaTooNew
from converge.model.batch import Entry
from converge.model.keys import Key

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Kinds = tuple[type[Exception], ...]


RETRIES_GREATEST = 1_000
DELAY_GREATEST_SEC = 86_400.0


class StepOptions(NamedTuple):
    """How a step is run; see `Task.step`."""

    retries: int = 0
    delay_sec: float = 1.0
    final: Kinds = ()
    at_most_once: bool = False

    def check(self, function: object) -> None:
        """Refuse a step that cannot be run so, before anything of it has happened.

        Raises:
            InvalidValue: Which value, and what it should be.
        """
        if not callable(function):
            raise InvalidValue("step", function, "a function; its arguments follow it: step(name, function, argument)")
        if type(self.retries) is not int or not 0 <= self.retries <= RETRIES_GREATEST:
            raise InvalidValue("retries", self.retries, f"a whole number from 0 to {RETRIES_GREATEST:,}")
        if type(self.delay_sec) not in (int, float) or not 0 <= self.delay_sec <= DELAY_GREATEST_SEC:
            raise InvalidValue("delay_sec", self.delay_sec, f"seconds, from 0 to {DELAY_GREATEST_SEC:,.0f}")
        # A cancellation is no `Exception`: recorded, it would end a step for good because its process was stopped.
        if type(self.final) is not tuple or not all(isinstance(kind, type) for kind in self.final):
            raise InvalidValue("final", self.final, "a tuple of classes of errors")
        if not all(issubclass(kind, Exception) for kind in self.final):
            raise InvalidValue("final", self.final, "classes of errors that are an Exception")


@attrs.frozen(kw_only=True)
class Child:
    """A task that another one has spawned.

    Attributes:
        id: Its task id.
        name: What its parent calls it.
    """

    id: str
    name: str = ""


class Spawnable(Protocol):
    """A `Task` to be submitted."""

    @property
    def pool_id(self) -> str: ...

    @property
    def effect_key(self) -> str: ...


class Attempting(Protocol):
    """What a handler's calls go to, in a task of the event loop or in a worker thread (`blocking`)."""

    @property
    def is_parking(self) -> bool: ...

    @property
    def is_called_off(self) -> bool: ...

    def step(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: StepOptions
    ) -> Any: ...

    def wait_for(self, names: tuple[str, ...], timeout: float | None) -> Any: ...

    def sleep(self, sec: float, name: str) -> Any: ...

    def emit(self, data: Any) -> Any: ...

    def progress(self, done: float, of: float | None, text: str) -> Any: ...

    def spawn(self, task: Spawnable, name: str) -> Any: ...

    def gather(self, children: tuple[Child, ...], timeout: float | None) -> Any: ...

    def first(self, children: tuple[Child, ...], cancel_rest: bool, timeout: float | None) -> Any: ...

    def as_completed(self, children: tuple[Child, ...]) -> Any: ...

    def restart(self, inputs: Mapping[str, Any]) -> Any: ...


class Runs(Protocol):
    """What a worker that runs handlers says of itself."""

    def attempt(self, task_id: str, token: int, call: str) -> Attempting | None:
        """Return the attempt that the worker is at if it is this one, for calls of its event loop; without the name of
        a call, for questions from anywhere.
        """

    def blocking(self, task_id: str, token: int, call: str) -> Attempting | None:
        """Return the same for calls of a worker thread."""

    def read(self, key: Key) -> Awaitable[Entry | None]:
        """Read a key, together with others that are read at the same time."""

    def keep(self, task_id: str, token: int, also: tuple[Key, bytes, int]) -> Awaitable[None]:
        """Have a value put in the batch that completes the task, if its key is at this revision."""

    def leave(self, task_id: str, token: int, newer: SchemaTooNew) -> None:
        """Let the attempt, which raises this error, go back uncounted, for a process of a newer release."""


RUNS: ContextVar[Runs | None] = ContextVar("converge_runs", default=None)
"""Which worker runs the code; set once for each worker, not for each task."""


class Working:
    """The calls of a running handler. On a task that no handler runs here each raises `NotRunning`."""

    @overload
    def step(
        self,
        name: str,
        function: Callable[[*Ts], Awaitable[T]],
        *arguments: *Ts,
        retries: int = 0,
        delay_sec: float = 1.0,
        final: Kinds = (),
        at_most_once: bool = False,
    ) -> Awaitable[T]: ...

    @overload
    def step(
        self,
        name: str,
        function: Callable[[*Ts], T],
        *arguments: *Ts,
        retries: int = 0,
        delay_sec: float = 1.0,
        final: Kinds = (),
        at_most_once: bool = False,
    ) -> Awaitable[T]: ...

    def step(  # type: ignore[misc]  # mypy does not see that Any takes every pack of arguments
        self,
        name: str,
        function: Any,
        *arguments: Any,
        retries: int = 0,
        delay_sec: float = 1.0,
        final: Kinds = (),
        at_most_once: bool = False,
    ) -> Awaitable[Any]:
        """Run the function and record what it returns (plain data, at most 256 KiB); an attempt that comes here later
        is given the record, and does not run it. A plain function runs in a worker thread. Steps within it, waits and
        children are recorded, too, under names within its own: they do not run again with it.

        Args:
            name: What the record is found by. The second step of a name is `name#2`, counted in the order of calls.
            retries: How often the function is called again that raised, after `delay_sec`, each time twice as long.
            final: Errors that are recorded, a group of them as its first one; others end the attempt, and the next one
                runs the step again. `NoRetry`, `RetryAfter` and `Release` end the attempt at once, whatever `retries`
                and `final` say.
            at_most_once: Record that it begins, too: where an attempt died in it, the next is told `StepUncertain`.

        Raises:
            StepFailed: It raised one of `final`, now or in an earlier attempt.
            StepConflict, TooManyRecords, ValueTooLarge, InvalidValue: It cannot be run or recorded so.
            StaleClaim: Another attempt runs.
        """
        result: Awaitable[Any] = _attempt(self, "task.step").step(
            name, function, arguments, StepOptions(retries, delay_sec, final, at_most_once)
        )
        return result

    def wait_for(self, *names: str, timeout: float | None = None) -> Awaitable[Any]:
        """Wait for a signal and return its payload; for the first of several (at most 100), its name and payload.

        The task is parked meanwhile: the handler is cancelled, and run again from its start when the signal has come;
        steps that were recorded do not run again. A deadline of a scope around the call ends with the attempt: give
        `timeout`.

        Raises:
            WaitTimeout: None came within `timeout` seconds of the first attempt that waited for it.
        """
        result: Awaitable[Any] = _attempt(self, "task.wait_for").wait_for(names, timeout)
        return result

    def sleep(self, sec: float, name: str = "sleep") -> Awaitable[None]:
        """Sleep for so many seconds, parked as in `wait_for`."""
        result: Awaitable[None] = _attempt(self, "task.sleep").sleep(sec, name)
        return result

    def emit(self, data: Any) -> Awaitable[None]:
        """Emit a piece of output (plain data, at most 64 KiB), which `TaskManager.watch` follows."""
        result: Awaitable[None] = _attempt(self, "task.emit").emit(data)
        return result

    def progress(self, done: float, *, of: float | None = None, text: str = "") -> Awaitable[None]:
        """Report how far the task is; `TaskManager.watch` follows it."""
        result: Awaitable[None] = _attempt(self, "task.progress").progress(done, of, text)
        return result

    def spawn(self, task: Spawnable, name: str = "") -> Awaitable[Child]:
        """Submit a child, once however many attempts come here; it is cancelled when this task ends.

        Raises:
            InvalidValue: It has an id or a dedup key: its name says what it is.
        """
        result: Awaitable[Child] = _attempt(self, "task.spawn").spawn(task, name)
        return result

    def gather(self, *children: Child, timeout: float | None = None) -> Awaitable[list[Any]]:
        """Wait, parked, until all children have ended; return their results in this order: of none, nothing. At most
        1,000.

        Raises:
            InvalidValue: One is no child of this task, or a step calls, which cannot be parked.
            ChildFailed: One did not complete; the others have ended, too.
            WaitTimeout: They have not all ended in time.
        """
        result: Awaitable[list[Any]] = _attempt(self, "task.gather").gather(children, timeout)
        return result

    def first(
        self, *children: Child, cancel_rest: bool = False, timeout: float | None = None
    ) -> Awaitable[tuple[Child, Any]]:
        """Wait, parked, until one of the children has ended; return it with its result, and perhaps cancel the others.

        Raises:
            ChildFailed: It did not complete.
            WaitTimeout: None has ended in time.
        """
        result: Awaitable[tuple[Child, Any]] = _attempt(self, "task.first").first(children, cancel_rest, timeout)
        return result

    def as_completed(self, *children: Child) -> AsyncIterator[tuple[Child, Any]]:
        """Iterate over the children with their results in the order in which they end, as `first` does."""
        found: AsyncIterator[tuple[Child, Any]] = _attempt(self, "task.as_completed").as_completed(children)
        return found

    def restart(self, inputs: Mapping[str, Any]) -> Awaitable[None]:
        """End the attempt and begin the task anew with these inputs and without its steps; it does not return. Unread
        signals, children and `effect_key` stay.
        """
        result: Awaitable[None] = _attempt(self, "task.restart").restart(inputs)
        return result

    @property
    def is_parking(self) -> bool:
        """Whether the handler is being ended because its task is parked or restarted: nothing needs to be undone. A
        plain handler may ask, too, as for `is_called_off`.
        """
        return _attempt(self, "").is_parking

    @property
    def is_called_off(self) -> bool:
        """Whether the task is being cancelled with grace."""
        return _attempt(self, "").is_called_off

    @property
    def blocking(self) -> Blocking:
        """The same calls for a handler that is a plain function: each waits in the handler's own thread."""
        runs = RUNS.get()
        attempt = runs.blocking(*_name(self), "task.blocking") if runs is not None else None
        if attempt is None:
            raise _not_running(self)
        return Blocking(attempt)


class Blocking:
    """The calls of `Task` for handlers that are plain functions. See `Working`."""

    def __init__(self, attempt: Attempting) -> None:
        self._attempt = attempt

    def step(
        self,
        name: str,
        function: Callable[[*Ts], T],
        *arguments: *Ts,
        retries: int = 0,
        delay_sec: float = 1.0,
        final: Kinds = (),
        at_most_once: bool = False,
    ) -> T:
        """Run a plain function in this thread and record what it returns. See `Task.step`."""
        result: T = self._attempt.step(name, function, arguments, StepOptions(retries, delay_sec, final, at_most_once))
        return result

    def wait_for(self, *names: str, timeout: float | None = None) -> Any:
        """See `Task.wait_for`."""
        return self._attempt.wait_for(names, timeout)

    def sleep(self, sec: float, name: str = "sleep") -> None:
        """See `Task.sleep`."""
        self._attempt.sleep(sec, name)

    def emit(self, data: Any) -> None:
        """See `Task.emit`."""
        self._attempt.emit(data)

    def progress(self, done: float, *, of: float | None = None, text: str = "") -> None:
        """See `Task.progress`."""
        self._attempt.progress(done, of, text)

    def spawn(self, task: Spawnable, name: str = "") -> Child:
        """See `Task.spawn`."""
        child: Child = self._attempt.spawn(task, name)
        return child

    def gather(self, *children: Child, timeout: float | None = None) -> list[Any]:
        """See `Task.gather`."""
        results: list[Any] = self._attempt.gather(children, timeout)
        return results

    def first(self, *children: Child, cancel_rest: bool = False, timeout: float | None = None) -> tuple[Child, Any]:
        """See `Task.first`."""
        found: tuple[Child, Any] = self._attempt.first(children, cancel_rest, timeout)
        return found

    def as_completed(self, *children: Child) -> Iterator[tuple[Child, Any]]:
        """See `Task.as_completed`."""
        found: Iterator[tuple[Child, Any]] = self._attempt.as_completed(children)
        return found

    def restart(self, inputs: Mapping[str, Any]) -> None:
        """See `Task.restart`."""
        self._attempt.restart(inputs)


def _name(task: object) -> tuple[str, int]:
    return getattr(task, "id", ""), getattr(task, "token", 0)


def _attempt(task: object, call: str) -> Attempting:
    runs = RUNS.get()
    attempt = runs.attempt(*_name(task), call) if runs is not None else None
    if attempt is None:
        raise _not_running(task)
    return attempt


def _not_running(task: object) -> NotRunning:
    id_ = _name(task)[0] or "(new)"
    return NotRunning(f"task {id_} is not run here; only the handler that was given it may do this, while it runs")
