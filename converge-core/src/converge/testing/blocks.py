"""What a backend's context managers do with what their block raised: S-19, C-13, D-10."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio

from converge.testing.clauses import expect

LEAVE_SEC = 10.0
"""How long a block that is cancelled may take to be left."""


class BlockRaised(Exception):
    """Raised in a block by the kit."""


async def passes_through(clause: str, opening: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
    """Expect that what is raised in a block comes out of it as it is, and that a cancelled block is left."""
    for raised in (BlockRaised("the block raised this"), SystemExit(3)):
        came: BaseException | None = None
        try:
            async with opening():
                raise raised
        except BaseException as error:
            came = error
        expect(clause, came is raised, f"a block that raised {raised!r} ended with {came!r}")
    with anyio.move_on_after(LEAVE_SEC) as patience:
        try:
            with anyio.CancelScope() as scope:
                async with opening():
                    scope.cancel()
                    await anyio.sleep_forever()
        except BaseException as error:
            if patience.cancel_called:
                raise
            expect(clause, False, f"a block that was cancelled ended with {error!r}")
        expect(clause, scope.cancelled_caught, "a block that was cancelled ended as if it had not been")
    expect(clause, not patience.cancelled_caught, f"a block that was cancelled was not left in {LEAVE_SEC:g} s")
