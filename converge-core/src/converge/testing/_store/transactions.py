"""S-26: commits that ride in a transaction of the caller's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from converge.contracts.store import ABSENT, Batch, Feature, Store
from converge.errors import NotApplied, Unsupported
from converge.model.keys import DEDUP, EPOCH, LANE, TASK
from converge.testing._store.base import StoreCase, commit, committed, get, ident, lane, put, ready, refused
from converge.testing._store.wakes import watching
from converge.testing.clauses import expect, expect_equal

KEY_OF_LANE = LANE("p", lane(1))

Begin = Callable[[], AbstractAsyncContextManager[Any]]
"""Begins a transaction on a connection of its own, and gives what `within` takes; left by an exception it rolls back,
else it commits.
"""


class _RollBack(Exception):
    """Ends a transaction of a test."""


class TransactionClauses(StoreCase):
    """What a store promises that declares `TRANSACTIONS`; its author gives the fixture `begin`."""

    @pytest.fixture
    def begin(self) -> Begin | None:
        """Begins transactions of a caller's; None for a store that has none."""
        return None

    @pytest.fixture
    def transaction(self, begin: Begin | None) -> Begin:
        if Feature.TRANSACTIONS not in self.backend.features:
            pytest.skip("not applicable: the store takes no part in transactions of its callers")
        expect("S-26", begin is not None, "the backend declares TRANSACTIONS, and its kit has no fixture `begin`")
        assert begin is not None  # for the type checker
        return begin

    async def test_a_store_without_transactions_says_so(self, store: Store) -> None:
        """S-26."""
        if Feature.TRANSACTIONS in self.backend.features:
            pytest.skip("not applicable: the store takes part in transactions of its callers")
        with pytest.raises(Unsupported):
            store.within(object())

    async def test_what_is_written_within_is_there_with_the_callers_commit(
        self, store: Store, transaction: Begin
    ) -> None:
        """S-26."""
        keys = [TASK(ident(1)), ready(1, 5, 1)]
        async with _within(store, transaction) as within:
            outcome = await commit(within, checks=[(keys[0], ABSENT)], puts=[(key, b"{}") for key in keys])
            committed("S-26", outcome, "a batch within a transaction")
            seen = [entry is not None for entry in await within.get(keys)]
            expect_equal("S-26", seen, [True, True], "what the transaction sees of its own writes")
            expect_equal("S-26", await store.get(keys), [None, None], "what others see before the caller's commit")
        found = [entry.value if entry is not None else None for entry in await store.get(keys)]
        expect_equal("S-26", found, [b"{}", b"{}"], "what is there after the caller's commit")

    async def test_what_is_written_within_is_gone_when_the_caller_rolls_back(
        self, store: Store, transaction: Begin
    ) -> None:
        """S-26."""
        keys = [TASK(ident(1)), DEDUP("p", "once")]
        with pytest.raises(_RollBack):
            async with _within(store, transaction) as within:
                committed("S-26", await commit(within, puts=[(key, b"{}") for key in keys]), "a batch")
                raise _RollBack
        expect_equal("S-26", await store.get(keys), [None, None], "what is there after the caller rolled back")

    async def test_a_refused_batch_leaves_the_transaction_as_it_was(self, store: Store, transaction: Begin) -> None:
        """S-26, S-3, S-5."""
        await put(store, DEDUP("p", "taken"))
        async with _within(store, transaction) as within:
            one, two = await within.commit(
                [
                    Batch([(DEDUP("p", "taken"), ABSENT)], [(DEDUP("p", "taken"), b"2"), (TASK(ident(1)), b"{}")]),
                    Batch([(TASK(ident(2)), ABSENT)], [(TASK(ident(2)), b"{}")]),
                ]
            )
            expect_equal("S-26", refused("S-26", one, "a batch whose check failed").keys, (DEDUP("p", "taken"),), "why")
            committed("S-26", two, "its neighbour")
        found = [entry is not None for entry in await store.get([TASK(ident(1)), TASK(ident(2))])]
        expect_equal("S-26", found, [False, True], "what is there of the refused batch, and of its neighbour")

    async def test_a_lane_that_is_relied_on_stays_while_the_transaction_is_open(
        self, store: Store, transaction: Begin
    ) -> None:
        """S-26: nobody closes the lane, and nobody who relies on it as well has to wait."""
        revision = await put(store, KEY_OF_LANE)
        checks = [(KEY_OF_LANE, revision)]
        async with _within(store, transaction) as within:
            mine = await commit(within, checks=checks, puts=[(ready(1, 5, 1), b"")])
            committed("S-26", mine, "a batch that relies on a lane")
            with anyio.move_on_after(self.near_sec / 10):
                try:
                    changed = await commit(store, checks=checks, puts=[(KEY_OF_LANE, b"closing")])
                    refused("S-26", changed, "a change of the lane while a transaction that relies on it is open")
                except NotApplied:
                    pass  # a store that lets who would change it wait may refuse it after a time
            with anyio.move_on_after(self.near_sec) as patience:
                other = await commit(store, checks=checks, puts=[(ready(1, 5, 2), b"")])
                committed("S-26", other, "another batch that relies on the lane")
            expect("S-26", not patience.cancelled_caught, "who relies on the same lane has to wait for the transaction")
        committed("S-26", await commit(store, checks=checks, puts=[(KEY_OF_LANE, b"closing")]), "a change afterwards")

    async def test_a_lane_that_has_changed_is_no_longer_relied_on(self, store: Store, transaction: Begin) -> None:
        """S-26."""
        old = await put(store, KEY_OF_LANE)
        async with _within(store, transaction) as within:
            new = await put(store, KEY_OF_LANE)
            outcome = await commit(within, checks=[(KEY_OF_LANE, old)], puts=[(ready(1, 5, 1), b"")])
            expect_equal("S-26", refused("S-26", outcome, "a batch on an old lane").keys, (KEY_OF_LANE,), "why")
            outcome = await commit(within, checks=[(KEY_OF_LANE, new)], puts=[(ready(1, 5, 1), b"")])
            committed("S-26", outcome, "a batch on the lane as it is")
        expect("S-26", await get(store, ready(1, 5, 1)) is not None, "what was committed within is not there")

    async def test_a_wake_within_is_told_after_the_callers_commit(self, store: Store, transaction: Begin) -> None:
        """S-26, S-9."""
        async with watching(store, "c", near_sec=self.near_sec) as watcher:
            async with _within(store, transaction) as within:
                await within.commit([Batch(puts=[(TASK(ident(1)), b"{}")])], wake=["c"])
                count = watcher.told
            if Feature.NOTIFIES in self.backend.features and not self.inherited_turn:
                expect("S-26", await watcher.told_more_than(count), "a wake within was not told after the commit")
        expect("S-26", await get(store, TASK(ident(1))) is not None, "what was committed within is not there")


@asynccontextmanager
async def _within(store: Store, transaction: Begin) -> AsyncIterator[Store]:
    if await get(store, EPOCH()) is None:  # core draws it before anything else, so a store may know its own by it
        await put(store, EPOCH(), value=b'"kit"')
    async with transaction() as connection:
        yield store.within(connection)
