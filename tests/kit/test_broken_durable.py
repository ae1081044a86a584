"""Durable tasks that are broken on purpose, one way each: the kit finds each of them, by the clause that it breaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import msgspec
import pytest

from converge.builtin.memory.plugin import MEMORY
from converge.codec import decode, encode
from converge.contracts.store import Batch
from converge.machines import durable, events
from converge.machines import task as machine
from converge.machines.events import Event
from converge.model.keys import HELD
from converge.model.place import Around, Found
from converge.model.task import Spec, State
from converge.runtime.attempts.putting_out import PuttingOut
from converge.services.durable import children, signals
from converge.services.durable import manager as durable_tasks
from converge.services.durable.ledger import Ledger
from converge.services.durable.output import Following
from converge.services.durable.removal import Removal
from converge.services.durable.signals import SignalBox
from converge.services.store.commits import Commits
from converge.services.tasks import finish as finishes
from converge.services.tasks import surroundings as around_module
from converge.services.tasks import sweep
from converge.testing.running import citing, run_contract
from converge.testing.task import TaskContract

pytestmark = pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")

Break = Callable[[pytest.MonkeyPatch], None]
BROKEN: list[type[BrokenTasks]] = []

step, submit = durable.step, durable.submit

RECORDS = ("step", "chunk", "child")
"""Families of what an attempt records."""


class BrokenTasks(TaskContract):
    """The kit on the memory store, quick enough to be run once for each mutant.

    Attributes:
        clauses: What the mutant breaks: a test of each fails.
    """

    backend = MEMORY
    loops = ("asyncio",)
    rounds = 6
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
    for module in (finishes, sweep):
        patch.setattr(module, "step", changed)
    patch.setattr(finishes, "plain_step", changed)
    patch.setattr(durable_tasks, "step", changed)


def without_check(batch: Batch, family: str) -> Batch:
    return batch._replace(checks=[check for check in batch.checks if check[0][0] != family])


@breaks("T-15")
def runs_recorded_steps_again(patch: pytest.MonkeyPatch) -> None:
    """An attempt does not read what earlier ones have recorded."""

    async def recorded(self: Ledger, label: str) -> None:
        return None

    patch.setattr(Ledger, "recorded", recorded)


@breaks("T-15")
def records_under_any_claim(patch: pytest.MonkeyPatch) -> None:
    """What an attempt records does not check its claim."""
    inner = Commits.commit

    async def commit(self: Commits, batches: Any, **more: Any) -> Any:
        lenient = [
            without_check(batch, HELD) if any(key[0] in RECORDS for key, _ in batch.puts) else batch
            for batch in batches
        ]
        return await inner(self, lenient, **more)

    patch.setattr(Commits, "commit", commit)


@breaks("T-16")
def forgets_the_keys_of_signals(patch: pytest.MonkeyPatch) -> None:
    """A signal that is sent again with its key is another one."""

    async def accepted(self: SignalBox, id_: bytes, target: Any, asks: Any) -> Any:
        return list(asks)

    patch.setattr(SignalBox, "_accepted", accepted)


@breaks("T-16")
def takes_the_newest_signal_first(patch: pytest.MonkeyPatch) -> None:
    """A wait takes the last signal of its name."""
    inner = durable.matching
    patch.setattr(around_module, "matching", lambda signals, names: inner(signals[::-1], names))


@breaks("T-16")
def leaves_a_signal_that_was_consumed(patch: pytest.MonkeyPatch) -> None:
    """What a wait has taken can be taken again."""
    inner = Ledger.record

    async def record(self: Ledger, *given: Any, **more: Any) -> bool:
        more.pop("deletes", None)
        return await inner(self, *given, **more)

    patch.setattr(Ledger, "record", record)


@breaks("T-17")
def parks_whatever_has_come(patch: pytest.MonkeyPatch) -> None:
    """A task that was signalled while it was being parked is parked all the same."""

    async def decided(store: Any, found: Found, event: events.Parked) -> events.Parked:
        seen = await around_module.look(store, found.id, (), counts=False)
        return event._replace(revision=seen.revision, signals=encode(seen.signals))

    patch.setattr(finishes, "decided", decided)


@breaks("T-17")
def resumes_at_any_signal(patch: pytest.MonkeyPatch) -> None:
    """A signal of another name resumes a task."""
    inner = durable._park

    def park(found: Found, event: events.Parked) -> Batch:
        wait = msgspec.structs.replace(event.wait, names=("a", "b", "other"))
        return inner(found, event._replace(wait=wait))

    patch.setattr(durable, "_park", park)


@breaks("T-17")
def resumes_a_task_wherever_it_stands(patch: pytest.MonkeyPatch) -> None:
    """A signal does not check that the task is still parked."""
    inner = durable.resume

    def careless(*given: Any) -> Any:
        _, puts, deletes = inner(*given)
        return [], puts, deletes

    def unchecked(self: SignalBox, *given: Any, parts: Any = SignalBox._parts) -> Any:
        return [], *parts(self, *given)[1:]

    patch.setattr(signals, "resume", careless)
    patch.setattr(SignalBox, "_parts", unchecked)


@breaks("T-17")
def ends_a_wait_whatever_has_come(patch: pytest.MonkeyPatch) -> None:
    """A wait whose time has passed ends though a signal came since it looked."""
    inner = Ledger.record

    async def record(self: Ledger, label: str, step: Any, puts: Any = (), **more: Any) -> bool:
        if step.kind == "WaitTimeout":
            puts, more = (), {}
        return await inner(self, label, step, puts, **more)

    patch.setattr(Ledger, "record", record)


@breaks("T-18")
def numbers_output_by_chance(patch: pytest.MonkeyPatch) -> None:
    """Output of all attempts has one token, and the last one begins again."""
    inner = PuttingOut.__init__

    def init(self: PuttingOut, ledger: Ledger) -> None:
        ledger.token = 1
        inner(self, ledger)

    patch.setattr(PuttingOut, "__init__", init)


@breaks("T-18")
def tells_nobody_of_a_gap(patch: pytest.MonkeyPatch) -> None:
    """A reader is not told that pieces are missing."""
    inner = Following._output
    patch.setattr(Following, "_output", lambda self, entry: attrs.evolve(inner(self, entry), missing=0))


@breaks("T-18")
def tells_nobody_of_a_step_that_ran_again(patch: pytest.MonkeyPatch) -> None:
    """A reader is not told that a step ran again."""
    inner = Following._output
    patch.setattr(Following, "_output", lambda self, entry: attrs.evolve(inner(self, entry), is_again=False))


@breaks("T-19")
def tells_no_parent(patch: pytest.MonkeyPatch) -> None:
    """The end of a child is told by nobody but its finisher."""

    async def page(self: children.Tell) -> int:
        return 0

    patch.setattr(children.Tell, "page", page)


@breaks("T-19")
def tells_a_parent_that_is_about_to_wait_nothing(patch: pytest.MonkeyPatch) -> None:
    """The end of a child does not change what its parent checks when it is parked."""
    inner = Commits.commit

    async def commit(self: Commits, batches: Any, **more: Any) -> Any:
        kept = [
            batch._replace(puts=[put for put in batch.puts if put[0][0] != "signals"])
            if any(key[0] == "told" for key in batch.deletes) and not any(put[0][0] == "state" for put in batch.puts)
            else batch
            for batch in batches
        ]
        return await inner(self, kept, **more)

    patch.setattr(Commits, "commit", commit)


@breaks("T-19")
def cuts_nobody(patch: pytest.MonkeyPatch) -> None:
    """The end of a parent reaches no child."""

    async def page(self: children.Cut) -> int:
        return 0

    patch.setattr(children.Cut, "page", page)


@breaks("T-19")
def cuts_one_generation(patch: pytest.MonkeyPatch) -> None:
    """A child that is cancelled does not have its own children cancelled."""
    inner = machine._tell_family

    def tell(found: Found, event: Event, state: Any, checks: Any, puts: Any, deletes: Any) -> None:
        inner(found, event, state, checks, puts, deletes)
        if found.spec.parent:
            puts[:] = [put for put in puts if put[0][0] != "cut"]

    patch.setattr(machine, "_tell_family", tell)


@breaks("T-20")
def answers_without_the_state(patch: pytest.MonkeyPatch) -> None:
    """The state of a virtual agent is not put with its answer."""

    def forgetful(found: Found, event: Event, now: int, around: Around) -> Batch:
        return step(
            found,
            msgspec.structs.replace(event, also=None) if isinstance(event, events.Completed) else event,
            now,
            around,
        )

    change_step(patch, forgetful)


@breaks("T-21")
def leaves_what_a_task_recorded(patch: pytest.MonkeyPatch) -> None:
    """Retention removes a task's own records only."""

    async def page(self: Removal) -> int:
        return 0

    patch.setattr(Removal, "page", page)


