"""Asking a node for its agents' descriptors, over the link to it: where discovery knows only places of nodes.

The question is a message from node to node that wants `descriptors`; the answer is a receipt of that status. What a
node tells of its agents verifies by itself, and must name the node that tells it: nobody can pass on the descriptor of
an agent elsewhere, which may be old.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

import anyio
import attrs

from converge.codec import decode, encode
from converge.env import Env
from converge.errors import ConnectionLost, DeliveryTimeout, MessageTooLarge, TornRecord
from converge.machines.records import MESSAGE, RECEIPT, Item
from converge.model.envelope import MessageHeader, ReceiptHeader, pack
from converge.model.identity import agent_id, node_name
from converge.services.messages.under_way import Link, Waiting

DESCRIPTORS = "descriptors"
"""What such a message wants, and the status of its answer."""

PAGE_BYTES = 262_144
"""Descriptors of one answer: a quarter of the longest message, so that others get their turn on the link."""

PAGES = 1_000
"""Answers to one round of questions at most. A peer that goes on for ever is given up."""

AGENTS, AGENTS_BYTES = 100_000, 134_217_728
"""What one node may tell of that an operator has listed: as many agents as a process may have, of a kilobyte each."""

ROUND_SEC = 30.0
"""How long one round of questions may take, however many answers it needs."""

ANSWER_SEC = 5.0
"""How long one answer may take."""


class Announcing(Protocol):
    """What this node says of its agents: signed descriptors by id, and how often that has changed."""

    signed: dict[str, bytes]
    changes: int


@attrs.frozen(kw_only=True)
class _Question:
    """`life` and `changes`: what the asker knows already; `after`: the id up to which it has the answer; `is_back`: the
    other has asked first.
    """

    life: str = ""
    changes: int = -1
    after: str = ""
    is_back: bool = False


@attrs.frozen(kw_only=True)
class _Answer:
    """`signed`: descriptors in base64, in the order of their ids. `next`: where to go on; empty: that is all."""

    life: str
    changes: int
    signed: tuple[str, ...] = ()
    next: str = ""


@attrs.frozen(kw_only=True)
class PeerDescriptors:
    """All that a node says of its agents, as of one moment of its `life`; unverified."""

    life: str
    changes: int
    signed: tuple[bytes, ...]


class _Waiter:
    """Waits for one answer."""

    __slots__ = ("done", "payload")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.payload: bytes | None = None

    def give_up(self) -> None:
        """Wake the waiter: the link has ended."""
        self.done.set()


class Asking:
    """Asks other nodes for their descriptors, and answers their questions.

    Args:
        env: Clock and entropy.
        node_id: Who asks.
        announcing: What is answered.
        on_asked: Called with the link by which somebody has asked: that node can be asked as well.
    """

    def __init__(
        self, env: Env, node_id: str, announcing: Announcing, on_asked: Callable[[Link], None] = lambda link: None
    ) -> None:
        self._env, self._node_id, self._life = env, node_id, env.entropy(8).hex()
        self._announcing, self._on_asked = announcing, on_asked
        self._sorted: tuple[int, list[str]] = -1, []  # the agents' ids in order, as of how many changes
        self._waiting: dict[str, tuple[bytes, _Waiter]] = {}

    async def ask(
        self, link: Link, known: PeerDescriptors | None, *, is_back: bool = False, most_bytes: int | None = None
    ) -> PeerDescriptors | None:
        """Return all that the other node says of its agents, at most so many bytes; None if that is what is `known`.

        `is_back`: it is asked because it has asked; else two nodes would ask each other for ever.

        Raises:
            ConnectionLost: The link has ended.
            DeliveryTimeout: It does not answer, or not to the end.
            MessageTooLarge: It tells of more than a node can have.
            TornRecord: It answers with something else.
        """
        first, most_bytes = _Question(is_back=is_back), AGENTS_BYTES if most_bytes is None else most_bytes
        question = first if known is None else attrs.evolve(first, life=known.life, changes=known.changes)
        signed: list[bytes] = []
        size = 0
        until = self._env.monotonic() + ROUND_SEC
        for _ in range(PAGES):
            if self._env.monotonic() > until:
                break
            answer = await self._one(link, question)
            if (
                known is not None
                and not question.after
                and (answer.life, answer.changes) == (known.life, known.changes)
            ):
                return None
            if question.after and (answer.life, answer.changes) != (question.life, question.changes):
                question, signed, size = first, [], 0  # it has changed meanwhile: from the beginning
                continue
            size += sum(map(len, answer.signed))
            if len(signed) + len(answer.signed) > AGENTS or size > most_bytes:
                raise MessageTooLarge(
                    f"node {node_name(link.peer)} tells of more than {AGENTS:,} agents, or {most_bytes:,} bytes"
                )
            signed += map(_bytes, answer.signed)
            if not answer.next:
                return PeerDescriptors(life=answer.life, changes=answer.changes, signed=tuple(signed))
            question = attrs.evolve(first, life=answer.life, changes=answer.changes, after=answer.next)
        raise DeliveryTimeout(
            f"node {node_name(link.peer)} did not come to an end with its agents in {PAGES} answers, or {ROUND_SEC:g} s"
        )

    async def _one(self, link: Link, question: _Question) -> _Answer:
        message_id, waiter = self._env.entropy(16).hex(), _Waiter()
        header = MessageHeader(message_id, self._node_id, agent_id(link.peer), self._life, 1, 0, wants=DESCRIPTORS)
        self._waiting[message_id] = link.peer, waiter
        waiting: Waiting = waiter
        link.waiting.add(waiting)
        try:
            with anyio.fail_after(ANSWER_SEC):
                link.post([(MESSAGE, pack(header, encode(question)))])
                if not link.is_closed:
                    await waiter.done.wait()
        except TimeoutError:
            raise DeliveryTimeout(
                f"node {node_name(link.peer)} did not list its agents within {ANSWER_SEC:g} s"
            ) from None
        finally:
            link.waiting.discard(waiting)
            del self._waiting[message_id]
        if waiter.payload is None:
            raise ConnectionLost(f"the link to node {node_name(link.peer)} ended before it listed its agents")
        return decode(waiter.payload, _Answer, "answer about agents")

    # What `Received` gives here.

    def on_message(self, link: Link, header: MessageHeader, payload: bytes) -> Item:
        """Return the answer to a question.

        Raises:
            TornRecord: It is none.
        """
        question = decode(payload, _Question, "question about agents")
        if not question.is_back:
            self._on_asked(link)
        return RECEIPT, pack(ReceiptHeader(header.id, DESCRIPTORS), encode(self._answer(question)))

    def on_receipt(self, link: Link, header: ReceiptHeader, payload: bytes) -> None:
        """Accept an answer; ignore one that nobody waits for, or that comes from another node."""
        peer, waiter = self._waiting.get(header.id, (b"", None))
        if waiter is not None and peer == link.peer:
            waiter.payload = payload
            waiter.done.set()

    def _answer(self, question: _Question) -> _Answer:
        signed, changes = self._announcing.signed, self._announcing.changes
        if not question.after and (question.life, question.changes) == (self._life, changes):
            return _Answer(life=self._life, changes=changes)
        size, some, last = 0, list[str](), ""
        if self._sorted[0] != changes:
            self._sorted = changes, sorted(signed)
        ids = self._sorted[1]
        for at in range(bisect_right(ids, question.after), len(ids)):
            one = ids[at]
            if size > PAGE_BYTES:
                return _Answer(life=self._life, changes=changes, signed=tuple(some), next=last)
            some.append(base64.b64encode(signed[one]).decode())
            size, last = size + len(some[-1]), one
        return _Answer(life=self._life, changes=changes, signed=tuple(some))


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise TornRecord("answer about agents", str(error)) from error
