"""A task machine that is broken on purpose, one way each: the kit finds each of them, by the clause that it breaks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
import pytest
from anyio import lowlevel

from converge.builtin.memory.plugin import MEMORY
from converge.contracts.store import Batch, Check, Committed, Conflict, Entry, Range, Store, Taken, Turned
from converge.machines import attempt as retry
from converge.machines import durable, events
from converge.machines import task as machine
from converge.machines.events import Event
from converge.model.keys import DONE, EXPIRY, HELD, KEY, LEASE
from converge.model.place import Around, Found, Held, Ready
from converge.model.task import Spec
from converge.services.durable import manager as durable_tasks
from converge.services.store.commits import Commits
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import Lease, ended
from converge.services.tasks import claim as claims
from converge.services.tasks import finish as finishes
from converge.services.tasks import lanes, polling, retention, sweep
from converge.services.tasks import manager as tasks
from converge.services.tasks import records as spec_module
from converge.services.tasks import surroundings as around_module
from converge.services.tasks.submitting import asks
from converge.services.tasks.submitting import submit as submits
from converge.testing.running import citing, run_contract
from converge.testing.task import TaskContract

Break = Callable[[pytest.MonkeyPatch], None]
BROKEN: list[type[BrokenTasks]] = []

step, submit = durable.step, durable.submit


class BrokenTasks(TaskContract):
    """The kit on the memory store, quick enough to be run once for each mutant.

    Attributes:
        clauses: What the mutant breaks: a test of each fails.
    """

    backend = MEMORY
    loops = ("asyncio",)
    rounds = 6
    shrinks = False
    clauses: ClassVar[tuple[str, ...]] = ()
    mutate: ClassVar[Break] = lambda patch: None

    @pytest.fixture(autouse=True)
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Break it for the length of a test."""
        type(self).mutate(monkeypatch)


def breaks(*clauses: str) -> Callable[[Break], Break]:
    """Make a contract class of a mutation, at the top of this module, where pytest finds it."""

    def make(mutate: Break) -> Break:
        name = f"{mutate.__name__}_kit"
        kit = type(
            name,
            (BrokenTasks,),
            {"clauses": clauses, "mutate": staticmethod(mutate), "__module__": __name__, "__doc__": mutate.__doc__},
        )
        globals()[name] = kit
        BROKEN.append(kit)
        return mutate

    return make


def change_step(patch: pytest.MonkeyPatch, changed: Callable[[Found, Event, int, Around], Batch]) -> None:
    """Put another `step` in place of the machine's, wherever it is called."""
    for module in (finishes, sweep, tasks):
        patch.setattr(module, "step", changed)
    patch.setattr(finishes, "plain_step", changed)
    patch.setattr(durable_tasks, "step", changed)


def without_check(batch: Batch, family: str) -> Batch:
    return batch._replace(checks=[check for check in batch.checks if check[0][0] != family])


@breaks("T-4")
def compares_no_token(patch: pytest.MonkeyPatch) -> None:
    """A finish writes, whoever holds the task now."""
    change_step(patch, lambda *given: without_check(step(*given), HELD))


@breaks("T-4")
def compares_no_nonce(patch: pytest.MonkeyPatch) -> None:
    """A finish with the right token is taken, whatever its nonce."""

    async def key_by_token(
        self: finishes.Finishes, found: Found, event: Event, *, inner: Any = finishes.Finishes._try
    ) -> bool:
        place = found.place
        assert isinstance(place, Held)
        (page,) = await self._handle.store.scan([Range(HELD())])
        nonce = next(
            (entry.key[4] for entry in page if entry.revision == place.token and entry.key[3] == found.id), place.nonce
        )
        lease = next(
            (entry.key[1] for entry in page if entry.revision == place.token and entry.key[3] == found.id), place.lease
        )
        return bool(
            await inner(self, msgspec.structs.replace(found, place=place._replace(nonce=nonce, lease=lease)), event)
        )

    patch.setattr(finishes.Finishes, "_try", key_by_token)


@breaks("T-13")
def leaves_an_unknown_take_behind(patch: pytest.MonkeyPatch) -> None:
    """A claim whose answer was lost stays held: nobody settles it."""

    async def settle_takes(*_: object) -> None:
        return None

    patch.setattr(polling, "settle_takes", settle_takes)


