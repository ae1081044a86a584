"""Which lanes other processes are woken for: those that a take has left something in, and those of a wake-up for which
no slot was free.
"""

from __future__ import annotations

from math import inf

from converge.contracts.store import Channel
from converge.env import Env
from converge.machines.pace import PAUSE_SEC
from converge.services.tasks.claim import Claims


class Wakes:
    """The wake-ups that a feed owes to other processes."""

    def __init__(self, claims: Claims, env: Env) -> None:
        self._claims, self._env = claims, env
        self.due: set[Channel] = set()
        """What goes out with the next call."""
        self.pass_on_at = inf
        """When to pass on a wake-up that came while no slot was free (monotonic seconds)."""
        self._hinted: set[Channel] = set()  # for which another process was woken since nothing was ready here

    def come_too_early(self) -> None:
        """Note a wake-up for which no slot is free: in a moment a quick task has ended, and it is not passed on."""
        if self.pass_on_at == inf:
            self.pass_on_at = self._env.monotonic() + PAUSE_SEC

    def found_nothing(self) -> None:
        """Note that nothing is ready: what is next in a lane is news to others, too."""
        self._hinted.clear()

    def left_behind(self) -> bool:
        """Wake another process for each lane that has something left; once, until nothing was ready here. Return
        whether there is any.
        """
        channels = self._claims.ready_channels - self._hinted
        self.due |= channels
        self._hinted |= channels
        return bool(channels)

    async def pass_on(self) -> bool:
        """Wake another process for all that is ready; return whether anything is.

        Raises:
            StoreError, InputError: The lanes could not be read.
        """
        await self._claims.look()
        self._hinted.clear()
        return self.left_behind()

    def send(self) -> set[Channel]:
        """Return what is due; nothing is due then."""
        due, self.due = self.due, set()
        return due
