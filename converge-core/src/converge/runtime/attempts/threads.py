"""One attempt as a plain handler sees it, in its worker thread: each call waits there for the event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import iscoroutinefunction
from typing import Any

from anyio import NoEventLoopError, from_thread

from converge.errors import InvalidValue, NotRunning, StepFailed
from converge.foreign import called, name_of, text_of
from converge.model.working import Child, Spawnable, StepOptions
from converge.runtime.attempts.attempt import Attempt, Parking, final_of, is_tried_again, named
from converge.services.durable.limits import shown

ANOTHER_THREAD = (
    "task {}: task.blocking was called in another thread than the handler's; call it there, or write the handler as "
    "`async def`, which may begin several steps at once"
)


class InThread:
    """The calls of `Blocking`."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def is_parking(self) -> bool:
        """See `Task.is_parking`."""
        return self._attempt.is_parking

    @property
    def is_called_off(self) -> bool:
        """See `Task.is_called_off`."""
        return self._attempt.is_called_off

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def call() -> Any:
            try:
                return (await function(*arguments),)
            except Parking:
                return None

        try:
            answer = from_thread.run(call)
        except NoEventLoopError as error:
            raise NotRunning(ANOTHER_THREAD.format(self._attempt.id)) from error
        if answer is None:
            raise Parking
        return answer[0]

    def step(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: StepOptions) -> Any:
        """See `Blocking.step`."""
        if iscoroutinefunction(function):
            raise InvalidValue("step", function, "a plain function: the handler's thread cannot await another")
        label, known = self._call(self._attempt.begin, name, function, options)
        if known is not None:
            return known[0]
        began = self._attempt.ledger.handle.env.monotonic()
        try:
            try:
                with named(label[1:]):
                    value = self._tried(label[1:], partial(function, *arguments), options)
            except Exception as error:
                if (final := final_of(error, options.final)) is None:
                    raise
                self._call(self._attempt.end_failed, label, final, began)
                raise StepFailed(self._attempt.id, shown(label[1:]), name_of(type(final)), text_of(final)) from error
            return self._call(self._attempt.end, label, value, began)
        finally:
            from_thread.run_sync(self._attempt.left, label)

    def _tried(self, name: str, call: Callable[[], Any], options: StepOptions) -> Any:
        delay_sec = options.delay_sec
        for left in range(options.retries, -1, -1):
            try:
                return called(call)
            except Exception as error:
                if not left or not is_tried_again(error, options.final):
                    raise
            self._call(self._attempt.again, name, delay_sec)
            delay_sec *= 2
        raise AssertionError("the last try returns or raises")

    def wait_for(self, names: tuple[str, ...], timeout: float | None) -> Any:
        """See `Blocking.wait_for`."""
        return self._call(self._attempt.wait_for, names, timeout)

    def sleep(self, sec: float, name: str) -> Any:
        """See `Blocking.sleep`."""
        return self._call(self._attempt.sleep, sec, name)

    def emit(self, data: Any) -> Any:
        """See `Blocking.emit`."""
        return self._call(self._attempt.emit, data)

    def progress(self, done: float, of: float | None, text: str) -> Any:
        """See `Blocking.progress`."""
        return self._call(self._attempt.progress, done, of, text)

    def spawn(self, task: Spawnable, name: str) -> Any:
        """See `Blocking.spawn`."""
        return self._call(self._attempt.spawn, task, name)

    def gather(self, children: tuple[Child, ...], timeout: float | None) -> Any:
        """See `Blocking.gather`."""
        return self._call(self._attempt.gather, children, timeout)

    def first(self, children: tuple[Child, ...], cancel_rest: bool, timeout: float | None) -> Any:
        """See `Blocking.first`."""
        return self._call(self._attempt.first, children, cancel_rest, timeout)

    def as_completed(self, children: tuple[Child, ...]) -> Iterator[tuple[Child, Any]]:
        """See `Blocking.as_completed`."""
        left = self._attempt.family.checked(children) if children else {}
        while left:
            child, result = self._call(self._attempt.first_of, left)
            left.pop(child.id, None)
            yield child, result

    def restart(self, inputs: Mapping[str, Any]) -> Any:
        """See `Blocking.restart`."""
        return self._call(self._attempt.restart, inputs)