@breaks("T-13")
def settles_an_unknown_take_once(patch: pytest.MonkeyPatch) -> None:
    """A claim whose answer was lost is forgotten if the store refuses the first try to settle it."""
    settle_takes = claims.settle_takes

    async def once(handle: StoreHandle) -> None:
        try:
            await settle_takes(handle)
        finally:
            handle.unsettled.clear()

    patch.setattr(polling, "settle_takes", once)


@breaks("T-13")
def tells_what_settling_met(patch: pytest.MonkeyPatch) -> None:
    """The error of a claim is the one that settling it met."""

    async def settle_now(self: polling.Polling) -> None:
        await claims.settle_takes(self._handle)

    patch.setattr(polling.Polling, "_settle_now", settle_now)


@breaks("T-23")
def has_a_finish_compare_what_each_submit_changes(patch: pytest.MonkeyPatch) -> None:
    """A finish compares the row of its ordering key, though another task waits."""

    def changed(found: Found, event: Event, now: int, around: Around) -> Batch:
        batch = step(found, event, now, around)
        if around.key is None or around.successor is None:
            return batch
        row = (KEY(found.spec.pool, found.spec.ordering_key), around.key.revision)
        return batch._replace(checks=[*batch.checks, row])

    change_step(patch, changed)


@breaks("T-9")
def strands_a_submit_behind_a_key_that_was_freed(patch: pytest.MonkeyPatch) -> None:
    """A submit does not compare the row of its ordering key."""

    def unchecked(id_: bytes, spec: Spec, lane: Check, key: Any, now: int) -> Batch:
        batch = submit(id_, spec, lane, key, now)
        return batch if key is None else without_check(batch, KEY)

    for module in (asks, submits):
        patch.setattr(module, "submit", unchecked)


@breaks("T-7")
def counts_failures_only(patch: pytest.MonkeyPatch) -> None:
    """A process that dies costs no attempt."""

    def lenient(found: Found, event: Event, now: int, around: Around) -> Batch:
        return step(found, events.Released(event.by) if isinstance(event, events.LeaseEnded) else event, now, around)

    change_step(patch, lenient)


@breaks("T-7")
def forgets_the_refund(patch: pytest.MonkeyPatch) -> None:
    """A release counts as an attempt."""

    def strict(found: Found, event: Event, now: int, around: Around) -> Batch:
        return step(found, events.LeaseEnded(event.by) if isinstance(event, events.Released) else event, now, around)

    change_step(patch, strict)


@breaks("T-7")
def never_gives_up(patch: pytest.MonkeyPatch) -> None:
    """`max_attempts` is not looked at."""

    def endless(found: Found, event: Event, now: int, around: Around) -> Batch:
        return step(
            msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, max_attempts=10**6)),
            event,
            now,
            around,
        )

    change_step(patch, endless)


@breaks("T-6")
def overwrites_a_terminal_task_by_cancel(patch: pytest.MonkeyPatch) -> None:
    """A cancel does not look whether the task has ended."""
    inner = around_module.find

    async def find(store: Any, id_: bytes) -> Any:
        spec, state, place = await inner(store, id_)
        return spec, state, place or Ready(1)

    def careless(found: Found, event: Event, now: int, around: Around) -> Batch:
        batch = step(found, event, now, around)
        return batch._replace(checks=()) if isinstance(event, events.Cancelled) else batch

    patch.setattr(tasks, "find", find)
    change_step(patch, careless)


@breaks("T-9")
def frees_an_ordering_key_by_a_retry(patch: pytest.MonkeyPatch) -> None:
    """A task that fails and will be retried lets the next one of its key go."""

    def hasty(found: Found, event: Event, now: int, around: Around) -> Batch:
        batch = step(found, event, now, around)
        is_retry = isinstance(event, events.Failed) and not any(key[0] is DONE for key, _ in batch.puts)
        if not is_retry or around.key is None or around.successor is None:
            return batch
        checks, puts, deletes = list(batch.checks), list(batch.puts), list(batch.deletes)
        machine.free_next(found, now, around, checks, puts, deletes)
        return Batch(checks, puts, deletes)

    change_step(patch, hasty)


@breaks("T-10")
def claims_under_an_ended_lease(patch: pytest.MonkeyPatch) -> None:
    """A take does not check that its lease lives."""
    inner = claims.Claims.next_take

    async def take(self: claims.Claims, limit: int, nonce: bytes) -> Any:
        lease = self._handle.lease_opened
        if lease is not None:
            patch.setattr(lease, "check_alive", lambda: None)
        found = await inner(self, limit, nonce)
        return (
            None
            if found is None
            else found._replace(checks=[check for check in found.checks if check[0][0] is not LEASE])
        )

    async def blind(self: Lease, conflict: Conflict) -> None:
        return None

    patch.setattr(Lease, "check_alive", lambda self: None)
    patch.setattr(Lease, "check_not_ended", blind)
    patch.setattr(StoreHandle, "may_act_under", lambda self, lease_id: True)
    patch.setattr(claims.Claims, "next_take", take)


