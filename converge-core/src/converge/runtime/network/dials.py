"""Dials: one under way for each node, whoever waits for it; it ends by itself, also when no caller is left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio

from converge.contracts.transport import Channel
from converge.env import Env
from converge.errors import ChannelError, ConnectFailed
from converge.foreign import describe
from converge.net.sockets import Race
from converge.runtime.agents.background import Background
from converge.runtime.network.channel import SecureChannel
from converge.services.messages.unsettled import CHOOSY_SEC

DIALS, DIALS_AGAIN = 256, 64
"""Dials under way at a time, those to nodes whose last dial failed apart; others wait for their turn. So nodes behind a
cut, each of which keeps a dial waiting for seconds, hold up no first dial to another node.
"""

ENDPOINTS = 4
"""Endpoints of a node that are tried at most."""

DIAL_SEC = 12.0
"""How long a dial may take in all; each way to connect, and each handshake, has a limit of its own."""

REST_LEAST_SEC, REST_GREATEST_SEC = 0.05, 1.0
"""How long a node is not dialled again after a dial has failed: twice as long each time."""

RESTING = 10_000
"""Nodes whose last failure is remembered."""

Whom = bytes | str
"""A node's key, or an endpoint whose node is not known yet."""


class Dial:
    """One dial: `done` is set when it has ended, or a link to the node is there."""

    def __init__(self, whom: Whom, began: float, race: Race[str, tuple[str, SecureChannel]]) -> None:
        self.whom, self.began, self.race = whom, began, race
        self.done = anyio.Event()
        self.failure: ChannelError | None = None
        self.scope = anyio.CancelScope()


class Dials:
    """The dials of one node.

    Args:
        connect: Connects to an endpoint.
        secure: Runs the handshake over a channel to somebody.
        keep: Is given what was dialled.
        background: Starts them.
        env: Clock.
    """

    def __init__(
        self,
        connect: Callable[[str], Awaitable[Channel]],
        secure: Callable[[Channel, Whom], Awaitable[SecureChannel]],
        keep: Callable[[Dial, str, SecureChannel], None],
        background: Background,
        env: Env,
    ) -> None:
        self._connect, self._secure, self._keep, self._background = connect, secure, keep, background
        self._monotonic = env.monotonic
        self._under_way: dict[Whom, Dial] = {}
        self._resting: dict[Whom, tuple[float, float, ChannelError]] = {}  # until, how long, why
        self._turns: tuple[anyio.CapacityLimiter, anyio.CapacityLimiter] | None = None  # of the running event loop

    async def wait(self, whom: Whom, endpoints: Sequence[str]) -> None:
        """Wait until a link to the node is there, dialling it if nobody does.

        Raises:
            ConnectFailed, ChannelError: It cannot be reached, or could not a moment ago.
        """
        one = self._under_way.get(whom)
        if one is None:
            until, _, failure = self._resting.get(whom, (0.0, 0.0, None))
            if failure is not None and self._monotonic() < until:
                raise type(failure)(*failure.args)
            if not endpoints:
                raise ConnectFailed("the node has no endpoint: it only dials others")
            one = self.begin(whom, endpoints)
        else:
            one.race.join(endpoints)
        await one.done.wait()
        if one.failure is not None:
            raise type(one.failure)(*one.failure.args)

    def begin(self, whom: Whom, endpoints: Sequence[str]) -> Dial:
        """Dial, unless that is under way."""
        if whom in self._under_way:
            return self._under_way[whom]

        async def attempt(endpoint: str) -> tuple[str, SecureChannel]:
            channel = await self._connect(endpoint)
            try:
                return endpoint, await self._secure(channel, whom)
            except ChannelError as error:
                raise type(error)(f"{endpoint}: {error}") from error

        race: Race[str, tuple[str, SecureChannel]] = Race(attempt, _close, ENDPOINTS)
        race.join(endpoints)
        one = self._under_way[whom] = Dial(whom, self._monotonic(), race)
        self._background.errand(self._run, one)
        return one

    def reached(self, whom: Whom) -> None:
        """Resume those that wait for this node: there is a link to it."""
        self._resting.pop(whom, None)
        one = self._under_way.get(whom)
        if one is not None:
            one.done.set()

    def is_under_way(self, whom: Whom) -> bool:
        """Return whether there is a dial that has not ended."""
        return whom in self._under_way

    def failure(self, whom: Whom) -> ChannelError | None:
        """Return why the node was not reached by the last dial that has ended, or that one under way takes long; None:
        it was, or neither is so.
        """
        one = self._under_way.get(whom)
        if one is not None and whom not in self._resting and (sec := self._monotonic() - one.began) > CHOOSY_SEC:
            return ConnectFailed(f"no answer for {sec:.1f} s")
        return self._resting.get(whom, (0.0, 0.0, None))[2]

    def cancel(self, whom: Whom) -> None:
        """End a dial: a connection that the other side has made is kept in its place."""
        one = self._under_way.get(whom)
        if one is not None:
            one.scope.cancel()

    async def _run(self, one: Dial) -> None:
        self._turns = self._turns or (anyio.CapacityLimiter(DIALS), anyio.CapacityLimiter(DIALS_AGAIN))
        try:
            with one.scope:
                async with self._turns[one.whom in self._resting]:
                    one.began = self._monotonic()
                    with anyio.fail_after(DIAL_SEC):
                        self._keep(one, *await one.race.run())
        except TimeoutError:
            one.failure = ConnectFailed(f"no connection to the node within {DIAL_SEC:g} s")
        except OSError as error:
            one.failure = ConnectFailed(f"cannot connect: {error}")
        except ChannelError as error:
            one.failure = error
        except Exception as error:
            one.failure = ConnectFailed(f"the transport failed: {describe(error)}")
            raise
        finally:
            if self._under_way.get(one.whom) is one:
                del self._under_way[one.whom]
            if one.failure is not None and not one.done.is_set():
                self._rest(one.whom, one.failure)
            one.done.set()

    def _rest(self, whom: Whom, failure: ChannelError) -> None:
        now = self._monotonic()
        until, before, _ = self._resting.pop(whom, (now, 0.0, None))
        rest_sec = min(REST_GREATEST_SEC, max(REST_LEAST_SEC, before * 2)) if now - until < 60 else REST_LEAST_SEC
        self._resting[whom] = now + rest_sec, rest_sec, failure
        if len(self._resting) > RESTING:
            del self._resting[next(iter(self._resting))]


async def _close(dialled: tuple[str, SecureChannel]) -> None:
    await dialled[1].close()
