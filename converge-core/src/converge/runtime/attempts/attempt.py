"""One attempt of a task as its handler sees it, in the event loop: steps, waits, output, children."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import isawaitable, iscoroutinefunction
from typing import Any, NamedTuple

import anyio
from anyio.lowlevel import checkpoint

from converge.codec import decode_plain, encode, encode_plain, stored_text
from converge.contracts.store import Key, Put
from converge.errors import (
    AttemptEnd,
    CalledOff,
    InvalidValue,
    NotRunning,
    StaleClaim,
    StepFailed,
    StepUncertain,
    ValueTooLarge,
    WaitTimeout,
    WentOn,
)
from converge.foreign import awaited, leaves, name_of, text_of
from converge.ids import id_text
from converge.machines.durable import FOREVER, Step
from converge.machines.events import Event, Parked, Restarted
from converge.machines.task import RESULT_BYTES
from converge.model.keys import SIGNAL, SIGNALS
from converge.model.place import Found
from converge.model.task import Calling, Wait
from converge.model.working import Child, Kinds, Spawnable, StepOptions, Working
from converge.runtime.attempts.family import Family
from converge.runtime.attempts.names import FIRST, GATHER, SLEEP, STEP, STEP_NAME, Names
from converge.runtime.attempts.putting_out import PuttingOut
from converge.services.durable.ledger import Ledger
from converge.services.durable.limits import shown
from converge.services.store.handle import StoreHandle
from converge.services.tasks.surroundings import Seen
from converge.threads import called_in_own_thread

LOOK_SEC = 1.0
"""How often a wait looks again that cannot be parked, since a step is under way beside it."""

SETTLE_SEC = 0.02
"""How long after the end of a step beside it a wait is not parked: what comes next may be another step."""

WAIT_GREATEST_SEC = 86_400.0 * 366 * 10
"""The longest timeout of a wait."""

SECONDS = f"seconds, from 0 to {WAIT_GREATEST_SEC:,.0f}"

OUTSIDE = "a call outside of steps: a step keeps the slot that the children may need"

LATE = "task {}: {} did not come in time"

WENT_ON = (
    "task {}: its handler went on after it was parked; let the cancellation pass, wait in no shielded scope, and see "
    "`task.is_parking`"
)

ENDS_SEC = 5.0
"""How long a call that has parked its task waits to be cancelled: in a shielded scope that would be for ever."""

PASSING = (AttemptEnd, CalledOff, WentOn, StaleClaim)
"""Errors that end the attempt, in a step as elsewhere: they are neither tried again there nor recorded."""


def is_over(error: Exception) -> bool:
    """Return whether a step's error ends the attempt, also where it is a group of nothing else."""
    return all(isinstance(one, PASSING) for one in leaves(error))


def final_of(error: Exception, final: Kinds) -> Exception | None:
    """Return the error that is recorded of a step: its own, of a group of final ones the first; None: it is none."""
    if is_over(error):
        return None
    found = [error] if isinstance(error, final) else [one for one in leaves(error) if isinstance(one, Exception)]
    return found[0] if all(isinstance(one, final) for one in found) else None


def is_tried_again(error: Exception, final: Kinds) -> bool:
    """Return whether a step may be tried again after the error, if tries are left."""
    return not is_over(error) and final_of(error, final) is None


class Parking(BaseException):
    """Ends a handler whose task is parked or restarted, in a worker thread: no `except Exception` may hold it."""


class Waiting(NamedTuple):
    """What a handler waits for; `puts` record that the wait began."""

    names: tuple[str, ...]
    need: int
    until: int
    puts: tuple[Put, ...]
    text: str
    seen: Seen


