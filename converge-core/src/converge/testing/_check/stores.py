"""The kit on the store that is checked now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, cast

import pytest

from converge.contracts.store import StoreBackend
from converge.testing._check.given import current
from converge.testing._store.base import Cut
from converge.testing.clauses import cited
from converge.testing.fixtures import is_quick
from converge.testing.store import Begin, StoreContract
from converge.testing.task import TaskContract

OF_NEW_PLACES = frozenset({"S-20", "S-21", "S-23", "S-24", "S-25"})
"""The clauses whose tests need a place at which nothing was ever stored, or leave more behind than keys."""


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
    def options(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Give options that name a network of this test's own; with `--quick` an earlier test may have had it."""
        bench = current()
        if not is_quick(request.config) or OF_NEW_PLACES & set(cited(request.function)):
            yield bench.options()
            return
        options = bench.left.pop() if bench.left else bench.options()
        yield options
        if bench.emptied(options):
            bench.left.append(options)


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
