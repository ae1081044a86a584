"""A caller that breaks a rule of the store contract is told which; the kit and the inherited turn break none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio.to_thread
import attrs
import pytest

from converge.contracts.store import ABSENT, LIMITS, Batch, Range, Store, Take, Window
from converge.model.keys import DEDUP, HELD, LATER, LEASE, POOL, READY, STATE, TASK, Family
from converge.testing import CheckedStore, StoreContract
from converge.testing.checked import CallerBroke
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import ToyStore

A, B = b"a" * 16, b"b" * 16
Call = Callable[[Store], Awaitable[object]]
TAKE = Take([Range(READY(A))], 1, HELD(A), (B,), [(LEASE(A), 1)])


@asynccontextmanager
async def open_checked(url: str, options: ToyOptions) -> AsyncIterator[Store]:
    async with ToyStore.open(url, options) as store:
        yield CheckedStore(store)


class TestCheckedToyStore(StoreContract):
    """Every call of the kit is one that the contract allows."""

    backend = attrs.evolve(TOY, open=open_checked)


def commits(*batches: Batch) -> Call:
    return lambda store: store.commit(batches)


def turns(take: Take, *batches: Batch) -> Call:
    return lambda store: store.turn(batches, take)


WRONG: dict[str, tuple[str, Call]] = {
    "writes_twice": (
        "no batch of one call writes a key that another batch of the call writes",
        commits(Batch(puts=[(POOL("a"), b"")]), Batch(deletes=[POOL("a")])),
    ),
    "reads_what_is_written": (
        "no batch of one call writes a key that another batch of the call reads",
        commits(Batch(puts=[(POOL("a"), b"")]), Batch([(POOL("a"), 1)])),
    ),
    "puts_and_deletes": (
        "a batch names a key at most once among its puts and deletes",
        commits(Batch((), [(POOL("a"), b"")], [POOL("a")])),
    ),
    "absence_without_put": (
        "a check of absence is given only with a put of that key",
        commits(Batch([(POOL("a"), ABSENT)])),
    ),
    "two_revisions": (
        "one batch, or one take, does not check a key at two revisions",
        commits(Batch([(POOL("a"), 1), (POOL("a"), 2)])),
    ),
    "no_json": ("a value is JSON text in UTF-8, or empty", commits(Batch(puts=[(POOL("a"), b"\xff")]))),
    "window_in_seconds": (
        "a window's bounds are microseconds of store time",
        commits(Batch(window=Window(at_most=1.5))),  # type: ignore[arg-type]
    ),
    "long_batch": (
        "a batch has at most",
        commits(Batch(deletes=[TASK(n.to_bytes(16, "big")) for n in range(LIMITS.batch_ops + 1)])),
    ),
    "many_batches": ("a call has at most", commits(*[Batch()] * (LIMITS.batches + 1))),
    "cancel_and_take": (
        "no batch of a turn deletes or checks a key within its take's ranges",
        turns(TAKE, Batch([(READY(A, 1, B), 5)], (), [READY(A, 1, B)])),
    ),
    "writes_what_the_take_checks": (
        "no batch of a turn writes a key that its take checks",
        turns(TAKE, Batch(puts=[(LEASE(A), b"")])),
    ),
    "take_of_absence": ("a take never checks absence", turns(TAKE._replace(checks=[(LEASE(A), ABSENT)]))),
    "ranges_alike": (
        "no two prefixes of a take are alike",
        turns(TAKE._replace(ranges=[Range(READY(A)), Range(READY(A), (1, B))])),
    ),
    "ranges_of_two_lengths": (
        "the ranges of a take are of one family",
        turns(TAKE._replace(ranges=[Range(READY(A)), Range(READY(B, 1))])),
    ),
    "many_ranges": (
        "a take has 1 to",
        turns(TAKE._replace(ranges=[Range(READY(n.to_bytes(16, "big"))) for n in range(33)])),
    ),
    "does_not_fit": ("to + rest + tail fits the types of to's family", turns(TAKE._replace(to=LATER()))),
    "no_tail": ("to + rest + tail fits the types of to's family", turns(TAKE._replace(tail=()))),
    "wrong_tail": ("a key's parts have the types of its family", turns(TAKE._replace(tail=(7,)))),
    "also_a_pool": ("also names families of ALSO", turns(TAKE._replace(also=[POOL]))),
    "scan_of_tasks": ("task and state are read by id, never scanned", lambda store: store.scan([Range((TASK,))])),
    "count_of_tasks": ("task and state are read by id, never scanned", lambda store: store.count([(STATE,)])),
    "long_page": ("a range of a scan has a limit", lambda store: store.scan([Range((LATER,), None, LIMITS.keys + 1)])),
    "half_a_rest": ("a key's parts have the types of its family", lambda store: store.scan([Range(READY(A), (1,))])),
    "short_key": ("a key's parts have the types of its family", lambda store: store.get([DEDUP("a")])),
    "number_for_name": ("a key's parts have the types of its family", lambda store: store.get([POOL(7)])),
    "own_family": ("a key's family is declared in model/keys.py", lambda store: store.get([Family("mine")()])),
    "many_keys": ("a get has at most", lambda store: store.get([POOL("a")] * (LIMITS.keys + 1))),
    "channel": ("a channel is 1 to 120 characters", lambda store: store.commit([], wake=["a b"])),
    "one_channel": ("channels are a collection of names, not one name", lambda store: store.commit([], wake="abc")),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_call_that_breaks_a_rule_is_refused_by_the_rules_name(name: str) -> None:
    text, call = WRONG[name]
    async with open_checked("toy:", ToyOptions()) as store:
        with pytest.raises(CallerBroke) as caught:
            await call(store)
        assert caught.value.rule.startswith(text)
        assert await store.count([(POOL,), (LEASE,), (HELD,)]) == [0, 0, 0]


async def test_a_call_that_keeps_the_rules_passes() -> None:
    async with open_checked("toy:", ToyOptions()) as store:
        (outcome,) = await store.commit(
            [Batch([(LEASE(A), ABSENT)], [(LEASE(A), b"{}"), (READY(A, 1, B), b"")])], wake=["a:b"]
        )
        turned = await store.turn(
            [Batch(puts=[(READY(A, 2, A), b"")])],
            TAKE._replace(checks=[(LEASE(A), outcome.revision)]),  # type: ignore[union-attr]
        )
        assert turned.taken is not None
        assert await store.count([HELD(A)]) == [1]


async def test_a_handle_of_another_thread_is_refused(anyio_backend: str) -> None:
    async with open_checked("toy:", ToyOptions()) as store:
        with pytest.raises(CallerBroke, match="a handle is used from one thread"):
            await anyio.to_thread.run_sync(lambda: anyio.run(store.time, backend=anyio_backend))
