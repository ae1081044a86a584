"""FaultyStore: a store whose calls are late, fail, lose their answer or are carried out again, as a seed says."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from enum import Enum
from typing import TypeVar

import anyio
import anyio.lowlevel
import attrs

from converge.contracts.store import (
    Batch,
    Channel,
    Committed,
    Conflict,
    Durability,
    Entry,
    Key,
    Prefix,
    Range,
    Store,
    Take,
    Turned,
)
from converge.errors import OutcomeUnknown, StoreUnavailable

T = TypeVar("T")

GREATEST_DELAY_SEC = 0.005
"""Long enough for every other task to have its turn, short enough for thousands of calls."""


class Fault(Enum):
    """A fault of one call."""

    NONE = "none"
    DELAY = "delay"  # it is late, before it reaches the store or on its way back
    FAIL_BEFORE = "fail before"  # it never reaches the store: StoreUnavailable
    LOSE_REPLY = "lose reply"  # it is carried out, and nobody learns of it: OutcomeUnknown (a read: StoreUnavailable)
    # it is carried out more than once, as by a client that sends it again; a take never is, see `FaultyStore`
    REPEAT = "repeat"


@attrs.define
class FaultPlan:
    """Draws a fault for each call, from a seed; print it in a test that fails, to have the same faults again.

    Attributes:
        seed: Where all faults come from.
        likelihood: Of each fault, for a call that changes something; what is left of 1 is no fault.
        reads: Whether reads fail, too; REPEAT changes nothing for them.
        scripted: Faults of the next calls that change something, before any is drawn.
        log: Each fault that has happened, with the call.
    """

    seed: int
    likelihood: dict[Fault, float] = attrs.field(
        factory=lambda: {Fault.DELAY: 0.2, Fault.FAIL_BEFORE: 0.05, Fault.LOSE_REPLY: 0.05, Fault.REPEAT: 0.1}
    )
    reads: bool = False
    scripted: list[Fault] = attrs.field(factory=list)
    log: list[tuple[str, Fault]] = attrs.field(factory=list)
    is_calm: bool = False
    """True ends all faults: a run ends with a calm phase, in which everything must come to its end."""
    _random: random.Random = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def script(self, faults: Iterable[Fault]) -> None:
        """Set the faults of the next calls that change something."""
        self.scripted.extend(faults)

    def draw(self, call: str, *, is_read: bool) -> Fault:
        """Return the fault of one call."""
        fault = self._drawn(is_read)
        if fault is not Fault.NONE:
            self.log.append((call, fault))
        return fault

    def _drawn(self, is_read: bool) -> Fault:
        if self.scripted and not is_read:
            return self.scripted.pop(0)
        if self.is_calm or (is_read and not self.reads):
            return Fault.NONE
        drawn = self._random.random()
        for fault, likelihood in self.likelihood.items():
            drawn -= likelihood
            if drawn < 0:
                return fault
        return Fault.NONE

    async def delay(self) -> None:
        """Wait for a few turns of the event loop, or some milliseconds."""
        if self._random.random() < 0.5:
            for _ in range(self._random.randint(1, 5)):
                await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(self._random.random() * GREATEST_DELAY_SEC)


class FaultyStore(Store):
    """Any store, with faults before and after its calls. What it does stays within the contract: it raises `NotApplied`
    only if nothing was written.

    A take is never repeated behind its caller's back: the second would move other keys, which no store may do. Of a
    repeated commit each batch is answered as last committed; a batch without a fence (a check of a key that it writes)
    is then committed at the last revision.
    """

    def __init__(self, inner: Store, plan: FaultPlan) -> None:
        self.inner, self.plan = inner, plan

    @property
    def durability(self) -> Durability:  # type: ignore[override]  # the wrapped store decides, so it is read-only here
        return self.inner.durability

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return await self._read("get", lambda: self.inner.get(keys))

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        return await self._read("scan", lambda: self.inner.scan(ranges))

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        return await self._read("count", lambda: self.inner.count(prefixes))

    async def time(self) -> int:
        return await self._read("time", self.inner.time)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        async def again() -> Sequence[Committed | Conflict]:
            outcomes = list(await self.inner.commit(batches, wake=wake))
            for _ in range(2):
                repeated = await self.inner.commit(batches, wake=wake)
                outcomes = [
                    new if isinstance(new, Committed) else old for old, new in zip(outcomes, repeated, strict=True)
                ]
            return outcomes

        return await self._change("commit", lambda: self.inner.commit(batches, wake=wake), again)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        async def again() -> Turned:
            outcomes = list((await self.inner.turn(batches, None, wake=wake)).outcomes)
            repeated = await self.inner.turn(batches, take, wake=wake)
            pairs = zip(outcomes, repeated.outcomes, strict=True)
            return Turned([new if isinstance(new, Committed) else old for old, new in pairs], repeated.taken)

        return await self._change("turn", lambda: self.inner.turn(batches, take, wake=wake), again)

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        async with aclosing(self.inner.watch(channels)) as items:  # type: ignore[type-var]  # every watch is an async generator
            async for item in items:
                yield item

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        """Return another handle with the same plan."""
        opened: AbstractAsyncContextManager[Store] = self.inner.reopen()
        async with opened as inner:
            yield FaultyStore(inner, self.plan)

    async def _read(self, call: str, once: Callable[[], Awaitable[T]]) -> T:
        fault = self.plan.draw(call, is_read=True)
        if fault in (Fault.FAIL_BEFORE, Fault.LOSE_REPLY):
            raise StoreUnavailable(f"{call}: {fault.value} (a fault of seed {self.plan.seed})")
        if fault is Fault.DELAY:
            await self.plan.delay()
        return await once()

    async def _change(self, call: str, once: Callable[[], Awaitable[T]], again: Callable[[], Awaitable[T]]) -> T:
        fault = self.plan.draw(call, is_read=False)
        if fault is Fault.FAIL_BEFORE:
            raise StoreUnavailable(f"{call}: {fault.value} (a fault of seed {self.plan.seed})")
        if fault is Fault.DELAY:
            await self.plan.delay()
        answer = await (again() if fault is Fault.REPEAT else once())
        if fault is Fault.DELAY:
            await self.plan.delay()
        if fault is Fault.LOSE_REPLY:
            raise OutcomeUnknown(f"{call}: {fault.value} (a fault of seed {self.plan.seed})")
        return answer
