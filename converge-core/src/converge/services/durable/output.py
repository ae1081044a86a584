"""Output of tasks: what readers follow, each with a cursor and a channel of its own."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import anyio
import attrs

from converge.codec import decode, decode_plain
from converge.contracts.store import Batch, Entry, Rest
from converge.errors import InvalidValue, StoreError
from converge.ids import id_text
from converge.machines.durable import Chunk
from converge.machines.task import TERMINAL, TaskState, state_of
from converge.model.keys import CHUNK, KEPT, READER, TASK
from converge.model.task import DURABLE
from converge.services.durable.limits import NEW_READER_SEC, READER_SEC, READERS_FRESH_SEC
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages
from converge.services.tasks.surroundings import find

CHUNK_PAGE = 200
"""Pieces of output that are read at a time."""

PART = "output"

CURSOR_DIGITS = 19
"""What is so long is not surely a number that a key may have."""

MARK_DIGITS = 8
"""How many digits of its task's id a cursor ends with: behind the place of another task's, output would be skipped."""


@attrs.frozen(kw_only=True)
class Output:
    """What a reader is given: a piece of output, a report of progress, or the task's new state.

    Attributes:
        kind: "data", "progress" or "state".
        data: What was put out; of a report a mapping with `done`, `of` and `text`; of a state its name.
        step: In which step it was put out, or empty.
        cursor: Pass it as `after` to go on behind this piece, of this task alone; empty: nothing was put out yet.
        is_again: An earlier attempt has put out of the same step: it ran again, and this may repeat what it said.
        missing: How many pieces before this one were removed, since there were too many.
    """

    kind: str
    data: Any
    step: str = ""
    cursor: str = ""
    is_again: bool = False
    missing: int = 0


def channel_of(reader: bytes) -> str:
    """Return the channel that wakes a reader of output."""
    return f"reader.{reader.hex()}"


class Following:
    """One reader of one task: an iterator over what it puts out, until it has ended and nothing is left. It is no
    generator: whoever leaves the loop early has nothing to close.
    """

    def __init__(self, handle: StoreHandle, id_: bytes, after: str, poll_sec: float) -> None:
        self._handle, self._id, self._poll_sec = handle, id_, poll_sec
        self._after = _rest_of(after, id_) if after else None
        self._reader = handle.env.entropy(16)
        self._until = self._known_from = float("-inf")
        self._tokens: dict[str, int] = {}  # of each step, under which token it was seen last
        self._last: tuple[int, int] = (0, -1)  # token and number of the last piece
        self._state: TaskState | None = None
        self._ready: deque[Output] = deque()
        self._is_begun = False

    def __aiter__(self) -> Following:
        return self

    async def __anext__(self) -> Output:
        """Return the task's next output.

        Raises:
            NoSuchTask: There is none, or it was removed meanwhile.
            StoreError: As `Store.scan`; another reader goes on behind the cursor.
            InvalidValue: The task has put out nothing in this store that has the cursor.
        """
        if not self._is_begun:
            await find(self._handle.store, self._id)
            if self._after is not None:
                await self._catch_up(self._after)
            self._is_begun = True
        while not self._ready:
            was_terminal = self._state in TERMINAL
            self._ready.extend(map(self._output, await self._read()))
            if self._ready:
                break
            if was_terminal:
                await self.aclose()
                raise StopAsyncIteration
            if (changed := await self._changed()) is not None:
                return changed
            if self._state not in TERMINAL:
                await self._wait()
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Stop wake-ups for output; without this call they expire by themselves."""
        if self._until == float("-inf"):
            return
        with anyio.move_on_after(1.0, shield=True):
            try:
                await (await self._handle.commits()).commit([Batch((), (), [READER(self._id, self._reader)])])
            except StoreError:
                return

    async def _read(self) -> Sequence[Entry]:
        pages = Pages(self._handle.store, CHUNK(self._id), after=self._after, size=CHUNK_PAGE)
        page = await pages.read()
        self._after = pages.after
        return page

    async def _catch_up(self, after: Rest) -> None:
        """Find out what the reader had seen up to its cursor: which steps, and under which token."""
        is_there = False
        async for page in Pages(self._handle.store, CHUNK(self._id)):
            for entry in page:
                at = entry.key[2:]
                # Of an attempt that has put out too much the oldest pieces go, never the last.
                is_there = is_there or (at >= after and at[0] == after[0])
                if at <= after:
                    self._output(entry)
            if page[-1].key[2:] >= after:
                break
        if not is_there:
            what = f"the cursor of a piece of output that task {id_text(self._id)} has put out in this store"
            raise InvalidValue("after", self._cursor(after), what)
        self._last = (int(after[0]), int(after[1]))

    def _cursor(self, after: Rest) -> str:
        return f"{after[0]}.{after[1]}.{_mark(self._id)}"

    def _output(self, entry: Entry) -> Output:
        token, number = entry.key[2], entry.key[3]
        text = f"output of task {id_text(self._id)}"
        chunk = decode(entry.value, Chunk, text)
        expected = self._last[1] + 1 if token == self._last[0] else 0
        self._last = (token, number)
        is_again = bool(chunk.step) and self._tokens.get(chunk.step, token) < token
        if chunk.step and not is_again:
            self._tokens[chunk.step] = token
        return Output(
            kind="progress" if chunk.is_progress else "data",
            data=decode_plain(chunk.data, text),
            step=chunk.step,
            cursor=self._cursor((token, number)),
            is_again=is_again,
            missing=max(0, number - expected),
        )

    async def _changed(self) -> Output | None:
        _, state, place = await find(self._handle.store, self._id)
        new = state_of(state, place)
        if new is self._state:
            return None
        self._state = new
        return Output(kind="state", data=str(new), cursor=self._cursor(self._after) if self._after else "")

    async def _wait(self) -> None:
        """Wait until this reader is woken, at most for a poll interval; the task may not know it yet."""
        await self._register()
        is_known = self._handle.env.monotonic() >= self._known_from
        sec = self._poll_sec if is_known else min(NEW_READER_SEC, self._poll_sec)
        woken = anyio.Event()
        looked = 0
        failed: StoreError | None = None

        def on_wake() -> None:
            nonlocal looked
            looked += 1
            woken.set()

        async with anyio.create_task_group() as group:
            group.start_soon(self._handle.watch_always, [channel_of(self._reader)], PART, on_wake, self._poll_sec)
            try:
                with anyio.move_on_after(sec):
                    await woken.wait()  # it is in force: what came before is read now
                    page = await Pages(self._handle.store, CHUNK(self._id), after=self._after, size=1).read()
                    if not page and looked < 2:
                        woken = anyio.Event()
                        await woken.wait()
            except StoreError as error:  # the group would wrap it
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def _register(self) -> None:
        monotonic = self._handle.env.monotonic()
        if monotonic < self._until - READER_SEC / 2:
            return
        await self._handle.require_format(DURABLE)
        (task,) = await self._handle.store.get([TASK(self._id)])
        if task is None:
            return  # the next look says so
        until = await self._handle.now() + int(READER_SEC * 1_000_000)
        # While the task is there, and with the mark that it leaves more than its records: a reader may be killed.
        puts = [(READER(self._id, self._reader), str(until).encode()), (KEPT(self._id), b"")]
        await (await self._handle.commits()).commit([Batch([(task.key, task.revision)], puts)])
        if self._until < monotonic:
            self._known_from = self._handle.env.monotonic() + 2 * READERS_FRESH_SEC
        self._until = monotonic + READER_SEC


def _mark(id_: bytes) -> str:
    """Return what a cursor has of its task's id: of all that tells two ids apart, what was drawn."""
    return id_.hex()[-MARK_DIGITS:]


def _rest_of(cursor: str, id_: bytes) -> Rest:
    token, number, mark = parts if type(cursor) is str and len(parts := cursor.split(".")) == 3 else ("", "", "")
    rest = [int(text) for text in (token, number) if len(text) < CURSOR_DIGITS and text.isascii() and text.isdigit()]
    if len(rest) != 2 or not re.fullmatch(rf"[0-9a-f]{{{MARK_DIGITS}}}", mark):
        raise InvalidValue("after", cursor, f"the cursor of a piece of output, such as 17.3.{_mark(id_)}")
    if mark != _mark(id_):
        what = f"a cursor of task {id_text(id_)}, not of the task whose id ends in {mark}"
        raise InvalidValue("after", cursor, what)
    return rest[0], rest[1]
