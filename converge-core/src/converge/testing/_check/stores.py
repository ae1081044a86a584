"""The kit on the store that is checked now."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

import pytest

from converge.contracts.store import StoreBackend
from converge.testing._check.given import current
from converge.testing._store.base import Cut
from converge.testing.fixtures import is_quick
from converge.testing.store import Begin, StoreContract
from converge.testing.task import TaskContract


class _Checked:
    backend: ClassVar[StoreBackend] = cast("StoreBackend", current().backend)

    @pytest.fixture(autouse=True)
    def shortening(self, request: pytest.FixtureRequest) -> None:
        """With `--quick`, a history that fails is shown as it was found."""
        vars(self).update(shrinks=not is_quick(request.config))

    @pytest.fixture
    def url(self) -> str:
        """Return a place of this test's own."""
        return current().url()

    @pytest.fixture
    def options(self) -> Any:
        """Return options that name a network of this test's own."""
        return current().options()


class _Means:
    @pytest.fixture
    def cut(self) -> Callable[[Cut], None] | None:
        """Return what breaks a connection, if anything does."""
        return current().cut

    @pytest.fixture
    def begin(self) -> Begin | None:
        """Return what begins a transaction of a caller's, if anything does."""
        return current().begin

    @pytest.fixture
    def drop_unsynced(self, url: str, options: Any) -> Callable[[], None] | None:
        """Return what drops what was not synced, if anything does."""
        drop = current().drop_unsynced
        return None if drop is None else partial(drop, url, options)


class TestStore(_Means, _Checked, StoreContract):
    """The store with its own `turn`, `count` and `watch`."""


class TestStoreInherited(_Means, _Checked, StoreContract):
    """The store with the `turn`, `count` and `watch` that every store inherits."""

    inherited_turn = True


class TestTasks(_Checked, TaskContract):
    """A task's life on the store."""
