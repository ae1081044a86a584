"""What the processes of one store share for durable tasks: signals, chores."""

from __future__ import annotations

from converge.services.durable.children import Cut, Outbox, Tell
from converge.services.durable.removal import Left, Removal
from converge.services.durable.signals import SignalBox
from converge.services.store.handle import StoreHandle
from converge.services.tasks.sweep import Chore, Sweep


class Durable:
    """Signals and chores of one store handle."""

    def __init__(self, handle: StoreHandle) -> None:
        self.handle = handle
        self.box = SignalBox(handle)
        self.outbox = Outbox(handle)
        removal = Removal(handle)
        self.chores: tuple[Chore, ...] = (
            Tell(handle, self.box),
            Cut(handle),
            self.outbox,
            removal,
            Left(handle, removal),
        )

    def sweep(self) -> Sweep:
        """Return a sweep that carries out the chores, too."""
        return Sweep(self.handle, self.chores)
