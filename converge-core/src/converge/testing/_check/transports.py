"""The kit on the transport that is checked now."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import pytest

from converge.contracts.transport import TransportBackend
from converge.testing._check.given import current
from converge.testing.transport import TransportContract


class TestTransport(TransportContract):
    """The transport as declared."""

    backend: ClassVar[TransportBackend] = cast("TransportBackend", current().backend)

    @pytest.fixture
    def address(self) -> str:
        """Return where to listen."""
        return current().address()

    @pytest.fixture
    def foreign_address(self) -> str:
        """Return where nobody here can listen."""
        return current().foreign_address()

    @pytest.fixture
    def unknown_address(self) -> str:
        """Return what cannot be found."""
        return current().unknown_address()

    @pytest.fixture
    def options(self) -> Any:
        """Return options of this test's own."""
        return current().options()
