"""The kit on the transport that is checked now."""

from __future__ import annotations

from typing import ClassVar, cast

import pytest

from converge.contracts.transport import TransportBackend
from converge.testing._check.given import current
from converge.testing.transport import TransportContract


class TestTransport(TransportContract):
    """The transport as declared."""

    backend: ClassVar[TransportBackend] = cast("TransportBackend", current().backend)

    @pytest.fixture
    def address(self) -> str:
        """Return where to listen: what was given, or a free port of the loopback address."""
        return current().url or f"{self.backend.schemes[0]}://127.0.0.1:0"
