"""Entering what a backend's `open` returned: what is wrong with that is told as the plugin's, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from converge.contracts.store import Durability, StoreBackend
from converge.errors import BadRecord, ConvergeError, PluginBroken
from converge.foreign import describe, is_a, is_cancellation, leaves, name_of, passes
from converge.plugins.answers import Whose, look_at
from converge.plugins.blame import BrokenContract
from converge.plugins.declaration import PUT_DECORATOR, Backend, shown
from converge.plugins.found import OWN, Found

T = TypeVar("T")

Opens = Callable[[], AbstractAsyncContextManager[T]]
"""What calls the `open` of a backend."""


class Opened(AbstractAsyncContextManager[T], Generic[T]):
    """A backend's context manager; what its block raises passes through it as it is.

    Raises:
        PluginBroken: On entering: it gave no context manager, or something else than `wanted`, or a store that claims
            more than its declaration, or failed with an error that is none of Converge's, such as a SystemExit.
            `whose` names the plugin and the backend.
        BrokenContract: Out of a call of what was opened, where the plugin, `found`, is none of this project's.
    """

    def __init__(
        self, whose: str, opens: Opens[T], wanted: type[Any], backend: Backend | None, found: Found | None = None
    ) -> None:
        self._whose, self._opens, self._wanted, self._backend, self._found = whose, opens, wanted, backend, found
        self._manager: AbstractAsyncContextManager[T] | None = None

    async def __aenter__(self) -> T:
        try:
            self._manager = self._opens()
            if not hasattr(type(self._manager), "__aenter__"):
                gave = f"{name_of(type(self._manager))}, expected an async context manager; {PUT_DECORATOR}"
                raise PluginBroken(f"{self._whose}: its open gave {gave}")
            opened = await self._manager.__aenter__()
        except BaseException as error:
            if _is_passed(error):
                raise
            raise PluginBroken(f"{self._whose} cannot be opened: {describe(error)}") from error
        try:
            self._look_at(opened)
        except PluginBroken as wrong:
            await self._manager.__aexit__(PluginBroken, wrong, None)
            raise
        return opened

    def _look_at(self, opened: T) -> None:
        if mistake := self._mistake_of(opened):
            raise PluginBroken(f"{self._whose} {mistake}")
        if self._found is not None and self._found.distribution not in OWN:
            try:
                look_at(opened, Whose(self._found, self._whose), self._entering)
            except (BrokenContract, BadRecord) as broken:
                raise PluginBroken(str(broken)) from broken

    @staticmethod
    def _entering(whose: Whose, call: Callable[..., Any], wanted: type[Any]) -> Callable[..., Opened[Any]]:
        return lambda *args: Opened(whose.text, partial(call, *args), wanted, None, whose.found)

    def _mistake_of(self, opened: T) -> str:
        if not isinstance(opened, self._wanted):
            return f"was opened as {name_of(type(opened))}, expected a {self._wanted.__name__}; it must yield one"
        if not isinstance(self._backend, StoreBackend):
            return ""
        has, best = getattr(opened, "durability", None), self._backend.durability
        if not isinstance(has, Durability):
            return f"was opened with durability {shown(has)}, expected Durability.D0 to Durability.{best.name}"
        if has > best:
            return f"was opened with durability {has.name}, and at best {best.name} is declared; change one of the two"
        return ""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._manager is not None, "it was entered"
        return await self._manager.__aexit__(kind, error, traceback)


def _is_passed(error: BaseException) -> bool:
    """Return whether an error is none of the plugin's mistakes: one of Converge's, a cancellation, Ctrl-C."""
    if passes(error) or is_cancellation(error) or is_a(error, GeneratorExit):
        return True
    return all(is_a(one, ConvergeError) for one in leaves(error))
