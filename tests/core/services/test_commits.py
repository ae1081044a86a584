"""The coalescer: many callers share a call, and nobody gets another's trouble."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from converge.builtin.memory import MemoryStore
from converge.contracts.store import (
    ABSENT,
    LIMITS,
    Batch,
    Channel,
    Check,
    Committed,
    Conflict,
    Key,
    Range,
    Take,
    Turned,
)
from converge.env import SYSTEM
from converge.errors import OutcomeUnknown, StoreRolledBack, StoreUnavailable, ValueTooLarge
from converge.model.keys import EPOCH, HELD, LEASE, POOL, READY
from converge.services.store import epoch as epochs
from converge.services.store.commits import Commits
from converge.services.store.grouping import split
from converge.services.store.handle import read_epoch
from converge.testing.checked import check_batches, check_take_beside

EXAMPLES = 300 if os.environ.get("FULL_TESTS") == "1" else 75


class Scripted(MemoryStore):
    """A memory store that logs its calls, and does before each what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.before: Callable[[int], None] = lambda number: None
        self.gate: anyio.Event | None = None

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        await self._begin(batches)
        return await super().commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        await self._begin(batches)
        return await super().turn(batches, take, wake=wake)

    async def _begin(self, batches: Sequence[Batch]) -> None:
        self.calls.append(len(batches))
        self.before(len(self.calls))
        if self.gate is not None:
            await self.gate.wait()
        await anyio.lowlevel.checkpoint()


@pytest.fixture
async def store() -> Scripted:
    return Scripted()


@pytest.fixture
async def commits(store: Scripted) -> Commits:
    commits = Commits(store, await read_epoch(store, SYSTEM))
    store.calls.clear()
    return commits


def put(name: str, value: bytes = b"1", *, revision: int | None = None) -> Batch:
    checks = () if revision is None else ((POOL(name), revision),)
    return Batch(checks, ((POOL(name), value),))


def take_of(limit: int = 10) -> Take:
    return Take([Range(READY(bytes(16)))], limit, HELD(bytes(16)), (bytes(16),))


async def both(commits: Commits, *callers: Sequence[Batch]) -> list[object]:
    """What each caller got, when all call in one loop step."""
    answers: list[object] = [None] * len(callers)

    async def call(at: int, batches: Sequence[Batch]) -> None:
        try:
            answers[at] = await commits.commit(batches)
        except Exception as error:
            answers[at] = error

    async with anyio.create_task_group() as group:
        for at, batches in enumerate(callers):
            group.start_soon(call, at, batches)
    return answers


async def test_callers_of_one_loop_step_share_a_call(store: Scripted, commits: Commits) -> None:
    answers = await both(commits, [put("a")], [put("b"), put("c")], [put("d")])
    assert store.calls == [4]
    assert [len(answer) for answer in answers if isinstance(answer, list)] == [1, 2, 1]


async def test_a_value_that_is_too_large_is_its_own_callers_trouble(store: Scripted, commits: Commits) -> None:
    answers = await both(commits, [put("a")], [put("b", b"1" * (LIMITS.value_bytes + 1))], [put("c")])
    assert isinstance(answers[1], ValueTooLarge)
    assert [isinstance(one, list) for one in answers] == [True, False, True]
    assert [entry is not None for entry in await store.get([POOL("a"), POOL("b"), POOL("c")])] == [True, False, True]


async def test_a_caller_whose_call_was_answered_is_not_told_of_the_next_calls_failure(
    store: Scripted, commits: Commits
) -> None:
    def fail_second(number: int) -> None:
        if number == 2:
            raise StoreUnavailable("away")

    store.before = fail_second
    first, second, third = await both(commits, [put("a")], [put("a", b"2")], [put("b")])
    assert isinstance(third, list)
    assert {type(first), type(second)} == {list, StoreUnavailable}, (
        "of the two that write one key the later goes out by itself"
    )


async def test_a_caller_of_whose_batches_some_were_applied_has_an_unknown_outcome(
    store: Scripted, commits: Commits
) -> None:
    def fail_second(number: int) -> None:
        if number == 2:
            raise StoreUnavailable("away")

    store.before = fail_second
    with pytest.raises(OutcomeUnknown):
        await commits.commit([put("a"), put("a", b"2")])


async def test_what_was_not_sent_after_an_unknown_outcome_is_not_applied(store: Scripted, commits: Commits) -> None:
    def lose_first(number: int) -> None:
        if number == 1:
            raise OutcomeUnknown("no answer")

    store.before = lose_first
    first, second = await both(commits, [put("a")], [put("a", b"2")])
    assert {type(first), type(second)} == {OutcomeUnknown, StoreUnavailable}
    assert store.calls == [1]


