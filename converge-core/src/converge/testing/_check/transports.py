"""The kit on the transport that is checked now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import pytest

from converge.contracts.transport import TransportBackend
from converge.testing._check.given import current
from converge.testing._transport.streams import StreamTransportContract
from converge.testing.transport import TransportContract


class _Checked:
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


def is_on_the_wire() -> bool:
    """Return whether its bytes can be seen: it has TCP connections without TLS."""
    scheme = current().address().partition(":")[0]
    return bool(current().oversized) and scheme not in _Checked.backend.secure_schemes


if is_on_the_wire():

    class TestTransport(_Checked, StreamTransportContract):
        """The transport as declared, and its bytes on the wire."""

        oversized: ClassVar[bytes] = current().oversized
        malformed: ClassVar[Mapping[str, bytes]] = current().malformed
        patience_sec: ClassVar[float] = current().patience_sec

else:

    class TestTransport(_Checked, TransportContract):  # type: ignore[no-redef]  # which of the two, the bench decides
        """The transport as declared."""
