"""A faulty store is late, fails, forgets and repeats as its seed says, and never lies about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from converge.contracts.store import ABSENT, Batch, Committed, Range, Store, Take
from converge.errors import NotApplied, OutcomeUnknown, StoreUnavailable
from converge.model.keys import HELD, POOL, READY
from converge.testing import FaultPlan, FaultyStore, StoreContract
from converge.testing.faults import Fault
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import ToyStore

A, B = b"a" * 16, b"b" * 16
SEED = 20_261


@asynccontextmanager
async def faulty(plan: FaultPlan) -> AsyncIterator[tuple[Store, Store]]:
    """A store behind faults, and the same store without."""
    async with ToyStore.open("toy:", ToyOptions()) as store:
        yield FaultyStore(store, plan), store


@asynccontextmanager
async def open_late(url: str, options: ToyOptions) -> AsyncIterator[Store]:
    async with ToyStore.open(url, options) as store:
        yield FaultyStore(store, FaultPlan(seed=SEED, likelihood={Fault.DELAY: 0.2}))


class TestLateToyStore(StoreContract):
    """A store that is late breaks no clause."""

    backend = attrs.evolve(TOY, open=open_late)
    loops = ("trio",)
    examples = 10
    rounds = 10


async def test_a_call_that_failed_before_has_written_nothing() -> None:
    async with faulty(FaultPlan(seed=SEED, scripted=[Fault.FAIL_BEFORE])) as (store, inner):
        with pytest.raises(StoreUnavailable):
            await store.commit([Batch(puts=[(POOL("a"), b"")])])
        assert await inner.get([POOL("a")]) == [None]


async def test_a_call_whose_reply_is_lost_has_been_carried_out() -> None:
    async with faulty(FaultPlan(seed=SEED, scripted=[Fault.LOSE_REPLY])) as (store, inner):
        with pytest.raises(OutcomeUnknown):
            await store.commit([Batch(puts=[(POOL("a"), b"")])])
        assert await inner.count([(POOL,)]) == [1]


async def test_a_fenced_commit_that_is_repeated_has_its_effect_once() -> None:
    async with faulty(FaultPlan(seed=SEED, scripted=[Fault.REPEAT])) as (store, inner):
        (outcome,) = await store.commit([Batch([(POOL("a"), ABSENT)], [(POOL("a"), b"1")])])
        (entry,) = await inner.get([POOL("a")])
        assert isinstance(outcome, Committed)
        assert entry is not None
        assert entry.revision == outcome.revision


async def test_a_commit_without_a_fence_that_is_repeated_answers_the_last_revision() -> None:
    async with faulty(FaultPlan(seed=SEED, scripted=[Fault.REPEAT])) as (store, inner):
        (outcome,) = await store.commit([Batch(puts=[(POOL("a"), b"1")])])
        (entry,) = await inner.get([POOL("a")])
        assert entry is not None
        assert outcome == Committed(entry.revision)


async def test_a_turn_that_is_repeated_takes_once() -> None:
    async with faulty(FaultPlan(seed=SEED, scripted=[Fault.NONE, Fault.REPEAT])) as (store, inner):
        await store.commit([Batch(puts=[(READY(A, number, B), b"") for number in range(5)])])
        turned = await store.turn([Batch(puts=[(POOL("a"), b"")])], Take([Range(READY(A))], 2, HELD(A), (B,)))
        assert turned.taken is not None
        assert await inner.count([HELD(A), READY(A), (POOL,)]) == [2, 3, 1]


async def test_one_seed_gives_the_same_faults_again() -> None:
    logs = []
    for _ in range(2):
        plan = FaultPlan(seed=SEED)
        async with faulty(plan) as (store, _inner):
            for number in range(60):
                try:
                    await store.commit([Batch(puts=[(POOL(str(number)), b"")])])
                except (NotApplied, OutcomeUnknown) as error:
                    assert str(SEED) in str(error)
        logs.append(plan.log)
    assert logs[0] == logs[1]
    assert {fault for _, fault in logs[0]} == {Fault.DELAY, Fault.FAIL_BEFORE, Fault.LOSE_REPLY, Fault.REPEAT}


async def test_a_calm_plan_has_no_faults() -> None:
    plan = FaultPlan(seed=SEED, likelihood={Fault.FAIL_BEFORE: 1.0}, reads=True)
    async with faulty(plan) as (store, _):
        with pytest.raises(StoreUnavailable):
            await store.get([POOL("a")])
        async with store.reopen() as other:
            with pytest.raises(StoreUnavailable):
                await other.commit([])
        plan.is_calm = True
        assert await store.get([POOL("a")]) == [None]
