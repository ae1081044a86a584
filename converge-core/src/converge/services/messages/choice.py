"""The choice of an agent for a message that is for any one with a capability."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from converge.errors import AskCycle, Backpressure, ChannelError, Dropped, MessageTooLarge, StoreError, Undeliverable
from converge.model.descriptor import DiscoveryQuery
from converge.services.messages.chains import AGENTS
from converge.services.messages.inboxes import Inboxes
from converge.services.messages.routes import Routes
from converge.services.messages.unsettled import CHOOSY_SEC, RETRY_GREATEST_SEC, RETRY_LEAST_SEC

TRIES = 32
"""Agents of a capability that are tried, here and elsewhere: where so many are full, one more would be, too."""

T = TypeVar("T")


class Choice:
    """Chooses agents of this process in turn; where none of them accepts the message, agents of other processes."""

    def __init__(self, inboxes: Inboxes, routes: Routes) -> None:
        self._inboxes, self._routes = inboxes, routes
        self._turns_here, self._turns_elsewhere = _Turns(), _Turns()

    async def deliver(self, sender: str, capability: str, deliver_to: Callable[[str], Awaitable[T]]) -> T:
        """Try one agent after another; each refusal is certain, so one at most has the message. While some cannot be
        reached, all are tried again: the caller has a deadline.

        Args:
            sender: Is not chosen itself.
            capability: What the agent is able to do.
            deliver_to: Called with an agent's id; what certainly did not reach it raises.

        Raises:
            Undeliverable, Backpressure: Nobody has it; AskCycle where some wait for this very question.
        """
        wait_sec = RETRY_LEAST_SEC
        while True:
            failures, silent = list[Exception](), set[str]()
            for find in (self._here, self._elsewhere, self._after_all):
                rest = [] if find == self._after_all and failures else list(await find(capability, sender))
                while to := await self._next(rest, bool(silent)):
                    try:
                        return await deliver_to(to)
                    except (MessageTooLarge, Dropped):
                        raise
                    except (Undeliverable, Backpressure, ChannelError, StoreError) as error:
                        if isinstance(error, AskCycle) and len(error.chain) > AGENTS + 1:
                            raise  # each of them would refuse it
                        failures.append(error)
                        if to not in silent and self._routes.is_dialling(to):
                            silent.add(to)
                            rest.append(to)  # it may be the first that is reached all the same
            if not failures:
                raise Undeliverable(f'no agent that is known here has the capability "{capability}"')
            if full := next((error for error in failures if isinstance(error, Backpressure)), None):
                raise full
            if not any(isinstance(error, ChannelError | StoreError) for error in failures):
                if cycle := next((error for error in failures if isinstance(error, AskCycle)), None):
                    raise cycle
                raise Undeliverable(
                    f'no agent with the capability "{capability}" takes the message; the last one: {failures[-1]}'
                ) from failures[-1]
            await anyio.sleep(wait_sec)  # a connection that was refused for a moment, as by a busy listener
            wait_sec = min(wait_sec * 2, RETRY_GREATEST_SEC)

    async def _next(self, rest: list[str], is_silent: bool) -> str:
        """Return the next of the agents, and remove it; empty: there is none. Once a host was silent, whoever is
        reached soonest is the next: hosts that drop packets cost no more than one does, however many there are.
        """
        to = rest[0] if rest else ""
        if rest and is_silent:
            to = await self._routes.first_reached(rest, CHOOSY_SEC)
        if to:
            rest.remove(to)
        return to

    async def _here(self, capability: str, sender: str) -> Sequence[str]:
        return self._turns_here.some(self._inboxes.able(capability), sender)

    async def _elsewhere(self, capability: str, sender: str) -> Sequence[str]:
        known = await self._routes.query(DiscoveryQuery(capabilities=(capability,)))
        return self._turns_elsewhere.some([one.id for one in known if one.id not in self._inboxes], sender)

    async def _after_all(self, capability: str, sender: str) -> Sequence[str]:
        """Look again where nobody was known: one may have started since the directory was read."""
        await self._routes.refresh()
        return await self._elsewhere(capability, sender)


class _Turns:
    """Begins with another agent each time."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = 0

    def some(self, agents: Sequence[str], but: str) -> list[str]:
        """Return some of the agents, all but one, the sender."""
        self._turn += 1
        if agents and agents[self._turn % len(agents)] == but:
            self._turn += 1
        some = (agents[(self._turn + at) % len(agents)] for at in range(min(len(agents), TRIES)))
        return [one for one in some if one != but]
