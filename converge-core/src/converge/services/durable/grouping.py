"""Rounds: what many callers ask while one call of the store is under way goes out in the next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

T = TypeVar("T")


class Ask(Generic[T]):
    """One caller's request; `answer` is what came of it, or `error`."""

    __slots__ = ("answer", "done", "error", "request")

    def __init__(self, request: T) -> None:
        self.request = request
        self.answer: object = None
        self.error: BaseException | None = None
        self.done = False


class Rounds(Generic[T]):
    """Hands requests to `run` in rounds, one at a time; `run` sets `done`, and what is not done goes into the next."""

    def __init__(self, run: Callable[[Sequence[Ask[T]]], Awaitable[None]], most: int) -> None:
        self._run, self._most = run, most
        self._waiting: list[Ask[T]] = []
        self._turn = anyio.Lock()

    async def ask(self, request: T) -> object:
        """Return what came of the request.

        Raises:
            Exception: As `run` has said, or raised.
        """
        ask = Ask(request)
        self._waiting.append(ask)
        await checkpoint()  # who else asks in this step of the loop goes along
        while not ask.done:
            async with self._turn:
                if ask.done:
                    break
                some, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                try:
                    with anyio.CancelScope(shield=True):  # what others asked must not end with who runs the round
                        await self._run(some)
                except Exception as error:
                    for one in some:
                        one.error, one.done = (None, one.done) if one.done else (error, True)
                finally:
                    self._waiting = [one for one in some if not one.done] + self._waiting
        if ask.error is not None:
            raise ask.error
        return ask.answer
