"""Claims of callers that poll: one take each, and a page of the sweep each poll interval."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import inf

import anyio

from converge.contracts.store import Conflict
from converge.errors import ConvergeError, LeaseEnded, StoreError
from converge.machines.events import Released
from converge.machines.match import Claimer
from converge.model.place import Found, Held
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import LEASE_WAS_LOST, Claims, Unread, settle_takes, turn
from converge.services.tasks.finish import Finishes
from converge.services.tasks.sweep import Sweep

CLAIMERS = 1_000
"""Of how many claimers the lanes are remembered, for a poll interval."""

SETTLE_SEC = 5.0
"""How long a cancelled claim may take to hand back what it took; after that it goes back with the lease."""

log = logging.getLogger("converge.claims")


class Polling:
    """What one manager takes from the store, and what it remembers for that."""

    def __init__(self, handle: StoreHandle, finishes: Finishes, sweep: Sweep, poll_sec: float) -> None:
        self._handle, self._finishes, self._sweep, self._poll_sec = handle, finishes, sweep, poll_sec
        self._claims: dict[tuple[str, tuple[str, ...], Claimer], Claims] = {}
        self._unread: list[Unread] = []  # of all claims, also of those that are forgotten
        self._sweep_due = -inf

    async def sweep_sometimes(self) -> bool:
        """Sweep a page if a poll interval has passed; return whether it has."""
        monotonic = self._handle.env.monotonic()
        if monotonic < self._sweep_due:
            return False
        self._sweep_due = monotonic + self._poll_sec * self._handle.env.uniform(0.75, 1.0)  # never later than promised
        await self._sweep.paced_page()
        return True

    def claims_of(self, agent_id: str, pools: tuple[str, ...], claimer: Claimer, *, is_due: bool) -> Claims:
        """Return the claims of such a claimer; after a poll interval they look anew, and find new lanes."""
        if is_due or len(self._claims) > CLAIMERS:
            self._claims.clear()
        key = (agent_id, pools, claimer)
        claims = self._claims.get(key)
        if claims is None:
            claims = self._claims[key] = Claims(self._handle, agent_id, pools, claimer, unread=self._unread)
        return claims

    async def acquire(self, claims: Claims, limit: int) -> list[Found]:
        for attempt in range(3):
            if self._handle.unsettled:
                await settle_takes(self._handle)
            if (attempt or not claims.has_ready) and not await claims.look():
                return []
            nonce = self._handle.env.entropy(16)
            take = await claims.next_take(limit, nonce)
            if take is None:
                continue
            try:
                turned = await turn(self._handle, [], take)
            except BaseException:
                if nonce in self._handle.unsettled:
                    await self._settle_now()
                raise
            if isinstance(turned.taken, Conflict):
                await claims.refused(turned.taken)
            elif turned.taken is not None and (found := claims.taken(take, turned.taken)):
                if not self._handle.may_act_under(take.to[1]):
                    await self._give_back(found)
                return found
        return []

    async def put_unread_away(self, claims: Claims, taken: Sequence[Found]) -> None:
        """Put away what cannot be read, now or with the next claim. What one take has `taken` is the caller's, or, if
        that is cancelled meanwhile, goes back.
        """
        try:
            await claims.put_unread_away()
        except StoreError as error:
            log.warning("claims that cannot be read are still held: %s", error)
        except BaseException:
            for one in taken:
                assert isinstance(one.place, Held), "what a take took is held"
                self._handle.unsettled[one.place.nonce] = one.place.lease
            await self._settle_now()
            raise

    async def _settle_now(self) -> None:
        """Settle a take at once, if the store lets us: its caller may never claim again. Else the next take does.

        It raises no error of its own, so that none takes the place of what the caller is told, or of a cancellation.
        """
        with anyio.move_on_after(SETTLE_SEC, shield=True):
            try:
                await settle_takes(self._handle)
            except ConvergeError as error:
                log.warning("what a claim without an answer took is settled before the next claim: %s", error)

    async def _give_back(self, found: Sequence[Found]) -> None:
        """Hand back what came under a lease that was lost while it was claimed.

        Raises:
            LeaseEnded: Always.
        """
        with anyio.move_on_after(SETTLE_SEC, shield=True):
            try:
                errors = await self._finishes.finish_all([(one, Released("", LEASE_WAS_LOST)) for one in found])
            except StoreError as error:
                errors = [error]
            for why in filter(None, errors):
                log.warning("a claim of a lost lease was not handed back, the reaper does it: %s", why)
        place = found[0].place
        assert isinstance(place, Held), "what a take took is held"
        raise LeaseEnded(place.lease.hex())