async def test_a_cancelled_caller_takes_nobody_with_it(store: Scripted, commits: Commits) -> None:
    store.gate = anyio.Event()
    answers: list[object] = []

    async def follow() -> None:
        answers.append(await commits.commit([put("b")]))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            async def lead() -> None:
                with scope:
                    await commits.commit([put("a")])

            group.start_soon(lead)
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            store.gate.set()
    assert len(answers) == 1 and isinstance(answers[0], list)


async def test_a_cancelled_turn_takes_nobody_with_it(store: Scripted, commits: Commits) -> None:
    store.gate = anyio.Event()
    answers: list[object] = []
    scope = anyio.CancelScope()

    async def follow() -> None:
        answers.append(await commits.commit([put("b")]))

    async def turn() -> None:
        with scope:
            answers.append(await commits.turn([put("a")], take_of()))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            group.start_soon(turn)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            store.gate.set()
    assert len(answers) == 2, "a turn that was on its way is answered, too: what it took is known"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_leader_that_is_cancelled_past_every_shield_leaves_the_others_a_leader(
    store: Scripted, commits: Commits
) -> None:
    import asyncio

    store.gate = anyio.Event()
    loop = asyncio.get_running_loop()
    fillers = [loop.create_task(commits.turn([put(name)], None)) for name in ("x", "y")]
    await asyncio.sleep(0)
    leader = loop.create_task(commits.commit([put("a")]))
    follower = loop.create_task(commits.commit([put("b")]))
    await asyncio.sleep(0.01)  # both wait in the group by now; nothing says so
    leader.cancel()  # as asyncio.wait_for does, which knows nothing of shields
    await asyncio.sleep(0.01)  # the cancellation has gone through all of the leader's frames
    store.gate.set()
    async with asyncio.timeout(30):
        assert isinstance((await follower)[0], Committed)
        assert isinstance((await commits.commit([put("c")]))[0], Committed)
        await asyncio.gather(*fillers, return_exceptions=True)
        with pytest.raises(asyncio.CancelledError):
            await leader


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_caller_that_plain_asyncio_cancels_had_not_sent_is_not_sent_later(
    store: Scripted, commits: Commits
) -> None:
    import asyncio

    store.gate = anyio.Event()
    loop = asyncio.get_running_loop()
    fillers = [loop.create_task(commits.turn([put(name)], None)) for name in ("x", "y")]
    await asyncio.sleep(0)
    alone = loop.create_task(commits.commit([put("a")]))
    await anyio.wait_all_tasks_blocked()
    assert commits._asked
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    store.gate.set()
    await asyncio.gather(*fillers)
    await commits.commit([put("b")])
    there = await store.get([POOL("a"), POOL("b")])
    assert [entry is not None for entry in there] == [False, True], "its caller may have read, and gone on without it"


class Remote(Scripted):
    """A store that passes for another process."""

    is_remote = True


async def test_a_lone_commit_to_another_process_goes_out_in_the_step_that_asks() -> None:
    store = MemoryStore()
    store.is_remote = True
    commits = Commits(store, await read_epoch(store, SYSTEM))
    alone = commits.commit([put("a")])
    with pytest.raises(StopIteration) as done:
        alone.send(None)  # no other task has run when it has its answer
    assert isinstance(done.value.value[0], Committed)


async def test_what_is_asked_while_a_call_is_under_way_to_another_process_shares_the_next() -> None:
    store = Remote()
    commits = Commits(store, await read_epoch(store, SYSTEM))
    store.calls.clear()
    store.gate = anyio.Event()
    async with anyio.create_task_group() as group:
        for name in "abcde":
            group.start_soon(commits.commit, [put(name)])
        await anyio.wait_all_tasks_blocked()
        assert store.calls == [1, 4]
        store.gate.set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_caller_that_plain_asyncio_cancels_leaves_the_others_their_answers(
    store: Scripted, commits: Commits
) -> None:
    import asyncio

    loop = asyncio.get_running_loop()
    for first in (lambda: commits.commit([put("a")]), lambda: commits.turn([put("a")], take_of())):
        store.gate = anyio.Event()
        calls = len(store.calls)
        others = [loop.create_task(commits.commit([put(name)])) for name in ("b", "c")]
        cancelled = loop.create_task(first())
        await asyncio.sleep(0.01)
        assert store.calls[calls:] == [3], "they share one call"
        for one in (others[0], cancelled):
            one.cancel()  # as asyncio.timeout does, which knows nothing of shields
        await asyncio.sleep(0.01)
        assert cancelled.cancelled() and others[0].cancelled(), "a caller that is cancelled waits for nobody"
        store.gate.set()
        async with asyncio.timeout(30):
            assert isinstance((await others[1])[0], Committed)
        assert None not in await store.get([POOL("a"), POOL("b")]), "what was sent is carried out"


async def test_a_call_that_nobody_answers_ends_when_there_is_no_more_patience(
    store: Scripted, commits: Commits
) -> None:
    store.gate = anyio.Event()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:

            async def hurry() -> None:
                await anyio.wait_all_tasks_blocked()
                commits.hurry(0.05)

            group.start_soon(hurry)
            with pytest.raises(OutcomeUnknown):
                await commits.commit([put("a")])
        with pytest.raises(OutcomeUnknown):
            await commits.commit([put("b")])


