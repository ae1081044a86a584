"""The watch of one feed: who hears of new tasks, while it could take them."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from converge.contracts.store import Channel
from converge.runtime.agents.background import Background
from converge.services.store.handle import StoreHandle


class LaneWatch:
    """Watches the channels of the lanes that a feed may take from; `on_wake_up` is called for each wake-up."""

    def __init__(
        self, handle: StoreHandle, background: Background, poll_sec: float, on_wake_up: Callable[[], None]
    ) -> None:
        self._handle, self._background, self._poll_sec, self._on_wake_up = handle, background, poll_sec, on_wake_up
        self._part = f"lanes.{id(self)}"
        self._channels: list[Channel] = []
        self._scope: anyio.CancelScope | None = None
        self._has_left = anyio.Event()
        self._has_left.set()

    @property
    def hears(self) -> bool:
        """Whether wake-ups are listened for."""
        return self._scope is not None

    def watch(self, channels: list[Channel]) -> None:
        """Listen to these channels, and to no others."""
        if channels == self._channels:
            return
        if self._scope is not None:
            self._scope.cancel()
        self._channels, self._scope, self._has_left = channels, anyio.CancelScope(), anyio.Event()
        self._background.errand(self._watch, channels, self._scope, self._has_left)

    def leave(self) -> None:
        """Stop listening: a wake-up reaches one watcher, and another process may have a free slot."""
        if self._scope is not None:
            self._scope.cancel()
        self._scope, self._channels = None, []

    async def left(self) -> None:
        """Return when no wake-up can reach this watch any more, after `leave`."""
        await self._has_left.wait()

    async def _watch(self, channels: list[Channel], scope: anyio.CancelScope, has_left: anyio.Event) -> None:
        try:
            with scope:
                await self._background.again(
                    self._handle.watch_always, channels, self._part, self._on_wake_up, self._poll_sec
                )
        finally:
            has_left.set()
