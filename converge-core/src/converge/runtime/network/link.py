"""One secured connection to another node. Neither its receive loop nor whoever gives it receipts and answers ever waits
for the peer: what the peer may cost has bounds, and who does not keep them loses the connection.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from operator import itemgetter

import anyio

from converge.errors import ConnectionLost, ConvergeError, TornRecord
from converge.machines import records
from converge.machines.records import Item
from converge.model.identity import node_name
from converge.runtime.network.channel import SecureChannel
from converge.services.messages.under_way import UNSIGNED, Waiting, signed
from converge.services.messages.waits import Waiter, waiters

log = logging.getLogger("converge.link")

_KIND = itemgetter(0)

QUEUE_BYTES = 1_048_576
"""Messages that wait to be sent on one link; past that a sender waits."""

WINDOW, WINDOW_BYTES = 4_096, 8_388_608
"""Messages without receipt on one link, and their size: past either a sender waits."""

CONTROL, CONTROL_BYTES = 2 * WINDOW, 8_388_608
"""Receipts and the like that wait to be sent: they hold a whole window twice, so a peer that keeps to its window never
fills them. One that does not loses its link.
"""

ANSWERS_BYTES, ANSWERS_MOST_BYTES = 8_388_608, 33_554_432
"""Answers that wait to be sent on one link: past the first, questions are put off; past the second, it is lost."""

FLUSH_BYTES = 262_144
"""What is given to the connection at a time: so much must get through in `WRITE_SEC`."""

WRITE_SEC = 10.0
"""A link whose peer does not take what is given to the connection at a time within this is broken."""

OnItems = Callable[["Link", list[Item]], Awaitable[None]]


def _nothing() -> None:
    """Do what is done where nobody is told."""


class _Room:
    """Somebody who waits until his message may be queued."""

    __slots__ = ("event", "item", "on_queued", "owed")

    def __init__(self, item: Item, owed: str, on_queued: Callable[[], None]) -> None:
        self.item, self.owed, self.on_queued, self.event = item, owed, on_queued, anyio.Event()


class Link:
    """A secured channel with queues: items that are given within one loop step leave in one record.

    Attributes:
        waiting: Told when the link ends.
        why: Why it has ended.
        shown: The signed descriptors that this side has shown over it, by agent id.
        speakers: The sequences of the descriptors that the peer has shown over it, by agent id.
        work: What the peer has cost since others were last let run.
        heard_at, used_at: When something came last, and something other than a ping. `born_at`: when it began.
        pinged_at: When the peer was asked last whether it is there.
        writing_since: When the write that goes on began; infinite: none does.
    """

    def __init__(self, secured: SecureChannel, on_items: OnItems, monotonic: Callable[[], float]) -> None:
        self.peer, self.features = secured.peer, secured.features
        self.is_dialler, self.address = secured.is_dialler, secured.address
        self.is_closed, self.why = False, ""
        self.endpoint = ""  # that was dialled
        self.waiting: set[Waiting] = set()
        self.shown: dict[str, bytes] = {}
        self.speakers: dict[str, int] = {}
        self.speakers_bytes = self.work = 0
        self.born_at = self.heard_at = self.pinged_at = self.used_at = monotonic()
        self.writing_since = float("inf")
        self._secured, self._on_items, self._monotonic = secured, on_items, monotonic
        self._control: list[Item] = []
        self._data: deque[Item] = deque()
        self._control_bytes = self._data_bytes = self._answers_bytes = 0
        self._owed: dict[str, int] = {}
        self._owed_bytes = 0
        self._rooms: deque[_Room] = deque()
        self._sleeper: Waiter | None = None
        self._scope = anyio.CancelScope()
        self._goodbye = records.SHUTDOWN, ""

    # Messages: they wait for the window.

    async def send(self, items: list[Item], owed: str = "", on_queued: Callable[[], None] = _nothing) -> None:
        """Queue messages; wait while the queue or the window is full. `owed`: the message that is to have a receipt.
        `on_queued`: called for each that was queued, which may leave from then on, however this call ends.

        Raises:
            ConnectionLost: The link is over.
        """
        for item in items:
            if self.offer(item, owed):
                on_queued()
                continue
            room = _Room(item, owed, on_queued)
            self._rooms.append(room)
            try:
                await room.event.wait()
            finally:
                if room in self._rooms:  # cancelled, or the link is over
                    self._rooms.remove(room)
            self._raise_if_closed()

    def offer(self, item: Item, owed: str = "") -> bool:
        """Queue a message, if there is room and nobody waits for some; return whether it was queued.

        Raises:
            ConnectionLost: The link is over.
        """
        if self.is_closed:
            self._raise_if_closed()
        size = len(item[1])
        # As `_has_room` and `_push` do; two calls for each message are saved.
        if (
            self._rooms
            or self._data_bytes - self._answers_bytes > QUEUE_BYTES
            or len(self._owed) >= WINDOW
            or (self._owed_bytes + size > WINDOW_BYTES and self._owed)
        ):
            return False
        self._data.append(item)
        self._data_bytes += size
        if owed:
            self._owed_bytes += size - self._owed.get(owed, 0)
            self._owed[owed] = size
        if self._sleeper is not None:
            self._fill()
        return True

    def settled(self, message_id: str) -> None:
        """Note that a message has its receipt: another may be sent."""
        size = self._owed.pop(message_id, None)
        if size is not None:
            self._owed_bytes -= size
            if self._rooms:
                self._admit()

    # What is given without waiting.

    def post(self, items: list[Item]) -> None:
        """Queue receipts and other short items before all messages. Too many of them cost the peer its link."""
        if self.is_closed:
            return
        self._control += items
        self._control_bytes += sum([len(body) for _, body in items])
        if len(self._control) > CONTROL or self._control_bytes > CONTROL_BYTES:
            self.end(records.LIMIT, "more than a window waits for its receipts")
        self._fill()

    def show(self, agent_id: str, signed: bytes) -> None:
        """Show an agent's descriptor, before whatever is queued later; again only when it has changed."""
        if self.shown.get(agent_id) != signed:
            self.shown[agent_id] = signed
            self._push((records.SHOWN, signed), "")

    def gone(self, agent_id: str) -> None:
        """Say that an agent has ended, if it was shown: behind what it has said, or that would be refused."""
        if self.shown.pop(agent_id, None) is not None:
            self._push((records.GONE, agent_id.encode()), "")

    def answer(self, item: Item) -> bool:
        """Queue an answer behind the messages that were queued before it; return whether there was room."""
        size = len(item[1])
        if self._answers_bytes and self._answers_bytes + size > ANSWERS_MOST_BYTES:
            return False
        self._push(item, "")
        self._answers_bytes += size
        return True

    @property
    def is_full_of_answers(self) -> bool:
        """Whether so many answers wait for the peer that it is to ask later."""
        return self._answers_bytes > ANSWERS_BYTES

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for the peer, and nobody for what it says."""
        return not (self._owed or self.waiting or self._data or self._rooms)

    def end(self, reason: int, text: str = "") -> None:
        """End the link, and tell the peer why where that is possible."""
        if not self.is_closed and not self._scope.cancel_called:
            self._goodbye = reason, text
            self.why = self.why or text or records.REASONS[reason]
            if text:
                log.info("the connection to node %s ends: %s", node_name(self.peer), text)
            self.is_closed = True
            self._scope.cancel()

    def close(self) -> None:
        """End the link, without a reason."""
        self.end(records.NORMAL)

    def _push(self, item: Item, owed: str) -> None:
        size = len(item[1])
        self._data.append(item)
        self._data_bytes += size
        if owed:
            self._owed_bytes += size - self._owed.get(owed, 0)
            self._owed[owed] = size
        self._fill()

    def _fill(self) -> None:
        """Wake what writes, if it sleeps."""
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    def _has_room(self, size: int) -> bool:
        return (
            self._data_bytes - self._answers_bytes <= QUEUE_BYTES
            and len(self._owed) < WINDOW
            and (self._owed_bytes + size <= WINDOW_BYTES or not self._owed)
        )

    def _admit(self) -> None:
        while self._rooms and self._has_room(len(self._rooms[0].item[1])):
            room = self._rooms.popleft()
            self._push(room.item, room.owed)
            room.on_queued()
            room.event.set()

    def _raise_if_closed(self) -> None:
        if self.is_closed:
            raise ConnectionLost(f"the connection to the peer is over: {self.why}")

    # Its two tasks.

    async def run(self) -> None:
        """Send and receive until the connection ends; then everybody who waits is told."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._write)
                    await self._receive()
        except* ConvergeError as errors:
            for error in errors.exceptions:
                log.info("the connection to node %s is over: %s", node_name(self.peer), error)
                self.why = self.why or str(error)
                if isinstance(error, TornRecord):
                    self._goodbye = records.PROTOCOL, ""
        finally:
            self.is_closed = True
            for one in tuple(self.waiting):
                one.give_up()
            for room in self._rooms:
                room.event.set()
            await self._secured.close(*self._goodbye)

    async def _write(self) -> None:
        new_waiter = waiters()
        while True:
            if not (self._control or self._data):
                self._sleeper = sleeper = new_waiter()
                await sleeper
            items = self._next()
            if UNSIGNED in map(_KIND, items):
                items = signed(items)
            self.writing_since = self._monotonic()
            await self._secured.send(items)
            self.writing_since = float("inf")
            if self._rooms:
                self._admit()

    def _next(self) -> list[Item]:
        """Take what is sent next: control items first, then others, as many as may be written at a time."""
        items, self._control, self._control_bytes = self._control, [], 0
        if self._data_bytes <= FLUSH_BYTES:
            items += self._data
            self._data.clear()
            self._data_bytes = self._answers_bytes = 0
            return items
        size = 0
        while self._data and size <= FLUSH_BYTES:
            item = self._data.popleft()
            size += len(item[1])
            if item[0] == records.RECEIPT:
                self._answers_bytes -= len(item[1])
            items.append(item)
        self._data_bytes -= size
        return items

    async def _receive(self) -> None:
        while True:
            items = await self._secured.receive()
            self.heard_at = self._monotonic()
            if items[0][0] not in (records.PING, records.PONG):
                self.used_at = self.heard_at
            if records.PING in map(_KIND, items):
                self.post([(records.PONG, body) for kind, body in items if kind == records.PING])
            await self._on_items(self, items)
