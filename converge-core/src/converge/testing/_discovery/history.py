"""Random histories of discovery, against a plain dictionary and through a store that fails: D-1, D-8."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from converge.contracts.discovery import Sighting
from converge.testing._discovery.base import DiscoveryCase, Opening, applied, until_done
from converge.testing._discovery.clauses import endpoints, payloads
from converge.testing.clauses import expect_equal
from converge.testing.faults import Fault, FaultPlan

names = st.sampled_from(["a", "b", "c", "d", "e"])
# A step: which process does it, what, with which ids; for a publish also what it says.
steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["publish", "withdraw", "look"]),
        st.lists(names, max_size=4),
        endpoints,
        payloads,
    ),
    max_size=25,
)


class HistoryClauses(DiscoveryCase):
    """What any history of calls by three processes leads to."""

    async def test_d1_any_history_is_that_of_a_plain_dictionary(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-1, D-2, D-6, D-7"""
        await self._histories(opening, options, configured, None)

    async def test_d8_through_a_store_that_fails_nothing_is_missed_or_taken_twice(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-8"""
        await self._histories(opening, options, configured, int.from_bytes(os.urandom(4), "big"))

    async def test_d8_calls_that_fail_can_be_made_again_and_a_look_that_failed_half_way_is_made_up_for(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-8"""
        plan = FaultPlan(
            int.from_bytes(os.urandom(4), "big"),
            likelihood={Fault.FAIL_BEFORE: 0.2, Fault.LOSE_REPLY: 0.2},
            reads=True,
            is_calm=True,
        )
        async with self.three(opening, options, plan) as processes:
            reader, seen = processes[0].discovery.reader(), dict[str, Sighting]()
            await processes[0].handle.lease()
            plan.is_calm = False
            for number in range(20):
                now = [Sighting(name, (), b"%d" % number) for name in "abc"]
                for process, one in zip(processes, now, strict=True):
                    await until_done(lambda p=process, s=one: p.discovery.publish([s]))  # type: ignore[misc]  # as above
                seen = applied(seen, await until_done(reader.look))
                expect_equal(
                    "D-8",
                    seen,
                    self.said(configured, *now),
                    f"round {number}, each process has published, calls of one failed; seed {plan.seed}",
                )

    async def _histories(self, opening: Opening, options: Any, configured: list[Sighting], seed: int | None) -> None:
        """Run random histories, each on processes of its own; a failure names the steps, and the seed of the faults."""
        found: list[list[tuple[Any, ...]]] = []

        @settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(steps)
        def collect(history: list[tuple[Any, ...]]) -> None:
            found.append(history)

        collect()
        for number, history in enumerate(found):
            plan = None if seed is None else FaultPlan(seed + number, reads=True, is_calm=True)
            try:
                await self._history(opening, options, configured, history, plan)
            except AssertionError as error:
                error.add_note(f"the history: {history}; the seed of its faults: {None if plan is None else plan.seed}")
                raise

    async def _history(
        self,
        opening: Opening,
        options: Any,
        configured: list[Sighting],
        history: list[tuple[Any, ...]],
        plan: FaultPlan | None,
    ) -> None:
        clause = "D-1" if plan is None else "D-8"
        async with self.three(opening, options, plan) as processes:
            model = _Model()
            readers = [process.discovery.reader() for process in processes]
            seen: list[dict[str, Sighting]] = [{}, {}, {}]
            await processes[0].discovery.publish([])
            if plan is not None:
                await processes[0].handle.lease()
                plan.is_calm = False
            for who, what, ids, where, payload in history:
                if what == "publish":
                    some = [Sighting(id_, where, payload + id_.encode()) for id_ in dict.fromkeys(ids)]
                    await until_done(lambda p=processes[who], s=some: p.discovery.publish(s))  # type: ignore[misc]  # defaults, so that they are bound now
                    model.publish(who, some)
                elif what == "withdraw":
                    await until_done(lambda p=processes[who], i=ids: p.discovery.withdraw(i))  # type: ignore[misc]
                    model.withdraw(who, ids)
                else:
                    changes = await until_done(readers[who].look)
                    seen[who] = applied(seen[who], changes)
                    wanted = self.said(configured, *model.sightings())
                    expect_equal(
                        "D-7" if plan is None else clause,
                        seen[who],
                        wanted,
                        f"by the changes that process {who} was told",
                    )
            for who, process in enumerate(processes):
                wanted = self.said(configured, *model.sightings())
                expect_equal(
                    clause,
                    {one.id: one for one in await until_done(process.discovery.snapshot)},
                    wanted,
                    f"the snapshot of process {who}",
                )
                seen[who] = applied(seen[who], await until_done(readers[who].look))
                expect_equal(clause, seen[who], wanted, f"in the end, by the changes that process {who} was told")


class _Model:
    """What a discovery must say, as plain dictionaries."""

    def __init__(self) -> None:
        self._number = 0
        self._by_owner: dict[int, dict[str, tuple[int, Sighting]]] = {}

    def publish(self, owner: int, sightings: list[Sighting]) -> None:
        for one in sightings:
            self._number += 1
            self._by_owner.setdefault(owner, {})[one.id] = self._number, one

    def withdraw(self, owner: int, ids: list[str]) -> None:
        for id_ in ids:
            self._by_owner.get(owner, {}).pop(id_, None)

    def sightings(self) -> list[Sighting]:
        newest: dict[str, tuple[int, Sighting]] = {}
        for owned in self._by_owner.values():
            for id_, found in owned.items():
                newest[id_] = max(newest.get(id_, found), found, key=lambda one: one[0])
        return [one for _, one in newest.values()]
