"""Which take a feed makes next: pools and lanes are read first where that is due, and it asks for what there is room
for.
"""

from __future__ import annotations

from converge.contracts.store import Take
from converge.env import Env
from converge.runtime.claiming.budget import Budget
from converge.runtime.claiming.handing_back import HandBack
from converge.runtime.claiming.looking import Looking
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import Claims, settle_takes


class Taking:
    """The takes of one feed."""

    def __init__(
        self, handle: StoreHandle, env: Env, claims: Claims, budget: Budget, looking: Looking, hand_back: HandBack
    ) -> None:
        self._handle, self._env, self._claims = handle, env, claims
        self._budget, self._looking, self._hand_back = budget, looking, hand_back
        self.is_over = False
        """Whether nothing more is taken."""

    async def next(self, now: float) -> Take | None:
        """Return the next take, which counts as under way; None: nothing is ready, or it is not the moment.

        Raises:
            StoreError, InputError: Something that had to be known first could not be read.
        """
        if not self._may_take():
            return None
        if self._handle.unsettled:
            await settle_takes(self._handle)
        if self._claims.unread:
            await self._claims.put_unread_away()
        if self._looking.is_due(now):
            await self._look()
        if not self._may_take():  # while this pump waited the other one has taken, or the node has begun to stop
            return None
        return await self._ask()

    def _may_take(self) -> bool:
        return not self.is_over and self._budget.room > 0

    async def _look(self) -> None:
        if not await self._looking.look():
            return
        self._hand_back.undo_paused(self._claims.paused)
        if self._looking.hears and not self.is_over:
            self._looking.hear()

    async def _ask(self) -> Take | None:
        pace, now = self._budget.pace, self._env.monotonic()
        if not self._claims.has_ready:
            pace.found_nothing(now)
            self._looking.hear()  # the watch's first answer has this feed look again
            return None
        limit = self._budget.limit(now)
        if limit <= 0:
            return None
        take = None
        pace.left(now)
        try:
            take = await self._claims.next_take(limit, self._env.entropy(16))
        finally:
            if take is None:
                pace.came_back(limit, 0, now)
        return take
