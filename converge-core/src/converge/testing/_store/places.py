"""S-19 to S-25: blocks that raise, read-only opening, networks of one place, forked children, formats."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest

from converge.codec import FIRST, FORMAT
from converge.contracts.store import Batch, Durability, Inspection, Range, Store, reopenable
from converge.errors import ForkedHandle, InvalidName, InvalidValue, NoSuchStore, StoreRefused, Unsupported
from converge.model.keys import POOL
from converge.secret import has_password
from converge.testing._calls.waiting import blocking_calls, expect_no_waiting
from converge.testing._store.base import StoreCase, commit, committed, get, put, ready, take, take_of, taken
from converge.testing._store.limits import CallLimit, limited
from converge.testing.blocks import leaves_nothing_open, passes_through
from converge.testing.clauses import expect, expect_equal

REOPENED = 5
"""How often each call is made: some wait only at first, others only later."""

SOON = 20
"""Turns of the event loop in which a call that waits for nobody has ended."""

CHILD_SEC = 10.0
"""How long a forked child may take to be refused."""


class PlaceClauses(StoreCase):
    """What core asks of a backend by the options that it sets, and of every handle in a forked child."""

    def _has_option(self, name: str) -> bool:
        return any(field.name == name for field in attrs.fields(self.backend.options))

    async def test_who_only_looks_makes_no_store(self, url: str, options: Any, limit: CallLimit) -> None:
        """S-20."""
        if not self._has_option("must_exist"):
            pytest.skip("not applicable: the options have no must_exist, so who looks may begin a store")
        looking = attrs.evolve(options, must_exist=True)
        for look in ("a look", "a second look"):
            expect("S-20", not await self._opens(url, looking), f"{look} opened a place where nothing was ever stored")
        async with limited(partial(self.backend.open, url, options), limit) as store:
            committed("S-20", await commit(store, puts=[(POOL("p"), b"{}")]), "a commit")
            is_found_again = self.is_persistent()
            if not is_found_again:
                async with self.backend.open(url, options) as other:
                    is_found_again = await get(other, POOL("p")) is not None
            if is_found_again:
                expect("S-20", await self._opens(url, looking), "a look at a store that is there was refused")

    async def _opens(self, url: str, options: Any) -> bool:
        try:
            async with self.backend.open(url, options):
                return True
        except NoSuchStore:
            return False
        except StoreRefused as error:
            expect("S-20", False, f"who looks was refused with {type(error).__name__}, not with NoSuchStore: {error}")
            raise

    async def test_each_network_has_keys_of_its_own(self, url: str, options: Any, limit: CallLimit) -> None:
        """S-21."""
        if not self._has_option("network"):
            pytest.skip("not applicable: the options have no network, so the store keeps a single one")
        one, two = (attrs.evolve(options, network=f"{options.network[:20]}_{end}") for end in "ab")
        opens = [partial(self.backend.open, url, options) for options in (one, two)]
        async with limited(opens[0], limit) as here, limited(opens[1], limit) as there:
            for number, store in enumerate((here, there)):
                (entry,) = await store.get([POOL("p")])
                expect("S-21", entry is None, "a key of another network is seen")
                await commit(store, puts=[(POOL("p"), b"%d" % number), (POOL(f"only{number}"), b"")])
            for number, store in enumerate((here, there)):
                entry = await get(store, POOL("p"))
                expect_equal(
                    "S-21", entry and entry.value, b"%d" % number, "the value of a key that both networks have"
                )
                ((*page,), (count,)) = await store.scan([Range(POOL())]), await store.count([POOL()])
                names = [entry.key[1] for entry in page[0]]
                expect_equal("S-21", names, [f"only{number}", "p"], "the keys of one network")
                expect_equal("S-21", count, 2, "the number of its keys")
            await commit(here, deletes=[POOL("p")])
            expect("S-21", await get(there, POOL("p")) is not None, "a key was deleted in another network")
            await put(there, ready(1, 1, 1))
            moved = taken("S-21", await take(here, take_of([1], 1)), "a take in one network")
            expect_equal("S-21", list(moved.rests), [], "what a take moved that is in another network")
            expect("S-21", await get(there, ready(1, 1, 1)) is not None, "a take moved a key of another network")

    async def test_networks_of_like_names_are_apart(self, url: str, options: Any, limit: CallLimit) -> None:
        """S-21: names in which only the case differs, and names of which one begins with the other."""
        if not self._has_option("network"):
            pytest.skip("not applicable: the options have no network, so the store keeps a single one")
        for end in ("_a", "_A", "_ab", ""):
            network = f"{options.network[:20]}{end}"
            try:
                named = attrs.evolve(options, network=network)
            except (InvalidValue, InvalidName, ValueError):
                continue  # options may refuse a name
            async with limited(partial(self.backend.open, url, named), limit) as store:
                ((*page,),) = await store.scan([Range(POOL())])
                names = [entry.key[1] for entry in page]
                expect_equal("S-21", names, [], f"the keys of network {network}, while others have keys")
                committed("S-21", await commit(store, puts=[(POOL(network), b"")]), "a commit")

    async def test_a_format_is_noted_again_and_again_and_nothing_is_missing(
        self, store: Store, url: str, options: Any
    ) -> None:
        """S-23."""
        committed("S-23", await commit(store, puts=[(POOL("p"), b"{}")]), "a commit")
        before = await store.get([POOL("p")])
        async with store.reopen() as other:
            try:
                for number in (FORMAT, FIRST, FORMAT):
                    async with anyio.create_task_group() as group:
                        group.start_soon(store.note_format, number)
                        group.start_soon(other.note_format, number)
            except ExceptionGroup as errors:
                expect("S-23", False, f"a format that was noted before was refused: {errors.exceptions[0]}")
            expect_equal("S-23", await other.get([POOL("p")]), before, "a key beside which a format was noted")
        async with store.reopen() as again:
            expect_equal("S-23", await again.get([POOL("p")]), before, "a key after a format was noted")
        if self.backend.pending is not None:
            missing = list(await self.backend.pending(url, options))
            expect_equal("S-23", missing, [], "what is missing in a store that was opened")

    async def test_a_look_at_a_server_tells_of_it_and_makes_no_store(
        self, url: str, options: Any, limit: CallLimit
    ) -> None:
        """S-24."""
        if self.backend.look is None:
            pytest.skip("not applicable: the declaration has no look")
        told = await self.backend.look(url, options)
        expect_equal("S-24", _with_password(told), [], "texts with a password")
        if self._has_option("must_exist"):
            is_there = await self._opens(url, attrs.evolve(options, must_exist=True))
            expect("S-24", not is_there, "a look at the server made a store")
        async with limited(partial(self.backend.open, url, options), limit) as store:
            expect_equal("S-24", told.durability, store.durability, "the durability class that a look tells")

    async def test_what_a_store_tells_of_its_server_is_the_class_that_it_has(self, store: Store) -> None:
        """S-24."""
        committed("S-24", await commit(store, puts=[(POOL("p"), b"{}")]), "a commit")
        before = await store.get([POOL("p")])
        facts = [f"{name}: {value}" for name, value in (await store.facts()).items() if has_password(f"{value}")]
        expect_equal("S-24", facts, [], "facts with a password")
        best = self.backend.durability
        expect("S-24", store.durability <= best, f"durability is {store.durability.name}, and {best.name} was declared")
        is_kept = self.is_persistent() or store.durability == Durability.D0
        expect("S-24", is_kept, f"durability is {store.durability!r}, and PERSISTENT is not declared")
        for told in (await store.inspect(), await store.inspect()):
            if told is not None:
                expect_equal("S-24", told.durability, store.durability, "the durability class that inspect tells")
                expect_equal("S-24", _with_password(told), [], "texts with a password")
        expect_equal("S-24", await store.get([POOL("p")]), before, "a key after inspect")

    async def test_revisions_go_on_behind_those_of_another_store(self, store: Store) -> None:
        """S-25."""
        first = committed("S-25", await commit(store, puts=[(POOL("p"), b"{}")]), "a commit").revision
        before = await store.get([POOL("p")])
        try:
            await store.advance(first + 1_000)
        except Unsupported:
            pytest.skip("not applicable: the store has no advance, so it cannot be the destination of a copy")
        async with store.reopen() as other:
            for number, (handle, least) in enumerate(((other, 1), (store, 1), (other, first)), start=2):
                await handle.advance(least)  # what is smaller changes nothing
                outcome = await commit(other, puts=[(POOL("q"), b"%d" % number)])
                later = committed("S-25", outcome, "a commit after advance").revision
                expect("S-25", later > first + 1_000, f"{later} was given after advance({first + 1_000})")
            await put(store, ready(1, 1, 1))
            moved = taken("S-25", await take(store, take_of([1], 1)), "a take after advance")
            expect("S-25", moved.revision > later, f"a take at {moved.revision} after a commit at {later}")
            expect_equal("S-25", await other.get([POOL("p")]), before, "a key after advance")

    async def test_what_a_block_raised_comes_out_of_it(self, url: str, options: Any) -> None:
        """S-19."""
        opens = partial(self.backend.open, url, options)
        await passes_through("S-19", opens)
        async with reopenable(opens) as store:
            await passes_through("S-19", store.reopen)

    async def test_a_handle_that_is_left_leaves_nothing_open(self, url: str, options: Any, limit: CallLimit) -> None:
        """S-19."""

        async def use() -> None:
            async with limited(partial(self.backend.open, url, options), limit) as store:
                committed("S-19", await commit(store, puts=[(POOL("p"), b"{}")]), "a commit")

        await leaves_nothing_open("S-19", "handles", use)

    async def test_no_call_keeps_the_event_loop_waiting(self, url: str, options: Any, limit: CallLimit) -> None:
        """S-17: what waits does so in another thread."""
        with blocking_calls() as seen:
            async with limited(partial(self.backend.open, url, options), limit) as store:
                for number in range(REOPENED):
                    await put(store, POOL("p"), ready(1, 1, number))
                    await store.get([POOL("p")])
                    await store.scan([Range(POOL())])
                    await take(store, take_of([1], 1))
                    await store.count([POOL()])
                    await store.time()
                await store.inspect()
        expect_no_waiting("S-17", seen)

    async def test_what_is_said_to_wait_for_nobody_does_not_wait(self, store: Store) -> None:
        """S-17: core sets no time limits where `is_immediate` says so, and asks for the time often if `is_clock_local`
        does.
        """
        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "time": store.time,
            "get": partial(store.get, [POOL("p")]),
            "scan": partial(store.scan, [Range(POOL())]),
            "count": partial(store.count, [POOL()]),
            "commit": partial(commit, store, puts=[(POOL("p"), b"")]),
        }
        said = calls if store.is_immediate else ["time"] if store.is_clock_local else []
        done = []

        async def make(name: str) -> None:
            await calls[name]()
            done.append(name)

        for name in said:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(make, name)
                for _ in range(SOON):
                    await anyio.lowlevel.checkpoint()
                expect("S-17", name in done, f"`{name}` waits, though the store says that it waits for nobody")

    async def test_a_forked_child_cannot_use_the_handle(self, store: Store) -> None:
        """S-22."""
        if not hasattr(os, "fork"):
            pytest.skip("not applicable: this system cannot fork")
        await get(store, POOL("p"))  # it is connected
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside: this is about just that
            child = os.fork()
        if child == 0:
            os._exit(_tried(store))
        status = 0
        with anyio.move_on_after(CHILD_SEC) as scope:
            _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0, abandon_on_cancel=True)
        if scope.cancelled_caught:
            os.kill(child, 9)
        expect("S-22", not scope.cancelled_caught, f"a call in a forked child was not refused within {CHILD_SEC:g} s")
        said = ("", "was carried out, or waits", "raised another error than ForkedHandle")
        code = os.waitstatus_to_exitcode(status)
        expect("S-22", code == 0, f"a call in a forked child {said[min(code, 2)]}")
        committed("S-22", await commit(store, puts=[(POOL("p"), b"{}")]), "a commit of the parent after that")


def _tried(store: Store) -> int:
    """Return 0 if every call is refused at once: the child has no event loop in which it could wait."""
    key = POOL("p")
    calls: list[Any] = [store.get([key]), store.scan([Range(POOL())]), store.time(), store.turn([Batch()], None)]
    return max(_refusal(call) for call in [*calls, store.commit([Batch(puts=[(key, b"{}")])])])


def _refusal(call: Coroutine[Any, Any, object]) -> int:
    try:
        call.send(None)
    except ForkedHandle:
        return 0
    except StopIteration:
        return 1
    except BaseException:
        return 2
    return 1


def _with_password(told: Inspection) -> list[str]:
    shown = [told.product, *(text for one in told.findings for text in (one.text, one.mend))]
    return [text for text in shown if has_password(text)]
