"""Retries after conflicts: jittered, for a limited time rather than a number of tries."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Protocol

import anyio

from converge.contracts.store import Batch, Channel, Committed, Conflict
from converge.env import SYSTEM, Env
from converge.errors import OutcomeUnknown, StoreError

PATIENCE_SEC = 30.0
"""How long a change is tried again that loses to others each time. Numbers of tries are used up by a busy hour; this
long nothing but a fault lasts.
"""

PAUSE_GREATEST_SEC = 0.25


def pause_sec(round_: int, env: Env) -> float:
    """Return the pause before retry number `round_` after a conflict: jittered, so that competing processes do not stay
    in step.
    """
    return env.uniform(0.0, min(PAUSE_GREATEST_SEC, 0.001 * 2.0 ** min(round_, 10)))


class attempts:  # read as a function: `async for _ in attempts(env)`
    """Iterate over the number of each try, from 0, with growing pauses from the fourth on, until `within_sec` has
    passed. No generator, which would have to be closed by whoever leaves the loop.
    """

    def __init__(self, env: Env = SYSTEM, within_sec: float = PATIENCE_SEC) -> None:
        self._env, self._until, self._number = env, env.monotonic() + within_sec, -1

    def __aiter__(self) -> attempts:
        return self

    async def __anext__(self) -> int:
        self._number += 1
        if self._number > 3:
            await anyio.sleep(pause_sec(self._number, self._env))
        if self._number and self._env.monotonic() >= self._until:
            raise StopAsyncIteration
        return self._number


class Commit(Protocol):
    """`Commits.commit`."""

    async def __call__(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]: ...


class LostAnswer:
    """A change that is tried again where the answer was lost: `error` is set from then on, and whoever finds that the
    change is there must take it for its own. An error of a later try is no word on the first, so that one is raised.
    """

    def __init__(self) -> None:
        self.error: OutcomeUnknown | None = None

    def __enter__(self) -> LostAnswer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.error is not None and isinstance(error, StoreError) and error is not self.error:
            raise self.error from error

    async def is_committed(self, commit: Commit, batch: Batch, wake: Collection[Channel]) -> bool:
        """Return whether the batch is known to be applied; what was refused, or has no answer, is tried again.

        Raises:
            StoreError: As `Store.commit`, but for `OutcomeUnknown`.
        """
        try:
            (outcome,) = await commit([batch], wake=wake)
        except OutcomeUnknown as error:
            self.error = error
            return False
        return isinstance(outcome, Committed)
