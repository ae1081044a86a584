"""Watches without a server that notifies: this handle's own commits wake at once, others' are seen at the next poll.

MariaDB and MySQL have nothing like LISTEN, and a table of wake-ups would cost every submit another commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection

import anyio

from converge.contracts.store import Channel


class Watches:
    """The open watches of one handle."""

    def __init__(self, poll_sec: float) -> None:
        self._poll_sec = poll_sec
        self._waiting: dict[Channel, list[anyio.Event]] = defaultdict(list)

    def wake(self, channels: Collection[Channel]) -> None:
        """Wake the watches of these channels on this handle; called after the commit."""
        for channel in channels:
            for event in self._waiting.pop(channel, ()):
                event.set()

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        """Yield once, then after each wake of this handle, and each `poll_sec`."""
        while True:
            told = anyio.Event()
            for channel in channels:
                self._waiting[channel].append(told)
            yield None
            try:
                with anyio.move_on_after(self._poll_sec):
                    await told.wait()
            finally:
                self._forget(channels, told)

    def _forget(self, channels: Collection[Channel], told: anyio.Event) -> None:
        for channel in channels:
            events = self._waiting.get(channel)
            if events and told in events:
                events.remove(told)
            if not events:
                self._waiting.pop(channel, None)
