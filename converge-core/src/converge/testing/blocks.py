"""What a backend's context managers do with what their block raised, and what is left open: S-19, C-11, C-13, D-10."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import anyio

from converge.testing.clauses import expect
from converge.testing.fixtures import wait_until

LEAVE_SEC = 10.0
"""How long a block that is cancelled may take to be left."""


USED = 5
"""How often a place is opened, used and left: what leaves something open leaves as much more."""


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


def descriptors() -> dict[str, str]:
    """Return the open descriptors of this process and what each is of; none where the system does not tell."""
    found = dict[str, str]()
    for link in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            found[link.name] = str(link.readlink())
    return found


async def leaves_nothing_open(clause: str, what: str, use: Callable[[], Awaitable[None]]) -> None:
    """Expect that what is opened, used and left again and again leaves no descriptor open."""
    await use()
    before = descriptors()
    for _ in range(USED):
        await use()

    def left() -> list[str]:
        return sorted(target for number, target in descriptors().items() if before.get(number) != target)

    with suppress(AssertionError):  # what ends in a thread of its own, or a turn of the loop later, ends soon
        await wait_until(lambda: len(left()) < USED, timeout=LEAVE_SEC)
    expect(clause, len(left()) < USED, f"{USED} {what} that were left have left open: {', '.join(left())}")
