"""Trying again what another was faster with: jittered, for a time and not for a number of tries."""

from __future__ import annotations

import anyio

from converge.env import SYSTEM, Env

PATIENCE_SEC = 30.0
"""How long a change is tried again that loses to others each time. Numbers of tries are used up by a busy hour; this
long nothing but a fault lasts.
"""

PAUSE_GREATEST_SEC = 0.25


def pause_sec(round_: int, env: Env) -> float:
    """Return how long to wait before trying again what another was faster with, the `round_`th time: jittered, so that
    those who try do not stay in step.
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
        if self._env.monotonic() >= self._until:
            raise StopAsyncIteration
        return self._number
