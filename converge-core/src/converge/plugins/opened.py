"""Entering what a backend's `open` returned: what is wrong with that is told as the plugin's, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from converge.errors import ConvergeError, PluginBroken
from converge.foreign import describe, is_a, is_cancellation, leaves, name_of, passes

T = TypeVar("T")

Opens = Callable[[], AbstractAsyncContextManager[T]]
"""What calls the `open` of a backend."""


class Opened(AbstractAsyncContextManager[T], Generic[T]):
    """A backend's context manager; what its block raises passes through it as it is.

    Raises:
        PluginBroken: On entering: it gave no context manager, or something else than `wanted`, or failed with an error
            that is none of Converge's, such as a SystemExit. `whose` names the plugin and the backend.
    """

    def __init__(self, whose: str, opens: Opens[T], wanted: type[Any]) -> None:
        self._whose, self._opens, self._wanted = whose, opens, wanted
        self._manager: AbstractAsyncContextManager[T] | None = None

    async def __aenter__(self) -> T:
        try:
            self._manager = self._opens()
            opened = await self._manager.__aenter__()
        except BaseException as error:
            if _is_passed(error):
                raise
            raise PluginBroken(f"{self._whose} cannot be opened: {describe(error)}") from error
        if not isinstance(opened, self._wanted):
            wrong = PluginBroken(
                f"{self._whose} was opened as {name_of(type(opened))}, expected a {self._wanted.__name__}; its open "
                "must yield one"
            )
            await self._manager.__aexit__(PluginBroken, wrong, None)
            raise wrong
        return opened

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
