"""Stores whose commits ride in a transaction of the caller's: what `Store.within` returns.

An author of a store over an engine with transactions declares `Feature.TRANSACTIONS`, overrides `within`, and writes
`get` and `commit` of a `Within`. For connections without an event loop, `Side` is both sides of such a transaction, and
`converge.transactions.submit_through` does the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import NoReturn, Protocol

from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Prefix, Range, Store, Take, Turned
from converge.errors import Unsupported


class Within(Store):
    """A store whose `get` and `commit` take part in the transaction that is open on a connection of the caller's
    (S-26); nothing else can be asked of it. Its user ends the transaction.

    An author implements `get`, which sees what the transaction sees, and `commit`, which leaves the transaction as it
    was where it raises. What a batch checks and does not write, but for `epoch`, stays as it is until the transaction
    has ended: who would change it meets a `Conflict`, or waits. Wakes are told once the transaction has committed.

    Attributes:
        outside: The store that `within` was called on: its commits are its own.
    """

    def __init__(self, outside: Store) -> None:
        self.outside = outside
        self.durability = outside.durability

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        _refuse()

    async def time(self) -> int:
        _refuse()

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        _refuse()

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        _refuse()

    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        _refuse()


class Side(Protocol):
    """One side of a transaction of the caller's, for code without an event loop; each method as that of `Store`.

    Of the side within the transaction only `get` and `commit` are asked. Commits of the other end when they return.
    """

    def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]: ...

    def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]: ...

    def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]: ...

    def time(self) -> int: ...

    def note_format(self, number: int) -> None: ...


def _refuse() -> NoReturn:
    raise Unsupported(
        "in a transaction of the caller's tasks can be submitted, nothing else; for this, use TaskManager(store) itself"
    )
