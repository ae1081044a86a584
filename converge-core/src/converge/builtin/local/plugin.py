"""Declares the local transport."""

from __future__ import annotations

from collections.abc import Iterable

from converge.builtin.local.options import LocalOptions
from converge.builtin.local.transport import LocalTransport, check_address
from converge.contracts.transport import TransportBackend
from converge.hookspecs import hookimpl

LOCAL = TransportBackend(
    name="local",
    schemes=("local",),
    options=LocalOptions,
    open=LocalTransport.open,
    contract=2,
    check_address=check_address,
)


@hookimpl
def converge_transports() -> Iterable[TransportBackend]:
    """Declare the local transport."""
    return [LOCAL]
