"""Mailboxes: messages that are stored until their recipient is there, each a task that only it may claim."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

import anyio

from converge.contracts.store import LIMITS, Entry, Range
from converge.errors import BadSignature, ConvergeError, InvalidKey, NoSuchPool, StaleClaim, StoreError, TornRecord
from converge.machines.task import TaskState
from converge.model.envelope import ACCEPTED, FULL, MessageHeader, open_signed
from converge.model.keys import LANE, READY
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.messages.inboxes import Inboxes, LocalOutcome
from converge.services.pools import PoolManager
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages, parts

log = logging.getLogger("converge.mailbox")

PREFIX = "mailbox."

AGE_SEC = 30 * 86_400.0
"""A stored message that is older is not delivered: its task fails. Replays of what was removed end there, too."""

AHEAD_SEC = 60.0
"""How far in the future a stored message may have been signed: store time is one clock, which only jumps so far."""

KEEP_SEC = 3_600.0
"""How long the task of a message that was handled is kept."""

SEEN = 10_000
"""Messages remembered as delivered, so that a copy of one that somebody puts into the store is refused."""

HAND_BACK_SEC = 2.0


def mailbox_of(agent_id: str) -> str:
    """Return the name of the agent's mailbox: a pool."""
    return PREFIX + agent_id


class Mailboxes:
    """Stores messages, and hands those of the agents of one process to their handlers."""

    def __init__(
        self, handle: StoreHandle, network_tag: bytes, inboxes: Inboxes, admits: Callable[[str], bool]
    ) -> None:
        self._handle, self.network_tag, self.inboxes, self._admits = handle, network_tag, inboxes, admits
        self._pools, self._tasks = PoolManager(handle.store), TaskManager(handle.store)
        self._seen: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def store(self, to: str, header: MessageHeader, signed: bytes) -> str:
        """Store a signed message; return its task's id. The mailbox is made with its first message."""
        task = Task(
            pool_id=mailbox_of(to),
            type="message",
            inputs={"signed": signed},
            dedup_key=header.id,
            ordering_key="mail",
            trace={"message_id": header.id},
        )
        try:
            return await self._tasks.submit(task)
        except NoSuchPool:
            pool = Pool(
                id=mailbox_of(to),
                admission="allow",
                allow=(to,),
                keep_completed_sec=KEEP_SEC,
                dedup_window_sec=KEEP_SEC,  # its id is the dedup key of each message, and would keep it for longer
            )
            await self._pools.create_pool(pool)
            return await self._tasks.submit(task)

    async def handled(self, task_id: str) -> tuple[bytes | None, str]:
        """Wait until a stored message is handled; return an empty answer, or None and why the handler failed."""
        task = await self._tasks.result(task_id)
        return (b"", "") if task.state == TaskState.COMPLETED else (None, task.error or f"it is {task.state}")

    async def with_mail(self, agent_ids: Collection[str]) -> set[str]:
        """Return those of the agents that have mail to claim now. While the store is away: none."""
        try:
            lanes = [entry for entry in await self._lanes() if entry.key[1][len(PREFIX) :] in agent_ids]
            found = set()
            for some in parts(lanes, LIMITS.ranges):
                pages = await self._handle.store.scan([Range(READY(lane.key[2]), None, 1) for lane in some])
                found |= {lane.key[1][len(PREFIX) :] for lane, page in zip(some, pages, strict=True) if page}
        except StoreError as error:
            log.debug("mailboxes are looked into later: %s", error)
            return set()
        return found

    async def _lanes(self) -> Sequence[Entry]:
        """Return the lanes of all mailboxes: names are in order, so they stand together."""
        found: list[Entry] = []
        async for page in Pages(self._handle.store, LANE(), after=(PREFIX, bytes(16))):
            mine = [entry for entry in page if entry.key[1].startswith(PREFIX)]
            found += mine
            if len(mine) < len(page):
                break
        return found

    async def open(self, agent_id: str) -> None:
        """Make the agent a member of its own mailbox, under this process's lease.

        Raises:
            NoSuchPool: Nothing was ever stored for it.
            PoolClosed: Somebody made a pool of this name that does not admit it.
            StoreError, LeaseEnded: It cannot be done now.
        """
        await self._pools.join_pool(agent_id, mailbox_of(agent_id))

    async def next(self, agent_id: str) -> bool:
        """Hand the next stored message to the agent and wait; return whether there was one.

        Raises:
            StoreError, LeaseEnded: As `TaskManager.claim`. What was claimed goes back.
        """
        claimed = await self._tasks.claim(agent_id, pools=[mailbox_of(agent_id)])
        return bool(claimed) and await self._hand_over(agent_id, claimed[0])

    async def _hand_over(self, agent_id: str, task: Task) -> bool:
        """Hand a stored message to the agent and wait; return whether its task has ended."""
        is_ended = False
        try:
            is_ended = await self._have_handled(agent_id, task)
        except StaleClaim as error:
            log.warning("a stored message for agent %.16s may be handled again: %s", agent_id, error)
            is_ended = True
        finally:
            if not is_ended:
                await self._hand_back(task)
        return is_ended

    async def _have_handled(self, agent_id: str, task: Task) -> bool:
        """Verify a stored message, have it handled and end its task; return False if the task must be released."""
        try:
            header, payload = await self._verified(agent_id, task)
        except (BadSignature, InvalidKey, TornRecord) as error:
            log.warning("a stored message for agent %.16s was refused: %s", agent_id, error)
            await self._tasks.fail(task, f"refused: {error}", retry=False)
            return True
        end = LocalOutcome()
        status, text = self.inboxes.put(agent_id, header, payload, end, token=task.token)
        if status == FULL:
            return False
        if status != ACCEPTED:
            await self._tasks.fail(task, text)
            return True
        await end.event.wait()
        if end.is_dropped:
            return False
        await (self._tasks.fail(task, end.why) if end.answer is None else self._tasks.complete(task))
        return True

    async def _hand_back(self, task: Task) -> None:
        with anyio.move_on_after(HAND_BACK_SEC, shield=True):
            try:
                await self._tasks.release(task, "its agent could not take it now")
            except ConvergeError as error:
                log.info("a stored message goes back with the lease: %s", error)

    async def _verified(self, agent_id: str, task: Task) -> tuple[MessageHeader, bytes]:
        """Return what a stored message holds.

        Raises:
            BadSignature, InvalidKey, TornRecord: It is not its sender's, not for this agent on this network, too old,
                or a copy of another.
        """
        signed = task.inputs.get("signed")
        if not isinstance(signed, bytes):
            raise TornRecord("stored message", "it is not signed")
        header, payload = open_signed(signed, self.network_tag)
        age_sec = (await self._handle.now() - header.sent_at) / 1_000_000
        if header.to != agent_id:
            raise BadSignature(f"it is for agent {header.to:.16}")
        if not -AHEAD_SEC <= age_sec <= AGE_SEC:
            raise BadSignature(f"it was signed {age_sec:.0f} s ago; at most {AGE_SEC:.0f} are allowed")
        if header.sender not in self.inboxes.agents and not self._admits(header.sender):
            raise BadSignature("its sender is not pinned here, and trust is drop")
        if self._seen.setdefault((header.sender, header.id), task.id) != task.id:
            raise BadSignature("it is a copy of one that was delivered")
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return header, payload
