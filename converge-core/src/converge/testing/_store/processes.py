"""S-3, S-4, S-6, S-8, S-9, S-11, S-14 between processes: three that share the store, one of which is killed in the
midst.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import anyio
import pytest

from converge.contracts.store import Durability, Feature, Range, Store
from converge.model.keys import POOL, READY, STATE
from converge.testing._processes.peer import BESIDE, COUNTER, LANE, WOKEN
from converge.testing._processes.peers import END_SEC, PROCESSES, Peer, begin, end, order_of, peers_on, running
from converge.testing._store.base import Opening, StoreCase, ident, put, scan
from converge.testing._store.wakes import PROMPT_SEC, watching
from converge.testing.clauses import expect, expect_equal

COUNTED = 30
"""Increments that are waited for before one process is killed, and again after: with fewer two may never meet."""

COUNT_SEC = 30.0
"""How long is waited for each part of what the processes count; they count on for longer, and are told to stop."""

COUNTING_SEC = 5 * COUNT_SEC

LOOKS = 8
"""How often a process that only looks is told of what the others count, and reads it."""

TASKS = 60


class ProcessClauses(StoreCase):
    """What SHARED and PERSISTENT mean, tried with real processes. Each imports the declaration's `open` and the class
    of `options` by their names, so both stand at the top of a module.
    """

    def test_processes_that_count_count_each_number_once(self, url: str, options: Any, opening: Opening) -> None:
        """S-4, S-3, S-6, S-8, S-9, S-14: each increments a key that it has read, and this one is told of it and reads
        it; what is acknowledged stays though one dies.
        """
        if self.inherited_turn:
            pytest.skip("not applicable: it uses nothing of what is inherited")
        with peers_on(self, url, options, "count", COUNTING_SEC) as peers:
            begin(peers)
            told = peers[0].wait_for(lambda said: len(said) > COUNTED, COUNT_SEC)
            if told and Feature.SHARED in self.backend.features:
                anyio.run(self._look, opening, peers)
            peers[0].kill()
            expect("S-14", told, f"{len(peers[0].said) - 1} increments in {COUNT_SEC:g} s: {peers[0].end(END_SEC)}")
            for other in peers[1:]:
                enough = len(other.said) + COUNTED
                other.wait_for(lambda said: len(said) >= enough, COUNT_SEC)  # noqa: B023  # called before the next round
            failed = end(peers)
        rows = sorted((*row, number) for number, peer in enumerate(peers) for row in peer.said[1:])
        last, is_whole = anyio.run(_read_counter, opening)
        self._check_counted(rows, last)
        expect("S-3", is_whole, "a process that was killed has left half a batch")
        expect("S-14", not failed, f"a process failed: {failed}")

    async def _look(self, opening: Opening, peers: list[Peer]) -> None:
        """Expect to be told of what the others count, and to read what they have been answered."""
        delays = []
        async with opening() as store, watching(store, WOKEN, near_sec=self.near_sec) as watcher:
            for _ in range(LOOKS):
                count, begun = watcher.told, anyio.current_time()
                is_told = await watcher.told_more_than(count)
                expect("S-9", is_told, f"a wake from another process was not told within {self.near_sec:g} s")
                delays.append(anyio.current_time() - begun)
                known = max(row[0] for peer in peers for row in [[0], *peer.said[1:]])
                (entry,), page = await store.get([COUNTER]), await scan(store, Range(COUNTER))
                for call, found in (("get", entry), ("scan", page[0] if page else None)):
                    seen = 0 if found is None else int(found.value)
                    said = f"`{call}` read {seen} after another process had been answered that {known} is committed"
                    expect("S-14", seen >= known, said)
        if Feature.NOTIFIES in self.backend.features:
            said = f"the store declares NOTIFIES, but wakes of other processes come at best each {min(delays):.3f} s"
            expect("S-9", min(delays) < PROMPT_SEC, said)

    def _check_counted(self, rows: list[tuple[int, int, int, int, bool, int]], last: int) -> None:
        values, how_many = [row[0] for row in rows], len({row[5] for row in rows})
        twice = len(values) - len(set(values))
        said = f"{len(rows)} increments by {how_many} process{'' if how_many == 1 else 'es'}"
        half = sum(not row[4] for row in rows)
        expect("S-3", not half, f"of {said}, {half} found half a batch that another process had put")
        expect("S-4", not twice, f"of {said}, {twice} were committed beside another that had checked the same revision")
        # The processes that were killed may each have written one more, of which nobody heard.
        is_kept = len(rows) <= last <= len(rows) + PROCESSES
        expect("S-14", is_kept, f"{said} were acknowledged, and a new process reads {last}")
        grows = all(one[1] < other[1] for one, other in pairwise(rows))
        expect("S-6", grows, f"in {said}, revisions of one key do not grow from process to process")
        # A process reads the clock after it has seen a number, and again after it has written the next one.
        back = [one[2] - other[3] for one, other in pairwise(rows) if other[3] < one[2]]
        expect("S-8", not back, f"in {said}, the next writer's clock was behind by up to {max(back, default=0)} us")

    def test_what_was_acknowledged_survives_a_power_loss(
        self, url: str, options: Any, opening: Opening, drop_unsynced: Callable[[], None] | None
    ) -> None:
        """S-14, S-6: a process counts and is killed, and what it had not synced is dropped, which class D2 bears."""
        if self.inherited_turn:
            pytest.skip("not applicable: it uses nothing of what is inherited")
        if self.backend.durability < Durability.D2:
            pytest.skip("not applicable: the declaration is below class D2")
        if drop_unsynced is None:
            pytest.skip("not tried: D2, since `drop_unsynced` gives nothing, so what was not synced is not dropped")
        found = anyio.run(_class_of, opening)
        if found < Durability.D2:
            pytest.skip(f"not tried: D2, since the store that was opened has class {found.name}")
        with running(order_of(self.backend, options, url, "count", COUNT_SEC, inherited=False), 1) as peers:
            begin(peers)
            told = peers[0].wait_for(lambda said: len(said) > COUNTED, COUNT_SEC)
            failed = end(peers)
        rows = peers[0].said[1:]
        expect("S-14", told, f"{len(rows)} increments in {COUNT_SEC:g} s: {failed}")
        drop_unsynced()
        last, revision = anyio.run(_read_and_write, opening)
        lost = rows[-1][0] - last
        expect("S-14", lost <= 0, f"{lost} of {rows[-1][0]} acknowledged commits are lost with the host's power")
        expect("S-6", revision > rows[-1][1], f"after a power loss {revision} is given, after {rows[-1][1]} before it")

    def test_processes_that_take_share_the_keys_without_loss(self, url: str, options: Any, opening: Opening) -> None:
        """S-11: three processes take keys and finish them, each key once."""
        if Feature.SHARED not in self.backend.features:
            pytest.skip("not applicable: the store does not declare SHARED")
        with peers_on(self, url, options, "take", COUNT_SEC) as peers:
            anyio.run(_fill, opening)
            begin(peers)
            failed = end(peers, kill=False)
        taken = [row for peer in peers for row in peer.said[1:]]
        ids = [row[0] for row in taken]
        expect("S-11", not failed, f"a process failed: {failed}")
        expect("S-11", len(ids) == len(set(ids)), f"{len(ids) - len(set(ids))} of {TASKS} keys were taken twice")
        missing = TASKS - len(set(ids))
        expect(
            "S-11", not missing, f"{missing} of {TASKS} keys were taken by nobody, though {len(peers)} processes took"
        )
        refused = [row[0] for row in taken if not row[2]]
        expect("S-10", not refused, f"{len(refused)} finishes were refused, each at the revision of its own take")
        expect_equal("S-14", anyio.run(_count_finished, opening), TASKS, "finished keys that a new process reads")


async def _read_counter(opening: Opening) -> tuple[int, bool]:
    """Return the last number, and whether what is put with it is of the same batch."""
    async with opening() as store:
        entry, beside = await store.get([COUNTER, BESIDE])
        is_whole = (entry and entry.revision) == (beside and beside.revision)
        return int(entry.value) if entry is not None else 0, is_whole


async def _read_and_write(opening: Opening) -> tuple[int, int]:
    last, _ = await _read_counter(opening)
    async with opening() as store:
        return last, await put(store, POOL("after"))


async def _class_of(opening: Opening) -> Durability:
    async with opening() as store:
        return store.durability


async def _fill(opening: Opening) -> None:
    async with opening() as store:
        await put(store, *(READY(LANE, number, ident(number)) for number in range(TASKS)))


async def _count_finished(opening: Opening) -> int:
    async with opening() as store:
        return sum(entry is not None for entry in await _states(store))


async def _states(store: Store) -> list[Any]:
    return list(await store.get([STATE(ident(number)) for number in range(TASKS)]))
