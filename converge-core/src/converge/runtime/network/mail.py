"""The mail of one process: which mailboxes are checked, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio

from converge.errors import ConvergeError, NoSuchPool
from converge.machines.records import MESSAGE
from converge.model.envelope import MessageHeader, pack
from converge.runtime.agents.background import Background
from converge.services.messages.inboxes import Inboxes
from converge.services.messages.mailbox import Mailboxes
from converge.services.messages.routes import Routes

log = logging.getLogger("converge.mailbox")

LOOK_SEC = 5.0
"""How often a node looks for mail without a hint: one scan, however many agents it has."""

WAKE_SEC = 0.02
"""Hints within this time cost one look: nobody can make this node overload the store with hints."""

TELL_SEC = 5.0
"""How long to try to hint another node; otherwise it finds the mail itself."""

TELLING = 100
"""Nodes hinted at a time."""


class Mail:
    """Drains the mailboxes of the agents of one process, each message in order and one at a time."""

    def __init__(self, mailboxes: Mailboxes, inboxes: Inboxes, routes: Routes, background: Background) -> None:
        self._mailboxes, self._inboxes, self._routes, self._background = mailboxes, inboxes, routes, background
        self._woken: set[str] = set()
        self._hinted: set[str] = set()
        self._draining: set[str] = set()
        self._drained = anyio.Event()
        self._telling = 0
        self._bell = anyio.Event()
        self._is_stopping = False

    def stored(self, header: MessageHeader) -> None:
        """Hint to the agent's node that a message was stored for it; the hint may be lost."""
        if header.to in self._inboxes:
            self.wake(header.to)
        elif (
            self._routes.links is not None
            and self._routes.discovery.directory.get(header.to) is not None
            and self._telling < TELLING
        ):
            self._telling += 1
            self._background.errand(self._tell, header)

    async def _tell(self, header: MessageHeader) -> None:
        try:
            with anyio.move_on_after(TELL_SEC):
                link = await self._routes.link_of(header.to)
                credential = self._routes.credential(header.sender)
                if credential is not None:
                    link.show(header.sender, credential)
                await link.send([(MESSAGE, pack(header))])
        except ConvergeError as error:
            log.debug("no hint of its mail reached agent %.16s: %s", header.to, error)
        finally:
            self._telling -= 1

    def wake(self, agent_id: str) -> None:
        """Check an agent's mailbox soon: something was stored there."""
        if agent_id in self._inboxes:
            self._woken.add(agent_id)
            self._bell.set()

    def hinted(self, agent_id: str) -> None:
        """Check soon for mail of the agent, as another node says. All hints at one time cost one look, true or not."""
        if agent_id in self._inboxes:
            self._hinted.add(agent_id)
            self._bell.set()

    async def begin_first(self, agent_ids: Iterable[str]) -> None:
        """Drain the mailboxes of agents that start: what comes to them directly waits until that is done."""
        for agent_id in await self._mailboxes.with_mail(set(agent_ids)):
            self._inboxes.hold(agent_id)
            self._begin(agent_id)

    async def run(self) -> None:
        """Check mailboxes when hinted, and at intervals, until cancelled."""
        while not self._is_stopping:
            with anyio.move_on_after(LOOK_SEC) as scope:
                await self._bell.wait()
                await anyio.sleep(WAKE_SEC)
            self._bell = anyio.Event()
            woken, self._woken, hinted, self._hinted = self._woken, set(), self._hinted, set()
            if hinted or (scope.cancelled_caught and self._inboxes):
                woken |= await self._mailboxes.with_mail(hinted or self._inboxes)
            for agent_id in woken:
                self._begin(agent_id)

    def stop(self) -> None:
        """Claim nothing more; what is with a handler goes on."""
        self._is_stopping = True

    async def stopped(self) -> None:
        """Wait until what was claimed is ended in the store, or handed back."""
        while self._draining:
            self._drained = anyio.Event()
            await self._drained.wait()

    def _begin(self, agent_id: str) -> None:
        if agent_id in self._draining:
            self._woken.add(agent_id)  # it may have seen the mailbox empty a moment ago
        elif not self._is_stopping:
            self._draining.add(agent_id)
            self._background.errand(self._drain, agent_id)

    async def _drain(self, agent_id: str) -> None:
        try:
            await self._mailboxes.open(agent_id)
            while not self._is_stopping and agent_id in self._inboxes and await self._mailboxes.next(agent_id):
                pass
        except NoSuchPool:
            log.debug("agent %.16s has no mailbox", agent_id)
        except ConvergeError as error:  # it is looked into again later, as any mailbox
            log.warning("the mailbox of agent %.16s is drained later: %s", agent_id, error)
        except Exception:  # a task's boundary: the agents and their other messages go on
            log.exception("the mailbox of agent %.16s is drained later", agent_id)
        finally:
            self._draining.discard(agent_id)
            self._drained.set()
            self._inboxes.release(agent_id)
            if agent_id in self._woken:
                self._bell.set()