async def test_another_epoch_is_told_to_every_caller(store: Scripted, commits: Commits) -> None:
    await MemoryStore.commit(store, [Batch((), ((EPOCH(), b'"another"'),))])
    answers = await both(commits, [put("a")], [put("b")])
    assert [type(answer) for answer in answers] == [StoreRolledBack, StoreRolledBack]
    with pytest.raises(StoreRolledBack):
        await commits.turn([], take_of())


async def test_revisions_that_fall_back_are_a_rollback_for_good(store: Scripted, commits: Commits) -> None:
    await commits.commit([put("a")])
    await commits.commit([put("a")])
    store._core.revision -= 2  # as a store that was restored from an older dump
    with pytest.raises(StoreRolledBack):
        await commits.commit([put("b")])
    store._core.revision += 100
    with pytest.raises(StoreRolledBack):
        await commits.commit([put("b")])


# split, against the rules that the kit checks.

KEYS: Sequence[Key] = [
    *(POOL(name) for name in "abcd"),
    *(READY(bytes(16), rank, bytes(16)) for rank in (1, 2)),
    LEASE(bytes(16)),
]


@st.composite
def batches_of(draw: st.DrawFn) -> Batch:
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True))
    cut = draw(st.integers(0, len(keys)))
    puts, deletes = keys[:cut], keys[cut:]
    checks: list[Check] = [(key, 1) for key in draw(st.lists(st.sampled_from(KEYS), max_size=3, unique=True))]
    checks += [(key, ABSENT) for key in puts[:1] if all(key != checked for checked, _ in checks)]
    return Batch(checks, [(key, b"") for key in puts], deletes)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(batches_of(), min_size=1, max_size=8), st.booleans())
@example([put("a")] * (LIMITS.batches + 1), False)
def test_every_group_of_a_split_keeps_the_callers_rules(batches: list[Batch], has_take: bool) -> None:
    take = take_of()._replace(checks=[(LEASE(bytes(16)), 1)]) if has_take else None
    groups = split(batches, take)
    assert sorted(index for group in groups for index in group) == list(range(len(batches)))
    for group in groups:
        check_batches([batches[index] for index in group])
    if take is not None:
        check_take_beside(take, [batches[index] for index in groups[-1]])


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(batches_of(), min_size=1, max_size=8), st.booleans())
def test_batches_that_touch_each_other_keep_their_order(batches: list[Batch], has_take: bool) -> None:
    take = take_of()._replace(checks=[(LEASE(bytes(16)), 1)]) if has_take else None
    place = {index: at for at, group in enumerate(split(batches, take)) for index in group}
    written = [{key for key, _ in batch.puts} | set(batch.deletes) for batch in batches]
    touched = [written[at] | {key for key, _ in batch.checks} for at, batch in enumerate(batches)]
    for later in range(len(batches)):
        for earlier in range(later):
            if written[earlier] & touched[later] or touched[earlier] & written[later]:
                assert place[earlier] < place[later]


def test_a_thousand_and_one_batches_go_out_in_two_groups() -> None:
    groups = split([put(f"p{at}") for at in range(LIMITS.batches + 1)], None)
    assert [len(group) for group in groups] == [LIMITS.batches, 1]
    assert all(a < b for group in groups for a, b in pairwise(group))


BATCH = Batch((), [(POOL("p"), b"1")])


async def test_a_process_goes_on_with_another_history_once_an_operator_has_accepted_it(
    store: Scripted, commits: Commits
) -> None:
    told: list[str] = []
    commits = Commits(store, await read_epoch(store, SYSTEM), SYSTEM, lambda: told.append("accepted"))
    await store.commit([Batch((), [(EPOCH(), b'"another"')])])
    with pytest.raises(StoreRolledBack, match="converge store accept"):
        await commits.commit([BATCH])
    await epochs.accept(store, SYSTEM)
    assert isinstance((await commits.commit([BATCH]))[0], Committed)
    assert (told, commits.is_rolled_back) == (["accepted"], False)


async def test_an_accept_from_before_this_process_saw_its_own_history_does_not_count(
    store: Scripted, commits: Commits
) -> None:
    await epochs.accept(store, SYSTEM)
    (old,) = await store.get([EPOCH()])
    assert old is not None
    await store.commit([Batch((), [(EPOCH(), b'"another"')])])
    commits = Commits(store, await read_epoch(store, SYSTEM))
    await commits.commit([BATCH])
    await store.commit([Batch((), [(EPOCH(), old.value)])])  # a backup comes back that was accepted in its time
    for _ in range(2):
        with pytest.raises(StoreRolledBack):
            await commits.commit([BATCH])
        commits._looked_at = float("-inf")  # or it would not look again so soon
    assert commits.is_rolled_back
