"""The kit on the discovery that is checked now."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, cast

import pytest

from converge.contracts.discovery import DiscoveryBackend, Sighting
from converge.testing._check.given import current
from converge.testing._discovery.base import Configure, Process
from converge.testing.discovery import DiscoveryContract


class _Checked:
    backend: ClassVar[DiscoveryBackend] = cast("DiscoveryBackend", current().backend)

    @pytest.fixture
    def options(self) -> Any:
        """Return options that name a network of this test's own."""
        return current().options()

    @pytest.fixture
    def configured(self, options: Any) -> list[Sighting]:
        """Return what a discovery that publishes nothing must say."""
        configure = current().configure
        return [] if configure is None else [*configure(options, 1)]

    @pytest.fixture
    def configure(self, options: Any) -> Configure | None:
        """Return what changes a discovery that publishes nothing, if anything does."""
        configure = current().configure
        return None if configure is None else partial(configure, options)


class TestDiscovery(_Checked, DiscoveryContract):
    """The discovery as declared."""

    async def die(self, process: Process) -> None:
        """Simulate the death of a process, by the means of its author."""
        die = current().die
        if die is None:
            await super().die(process)
        else:
            die(process)