class Attempt:
    """The calls of one running handler. `on_park` ends the handler, whose task then ends its attempt with `event`."""

    def __init__(self, handle: StoreHandle, found: Found, on_park: Callable[[], None]) -> None:
        self.ledger = Ledger(handle, found)
        self.id = id_text(found.id)
        self.event: Event | None = None
        self.also: tuple[Key, bytes, int] | None = None
        """The state of a virtual agent, to be put with its answer."""
        self.is_parking = False
        self._names = Names(self.id)
        self._on_park = on_park
        self._running = 0
        self._changed = anyio.Event()
        self._waitings: list[Waiting] = []
        self._calling: Calling | None = None
        self._is_told = False
        self._scopes: set[anyio.CancelScope] = set()
        self._over = anyio.Event()
        self._output = PuttingOut(self.ledger)
        self.family = Family(self.ledger, self._names)

    # Called off.

    @property
    def is_called_off(self) -> bool:
        """Whether the task is being cancelled with grace."""
        return self._calling is not None

    def call_off(self, calling: Calling) -> None:
        """Tell the handler, once, that its task is being cancelled: the steps that run, or the next call, raise it."""
        self._calling = calling
        for scope in () if self._is_told else self._scopes:
            scope.cancel()
        self._changed.set()

    def close(self) -> None:
        """End the attempt: what its handler has left running must not park or restart the task, nor end its slot's next
        handler.
        """
        self._over.set()

    def _check(self) -> None:
        """Refuse a call of a handler whose task is parked, or which has ended.

        Raises:
            WentOn: It went on.
            NotRunning: It has ended.
        """
        self._check_over()
        if self.is_parking:
            raise WentOn(WENT_ON.format(self.id))

    def _check_over(self) -> None:
        if self._over.is_set():
            raise NotRunning(f"task {self.id}: its handler has ended; await what it begins before it returns")

    def _check_called_off(self) -> None:
        """Tell the handler that its task is being cancelled, where it comes to something that is not recorded.

        Raises:
            CalledOff: Once.
        """
        state = self.ledger.found.state
        if self._calling is None and state is not None and state.calling is not None:
            self._calling = state.calling
        if self._calling is not None and not self._is_told:
            raise self._called_off()

    def _called_off(self) -> CalledOff:
        assert self._calling is not None, "it was called off"
        self._is_told = True
        left_sec = (self._calling.until - self.ledger.handle.about_now()) / 1_000_000
        by = f" by {self._calling.by}" if self._calling.by else ""
        why = f" ({self._calling.why})" if self._calling.why else ""
        what = f"for {max(0.0, left_sec):.0f} s it may record steps, but not wait"
        return CalledOff(f"task {self.id} is being cancelled{by}{why}; {what}")

    # Steps.

    async def step(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: StepOptions
    ) -> Any:
        """See `Task.step`."""
        label, known = await self.begin(name, function, options)
        if known is not None:
            return known[0]
        began = self.ledger.handle.env.monotonic()
        try:
            try:
                value = await self._tried(label[1:], function, arguments, options)
            except Exception as error:
                if (final := final_of(error, options.final)) is None:
                    raise
                await self.end_failed(label, final, began)
                raise StepFailed(self.id, shown(label[1:]), name_of(type(final)), text_of(final)) from error
            return await self.end(label, value, began)
        finally:
            self.left(label)

    async def begin(self, name: str, function: object, options: StepOptions) -> tuple[str, tuple[Any] | None]:
        """Begin a step; return its label, and its value where it was recorded: then it is over."""
        self._check()
        options.check(function)
        label = self._names.label(STEP, name)
        known = await self.ledger.recorded(label)
        if known is not None and known.is_over:
            if known.kind:
                raise StepFailed(self.id, shown(label[1:]), known.kind, known.text)
            return label, (decode_plain(known.result, f'step "{name}"'),)
        if known is not None:
            raise StepUncertain(
                f'task {self.id}: step "{shown(label[1:])}" was begun and may have been done; '
                "look at what it does outside"
            )
        self._check_called_off()
        self.ledger.check_room()
        if options.at_most_once:
            self._check_renamed(label)
        self._names.begin(label)
        self._running += 1
        try:
            if options.at_most_once:
                await self.ledger.record(label, await self.ledger.step(is_begun=True))
        except BaseException:
            self.left(label)
            raise
        return label, None

    def _check_renamed(self, label: str) -> None:
        """Refuse a step that may be one under another name which an earlier attempt has begun.

        Raises:
            StepUncertain: One was begun that this attempt has not come to.
        """
        for other, step in self.ledger.steps.items():
            if step.is_begun and other not in self._names.called:
                raise StepUncertain(
                    f'task {self.id}: step "{shown(label[1:])}" is new, and "{shown(other[1:])}" was begun '
                    "and may have been done; if it was renamed, give it its name back, and look at what it does outside"
                )

    async def end(self, label: str, value: Any, began: float) -> Any:
        """Record what a step returned; return it as a later attempt is given it."""
        what = f'step "{shown(label[1:])}"'
        data = encode_plain(value, what)
        await self.ledger.record(label, await self.ledger.step(data, ms=self._ms(began)))
        return decode_plain(data, what)

    async def end_failed(self, label: str, error: BaseException, began: float) -> None:
        """Record that a step has failed for good."""
        kind, text = name_of(type(error)), text_of(error)[:2_000]
        await self.ledger.record(label, await self.ledger.step(kind=kind, text=text, ms=self._ms(began)))

    async def again(self, name: str, delay_sec: float) -> None:
        """Wait until a step is to be tried again.

        Raises:
            CalledOff: The task is being cancelled.
            NotRunning: The attempt has ended, as it may while a handler's thread goes on.
        """
        self._check_called_off()
        with self._told(), anyio.move_on_after(delay_sec):
            await self._over.wait()
        self._check_over()
        self._names.again(name)

    def left(self, label: str) -> None:
        """Note that a step is no longer under way."""
        self._names.end(label)
        self._running -= 1
        self._changed.set()

    def _ms(self, began: float) -> int:
        return int((self.ledger.handle.env.monotonic() - began) * 1_000)

    async def _tried(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: StepOptions
    ) -> Any:
        delay_sec = options.delay_sec
        for left in range(options.retries, -1, -1):
            try:
                return await self._run(name, function, arguments)
            except Exception as error:
                if not left or not is_tried_again(error, options.final):
                    raise
            await self.again(name, delay_sec)
            delay_sec *= 2
        raise AssertionError("the last try returns or raises")

    async def _run(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._told(), named(name):
            if iscoroutinefunction(function) or isinstance(getattr(function, "__self__", None), Working):
                return await awaited(function, *arguments)
            value = await called_in_own_thread(function, *arguments)
            return await awaited(lambda: value) if isawaitable(value) else value

    @contextmanager
    def _told(self) -> Iterator[None]:
        """End what runs in the context where the task is being cancelled.

        Raises:
            CalledOff: It is.
        """
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:  # nothing else cancels this scope
            raise self._called_off()

    # Waits.

    async def wait_for(self, names: tuple[str, ...], timeout: float | None) -> Any:
        """See `Task.wait_for`."""
        self._check()
        label = self._names.label_of_wait(names)
        known = await self.ledger.recorded(label)
        if known is not None and known.is_over:
            return self._waited(label, known, names)
        until, puts = await self._until(label, known, timeout)
        while True:
            self._check_called_off()
            seen = await self.ledger.look(names)
            if seen.match is not None:
                number, signal = seen.match
                came = encode({"name": signal.name, "payload": signal.payload})
                step = await self.ledger.step(came, is_signal=True)
                got = encode(type(seen.signals)(seen.signals.next, seen.signals.got + 1, seen.signals.keys))
                if await self.ledger.record(
                    label,
                    step,
                    [(SIGNALS(self.ledger.id), got)],
                    deletes=[SIGNAL(self.ledger.id, number)],
                    checks=[(SIGNALS(self.ledger.id), seen.revision)],
                ):
                    return self._waited(label, step, names)
            elif not await self.gave_up(label, until, seen):
                await self.park(Waiting(names, 0, until, puts, " or ".join(names), seen))
            elif self._is_late(label):
                raise WaitTimeout(LATE.format(self.id, shown(label[1:])))

    def _is_late(self, label: str) -> bool:
        """Return whether it is recorded that a wait's time has passed; not so where something came at that moment."""
        step = self.ledger.steps.get(label)
        return step is not None and bool(step.kind)

    def _waited(self, label: str, step: Step, names: tuple[str, ...]) -> Any:
        if step.kind:
            raise WaitTimeout(LATE.format(self.id, shown(label[1:])))
        came = decode_plain(step.result, "signal")
        return came["payload"] if len(names) == 1 else (came["name"], came["payload"])

    async def _until(
        self, label: str, known: Step | None, timeout: float | None, what: str = "timeout", whose: bytes = b"null"
    ) -> tuple[int, tuple[Put, ...]]:
        """Return until when a wait lasts, and what records that: the same for all attempts."""
        if known is not None:
            return known.until, ()
        self.ledger.check_room()
        until = FOREVER
        if timeout is not None:
            if type(timeout) not in (int, float) or not 0 <= timeout <= WAIT_GREATEST_SEC:
                raise InvalidValue(what, timeout, SECONDS)
            until = await self.ledger.handle.now() + int(timeout * 1_000_000)
        return until, ((self.ledger.key(label), encode(await self.ledger.step(whose, until=until))),)

    async def gave_up(self, label: str, until: int, seen: Seen, whose: bytes = b"null") -> bool:
        """Record that a wait's time has passed, if nothing came meanwhile. Return whether to look again."""
        handle = self.ledger.handle
        if until == FOREVER or await handle.now() < until - 1_000_000:
            return False
        if await self.ledger.patiently(handle.store.time) < until:
            return False
        box = SIGNALS(self.ledger.id)
        await self.ledger.record(
            label,
            await self.ledger.step(whose, kind="WaitTimeout"),
            [(box, encode(seen.signals))],
            checks=[(box, seen.revision)],
        )
        return True

    async def sleep(self, sec: float, name: str) -> None:
        """See `Task.sleep`."""
        self._check()
        label = self._names.label(SLEEP, name)
        known = await self.ledger.recorded(label)
        if known is not None and known.is_over:
            return
        if sec is None:
            raise InvalidValue("sleep", sec, SECONDS)
        until, puts = await self._until(label, known, sec, "sleep")
        while True:
            self._check_called_off()
            seen = await self.ledger.look(())
            if not await self.gave_up(label, until, seen):
                await self.park(Waiting((), 0, until, puts, f"{name} (time)", seen))
            elif label in self.ledger.steps and self.ledger.steps[label].is_over:
                return

    async def park(self, waiting: Waiting) -> None:
        """Park the task, which ends the handler; return where it cannot be parked yet, to look again."""
        self._waitings.append(waiting)
        try:
            for _ in range(2):
                await checkpoint()  # what runs beside it may be about to begin a step
            if not self._running:
                await self._end_with(self._parked())
            self._changed = anyio.Event()
            with anyio.move_on_after(LOOK_SEC):
                await self._changed.wait()
                await anyio.sleep(SETTLE_SEC)
        finally:
            self._waitings.remove(waiting)

    def _parked(self) -> Parked:
        all_ = self._waitings
        names = tuple(dict.fromkeys(name for one in all_ for name in one.names))
        need = min((one.need for one in all_ if one.need), default=0)
        text = stored_text(", ".join(dict.fromkeys(one.text for one in all_)))[:300]
        newest = max(one.seen.revision for one in all_)
        signals = next(one.seen.signals for one in all_ if one.seen.revision == newest)
        return Parked(
            Wait(names, need, self.ledger.handle.about_now(), text),
            min(one.until for one in all_),
            min(one.seen.revision for one in all_),  # of an older one the check fails, and all is looked at again
            tuple(put for one in all_ for put in one.puts),
            encode(signals),
        )

    async def _end_with(self, event: Event) -> None:
        """End the handler, and thereby this call.

        Raises:
            CalledOff: The task is being cancelled: what it has not undone yet, nobody would.
            WentOn: It is not cancelled.
            NotRunning: It has ended.
        """
        self._check_over()
        if self._calling is not None:
            raise self._called_off()
        self.event, self.is_parking = event, True
        self._on_park()
        with anyio.move_on_after(ENDS_SEC):
            await anyio.sleep_forever()
        raise WentOn(WENT_ON.format(self.id))

    async def restart(self, inputs: Mapping[str, Any]) -> None:
        """See `Task.restart`."""
        self._check()
        self._check_called_off()
        if not isinstance(inputs, Mapping):
            raise InvalidValue("inputs", inputs, "a mapping of names to plain data")
        data = encode_plain(dict(inputs), "inputs")
        if len(data) > RESULT_BYTES:
            raise ValueTooLarge("inputs", len(data), RESULT_BYTES)
        await self._end_with(Restarted(data))

    # Output.

    async def emit(self, data: Any) -> None:
        """See `Task.emit`."""
        self._check()
        self._check_called_off()
        await self._output.emit(data, shown(STEP_NAME.get()))

    async def progress(self, done: float, of: float | None, text: str) -> None:
        """See `Task.progress`."""
        self._check()
        self._check_called_off()
        await self._output.emit({"done": done, "of": of, "text": text}, shown(STEP_NAME.get()), is_progress=True)

    # Children.

    async def spawn(self, task: Spawnable, name: str) -> Child:
        """See `Task.spawn`."""
        self._check()
        return await self.family.spawn(task, name, self._check_called_off)

    async def gather(self, children: tuple[Child, ...], timeout: float | None) -> list[Any]:
        """See `Task.gather`."""
        self._check()
        own = self.family.checked(children) if children else {}
        label = await self._label_of("gather", own)
        if not children:
            return []
        await self._wait_for_children(label, own, len(own), timeout)
        return [self.family.result(self.id, child) for child in children]

    async def first(self, children: tuple[Child, ...], cancel_rest: bool, timeout: float | None) -> tuple[Child, Any]:
        """See `Task.first`."""
        return await self.first_of(self.family.checked(children), cancel_rest, timeout)

    async def first_of(
        self, children: Mapping[str, Child], cancel_rest: bool = False, timeout: float | None = None
    ) -> tuple[Child, Any]:
        """Return the first of these children, by their ids, to end, and its result."""
        self._check()
        label = await self._label_of("first", children)
        known = self.ledger.steps.get(FIRST + label)
        if known is None:
            all_ = children.values()
            if not self.family.has_ended(all_) or self._is_late(GATHER + label):
                await self._wait_for_children(label, children, 1, timeout)
            winner = self.family.earliest(all_)
            if cancel_rest:
                await self.family.cancel([child for child in all_ if child.id != winner.id])
            await self.ledger.record(FIRST + label, await self.ledger.step(encode(winner.id)))
        else:
            winner = children[_winner(known)]
            if winner.id not in self.ledger.ended:  # whoever asks for this one asks for the next ones, too
                firsts = [step for of, step in self.ledger.steps.items() if of.startswith(FIRST)]
                await self.family.look([Child(id=_winner(step)) for step in firsts])
        return winner, self.family.result(self.id, winner)

    async def as_completed(self, children: tuple[Child, ...]) -> AsyncIterator[tuple[Child, Any]]:
        """See `Task.as_completed`."""
        left = self.family.checked(children) if children else {}
        while left:
            child, result = await self.first_of(left)
            left.pop(child.id, None)
            yield child, result

    async def _label_of(self, name: str, children: Mapping[str, Child]) -> str:
        """Return the label of a call that waits for these children: where an earlier attempt has recorded what came of
        it, or until when it waits, that of its record.
        """
        if step := STEP_NAME.get():
            raise InvalidValue(name, f'a call in step "{shown(step)}"', OUTSIDE)
        await self.ledger.recorded(GATHER + name)
        steps = self.ledger.steps

        def is_own(label: str) -> bool:
            first, wait = steps.get(FIRST + label), steps.get(GATHER + label)
            if first is not None:
                return _winner(first) in children
            return wait is not None and bytes(wait.result) == _whose(children)

        return self._names.label_of_children(name, steps, is_own)

    async def _wait_for_children(
        self, what: str, children: Mapping[str, Child], count: int, timeout: float | None
    ) -> None:
        label = GATHER + what
        known = await self.ledger.recorded(label)
        if known is not None and known.kind:
            raise WaitTimeout(LATE.format(self.id, what))
        whose = b"null" if timeout is None else _whose(children)
        until, puts = (FOREVER, ()) if timeout is None else await self._until(label, known, timeout, whose=whose)
        while True:
            self._check_called_off()
            seen = await self.ledger.look((), counts=True)
            missing = count - await self.family.look(children.values())
            if missing <= 0:
                return
            if not await self.gave_up(label, until, seen, whose):
                text = f"{len(children)} children" if count > 1 else f"the first of {len(children)} children"
                await self.park(Waiting((), seen.ended + missing, until, puts, text, seen))
            elif self._is_late(label):
                raise WaitTimeout(LATE.format(self.id, what))


def _winner(step: Step) -> str:
    return str(decode_plain(step.result, "first"))


def _whose(children: Collection[str]) -> bytes:
    """Return what tells apart the calls that wait for children, at most until a time: for which ones."""
    return encode(hashlib.blake2b("".join(sorted(children)).encode(), digest_size=8).hexdigest())


@contextmanager
def named(name: str) -> Iterator[None]:
    """Say that what runs is this step."""
    token = STEP_NAME.set(name)
    try:
        yield
    finally:
        STEP_NAME.reset(token)