@breaks("T-10")
def revives_an_ended_lease(patch: pytest.MonkeyPatch) -> None:
    """A renewal writes the lease's time without a look at whether it has ended meanwhile."""

    async def renew(self: Lease, store: Store) -> bool:
        until = await store.time() + self._lease_us()
        await store.commit([Batch((), [(LEASE(self.id), b"{}"), (EXPIRY(self.id), str(until).encode())])])
        self._deadline = self._env.monotonic() + self.settings.lease_sec
        self.renewals += 1
        return True

    patch.setattr(Lease, "_renew", renew)


@breaks("T-11")
def claims_from_a_paused_pool(patch: pytest.MonkeyPatch) -> None:
    """A take checks its lease, not its pools, and a look does not ask whether they are paused."""
    inner = claims.Claims._read_lanes

    async def look(self: claims.Claims) -> bool:
        lanes: dict[bytes, Any] = {}
        for pool_id in self.pools:
            await inner(self, pool_id, lanes)
        await self._read_heads(lanes)
        lease = await self._handle.lease()
        self._checks, self._lanes = dict.fromkeys(self.pools, lease.check()), lanes
        return self.has_ready

    patch.setattr(claims.Claims, "look", look)


@breaks("T-1")
def ignores_the_contents_digest(patch: pytest.MonkeyPatch) -> None:
    """Other content under a dedup key counts as the same."""
    inner = spec_module.to_spec

    def to_spec(*given: Any) -> Spec:
        return msgspec.structs.replace(inner(*given), digest="0" * 24)

    patch.setattr(submits, "to_spec", to_spec)


@breaks("T-5")
def takes_a_repeat_for_stale(patch: pytest.MonkeyPatch) -> None:
    """A finish that is said again is refused."""
    patch.setattr(finishes, "is_said_again", lambda *_: False)


@breaks("T-5")
def takes_any_finish_for_a_repeat(patch: pytest.MonkeyPatch) -> None:
    """A second finish of an attempt succeeds, whatever it says."""
    patch.setattr(
        finishes, "is_said_again", lambda state, held, event: state is not None and state.nonce == held.nonce.hex()
    )


@breaks("T-8")
def retries_at_once(patch: pytest.MonkeyPatch) -> None:
    """A failed task does not wait."""

    def eager(found: Found, event: Event, now: int, around: Around) -> Batch:
        return step(found, event._replace(jitter=0.0) if isinstance(event, events.Failed) else event, now, around)

    change_step(patch, eager)


@breaks("T-24")
def retries_what_asks_for_none(patch: pytest.MonkeyPatch) -> None:
    """A failure without a retry is tried again while attempts are left."""

    def stubborn(found: Found, event: Event, now: int, around: Around) -> Batch:
        return step(found, event._replace(is_retried=True) if isinstance(event, events.Failed) else event, now, around)

    change_step(patch, stubborn)


@breaks("T-24")
def does_not_wait_as_asked(patch: pytest.MonkeyPatch) -> None:
    """A failure that asks for a wait is tried again as if it had not."""

    def eager(found: Found, event: Event, now: int, around: Around) -> Batch:
        return step(found, event._replace(after_sec=None) if isinstance(event, events.Failed) else event, now, around)

    change_step(patch, eager)


@breaks("T-24")
def waits_without_end(patch: pytest.MonkeyPatch) -> None:
    """A wait has no bound."""
    patch.setattr(retry, "RETRY_AFTER_GREATEST_SEC", 10.0 * retry.RETRY_AFTER_GREATEST_SEC)


@breaks("T-12")
def forgets_deadlines(patch: pytest.MonkeyPatch) -> None:
    """Nobody fails what waits past its deadline."""

    async def fail_late(self: sweep.Sweep) -> int:
        return 0

    patch.setattr(sweep.Sweep, "fail_late", fail_late)


@breaks("T-12")
def retries_past_the_deadline(patch: pytest.MonkeyPatch) -> None:
    """An attempt that fails after the deadline is followed by another."""

    def late(found: Found, event: Event, now: int, around: Around) -> Batch:
        if isinstance(event, events.Failed):
            found = msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, deadline=0))
        return step(found, event, now, around)

    change_step(patch, late)