@breaks("T-21")
def leaves_what_others_have_left(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks for what a process of an older release has left."""

    async def look_for_left(self: Removal) -> int:
        return 0

    patch.setattr(Removal, "look_for_left", look_for_left)


@breaks("T-22")
def counts_the_attempts_before_a_park(patch: pytest.MonkeyPatch) -> None:
    """A park forgives nothing."""
    inner = durable._park

    def park(found: Found, event: events.Parked) -> Batch:
        batch = inner(found, event)
        attempts = found.state.attempts if found.state is not None else 0
        puts = []
        for key, value in batch.puts:
            if key[0] == "state":
                value = encode(msgspec.structs.replace(decode(value, State, "state"), attempts=attempts))
            puts.append((key, value))
        return batch._replace(puts=puts)

    patch.setattr(durable, "_park", park)
    inner_resume = durable.resume

    def resume(id_: bytes, spec: Spec, state: State, *more: Any) -> Any:
        checks, puts, deletes = inner_resume(id_, spec, state, *more)
        kept = []
        for key, value in puts:
            if key[0] == "state":
                value = encode(msgspec.structs.replace(decode(value, State, "state"), attempts=state.attempts))
            kept.append((key, value))
        return checks, kept, deletes

    patch.setattr(signals, "resume", resume)


@breaks("T-22")
def counts_no_attempt_of_a_durable_task(patch: pytest.MonkeyPatch) -> None:
    """A task that was ever parked may crash for ever."""

    def endless(found: Found, event: Event, now: int, around: Around) -> Batch:
        if found.state is not None and found.state.parks:
            found = msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, max_attempts=10**6))
        return step(found, event, now, around)

    change_step(patch, endless)


@pytest.mark.parametrize("kit", BROKEN, ids=lambda kit: kit.__name__)
def test_a_broken_durable_task_fails_the_clause_that_it_breaks(kit: type[BrokenTasks]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kit.mutate(patch)  # one that cannot be made would fail every test, and break nothing
    run = run_contract(kit, tests=citing(kit, kit.clauses), until=kit.clauses)
    for clause in kit.clauses:
        assert run.failed(clause), f"no test of {clause} failed by it, but {[(f.test, f.said) for f in run.failures]}"