@breaks("T-14")
def removes_before_its_time(patch: pytest.MonkeyPatch) -> None:
    """What has ended is old at once."""
    patch.setattr(machine, "_until", lambda spec, to, now, pool: now)


@breaks("T-10")
def buries_a_lease_that_holds_something(patch: pytest.MonkeyPatch) -> None:
    """A dead lease is removed after one page of what it held."""
    inner = sweep.Sweep._move_some

    async def some(self: sweep.Sweep, prefix: Any, until: int | None, move: Any) -> tuple[int, bool]:
        moved, is_empty = await inner(self, prefix, until, move)
        return moved, is_empty or prefix[0] is HELD

    patch.setattr(sweep.Sweep, "_move_some", some)


@breaks("T-14")
def keeps_dedup_keys_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Retention removes the task and leaves its dedup key."""
    patch.setattr(retention, "DEDUP", lambda pool, key: DONE(pool, "none", 0, bytes(16)))


@breaks("T-2")
def takes_what_its_claimer_may_not_have(patch: pytest.MonkeyPatch) -> None:
    """Every lane suits every claimer."""
    patch.setattr(claims, "refusal", lambda lane, claimer: None)


@breaks("T-2")
def closes_a_lane_in_which_a_task_has_come(patch: pytest.MonkeyPatch) -> None:
    """A lane that was seen empty is deleted, without a look at what has become of it."""

    async def close(opened: StoreHandle, entry: Entry) -> bool:
        await (await opened.commits()).commit([Batch((), (), [entry.key])])
        return True

    patch.setattr(lanes, "close_lane", close)


@breaks("T-2")
def reads_and_then_writes_a_claim(patch: pytest.MonkeyPatch) -> None:
    """A claim reads what is ready, and moves it in another step that compares nothing."""
    inner = Commits.turn

    async def turn(self: Commits, batches: Any, take: Any, **more: Any) -> Turned:
        if take is None:
            return await inner(self, batches, take, **more)
        store = self._store
        pages = await store.scan([each._replace(limit=take.limit) for each in take.ranges])
        rests = sorted((entry.key[2:], entry.key) for page in pages for entry in page)[: take.limit]
        await lowlevel.checkpoint()
        now = await store.time()
        puts = [((*take.to, *rest, *take.tail), str(now).encode()) for rest, _ in rests]
        (outcome,) = await store.commit([Batch((), puts, [key for _, key in rests])])
        assert isinstance(outcome, Committed), "nothing was checked"
        values = [await store.get([family(rest[-1]) for family in take.also]) for rest, _ in rests]
        also = [[entry and entry.value for entry in some] for some in values]
        return Turned(
            (),
            Taken(outcome.revision if rests else 0, [rest for rest, _ in rests], also, [None] * len(take.ranges), now),
        )

    patch.setattr(Commits, "turn", turn)


@breaks("T-10")
def ends_leases_by_its_own_clock(patch: pytest.MonkeyPatch) -> None:
    """A process whose clock is an hour ahead ends the leases of others by it."""

    async def end_leases(self: sweep.Sweep) -> int:
        store = self._handle.store
        (page,) = await store.scan([Range(EXPIRY())])
        mine = time.time_ns() // 1_000 + 3_600_000_000
        over = [entry for entry in page if int(entry.value) < mine]
        await store.commit([ended(entry.key[1], entry.revision, 0) for entry in over])
        return len(over)

    patch.setattr(sweep.Sweep, "end_leases", end_leases)


class HonestKit(BrokenTasks):
    """What the mutants are made of, unbroken."""


@pytest.mark.parametrize("kit", BROKEN, ids=lambda kit: kit.__name__)
def test_a_broken_task_machine_fails_the_clause_that_it_breaks(kit: type[BrokenTasks]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kit.mutate(patch)  # one that cannot be made would fail every test, and break nothing
    run = run_contract(kit, tests=citing(kit, kit.clauses), until=kit.clauses)
    for clause in kit.clauses:
        assert run.failed(clause), f"no test of {clause} failed by it, but {[(f.test, f.said) for f in run.failures]}"


@pytest.mark.skipif(
    os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only: it is the kit on the memory store once more"
)
def test_the_machine_of_which_the_mutants_are_made_is_whole() -> None:
    run = run_contract(HonestKit)
    assert run.failures == ()
    assert run.passed > 30
