"""S-1, S-2, S-15, S-18: what is read."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from converge.contracts.store import LIMITS, Batch, Entry, Key, Range, Store
from converge.errors import ValueTooLarge
from converge.model.keys import (
    ALSO,
    DEDUP,
    DONE,
    EPOCH,
    FAMILIES,
    INT_MAX,
    INT_MIN,
    LATER,
    NAME_BYTES,
    ORDER,
    POOL,
    READY,
    STATE,
    TASK,
    Family,
    Part,
)
from converge.testing._store.base import (
    StoreCase,
    commit,
    committed,
    get,
    ident,
    keys_under,
    lane,
    put,
    ready,
    refused,
    scan,
)
from converge.testing.clauses import expect, expect_equal

# In the order of code points, which is that of UTF-8; UTF-16 and most collations of SQL have another. Wildcards of LIKE
# and GLOB among them.
NAMES = (
    "",
    " ",
    "%",
    "*",
    "-1",
    "10",
    "9",
    "A",
    "[x]",
    "_",
    "a",
    "a\x01",
    "a ",
    "a%",
    "a*",
    "aa",
    "ab",
    "b",
    "é",
    "\ue000",
    "\U00010000",
)
INTS = (INT_MIN, -(2**53) - 1, -256, -1, 0, 1, 9, 10, 255, 256, 2**53 + 1, INT_MAX)
IDS = (
    bytes(16),
    b"\0" * 15 + b"\n",
    b"\0\xff" * 8,
    b"%" * 16,
    b"\x7f" * 16,
    b"\x80" + bytes(15),
    b"\xff" * 15 + b"\0",
    b"\xff" * 16,
)
EXTREMES: dict[Part, Sequence[object]] = {
    Part.ID: IDS,
    Part.HASH: IDS,
    Part.INT: INTS,
    Part.NAME: (*NAMES, "x" * NAME_BYTES, "é" * (NAME_BYTES // 2)),
}
CANCELLED = 12
"""How often reads are cancelled, each time a turn of the event loop later."""
VALUES = (
    b"",
    b"0",
    b'"\\u0000"',
    '{"text": "zażółć, \U0001f680\u2028"}'.encode(),
    b'{"b": 1, "a": 1.0,   "a": 2}',
    b'"' + b"x" * 70_000 + b'"',
    b' {"a":\t"\x7f",\r\n"b": 1}\n',
)


def spread(family: Family) -> list[Key]:
    """Return keys of a family in which each part meets each of its extremes."""
    columns = [EXTREMES[part] for part in family.parts.values()]
    count = max((len(column) for column in columns), default=1)
    return [family(*(column[at % len(column)] for column in columns)) for at in range(count)]


class ReadClauses(StoreCase):
    """get, scan and count answer what is there."""

    async def test_get_answers_each_key_in_the_order_asked(self, store: Store) -> None:
        """S-1."""
        there = [TASK(ident(1)), POOL("docs"), ready(1, 5, 1), LATER(7, ident(1))]
        for number, key in enumerate(there):
            await put(store, key, value=str(number).encode())
        absent = [TASK(ident(2)), STATE(ident(1)), POOL("doc"), ready(2, 5, 1)]
        asked = [key for pair in zip(reversed(there), absent, strict=True) for key in pair] + [there[0], absent[0]]
        entries = await store.get(asked)
        expect_equal(
            "S-1",
            [None if entry is None else entry.key for entry in entries],
            [k if k in there else None for k in asked],
            "keys of get",
        )
        values = [entry.value for entry in entries if entry is not None]
        expect_equal("S-1", values, [b"3", b"2", b"1", b"0", b"0"], "values of get, one of which was asked for twice")

    async def test_calls_at_the_same_time_answer_what_each_was_asked(self, store: Store) -> None:
        """S-1: also where others of the same handle are cancelled; a late answer is nobody else's."""
        keys = [POOL(f"{number}") for number in range(8)]
        for key in keys:
            await put(store, key, value=key[1].encode())
        found: dict[int, object] = {}

        async def read(number: int) -> None:
            entry = await get(store, keys[number]) if number % 2 else (await scan(store, Range(keys[number])))[0]
            found[number] = entry and entry.value

        for at in range(CANCELLED):
            async with anyio.create_task_group() as others, anyio.create_task_group() as cancelled:
                for number in range(len(keys)):
                    (others if number % 3 else cancelled).start_soon(read, number)
                for _ in range(at):
                    await anyio.lowlevel.checkpoint()
                cancelled.cancel_scope.cancel()
            found |= {number: b"%d" % number for number in range(0, len(keys), 3)}
            expect_equal(
                "S-1", found, {n: b"%d" % n for n in range(len(keys))}, "what calls at the same time have read"
            )
            await read(at % len(keys))
            expect_equal("S-1", found[at % len(keys)], b"%d" % (at % len(keys)), "a read after others were cancelled")

    async def test_get_answers_what_was_written_last(self, store: Store) -> None:
        """S-1."""
        key = POOL("docs")
        await put(store, key, value=b"1")
        last = await put(store, key, value=b"2")
        expect_equal("S-1", await get(store, key), Entry(key, b"2", last), "the entry after two puts")
        committed("S-3", await commit(store, deletes=[key]), "a delete")
        expect_equal("S-1", await get(store, key), None, "the entry after a delete")

    async def test_empty_calls_are_legal(self, store: Store) -> None:
        """S-1."""
        answers = [await store.get([]), await store.scan([]), await store.commit([]), await store.count([])]
        expect_equal(
            "S-1",
            [list(answer) for answer in answers],
            [[], [], [], []],
            "answers to get, scan, commit and count of nothing",
        )
        turned = await store.turn([], None)
        expect_equal("S-1", (list(turned.outcomes), turned.taken), ([], None), "the answer to a turn of nothing")

    async def test_get_takes_as_many_keys_as_the_limits_say(self, store: Store) -> None:
        """S-1."""
        keys = [TASK(ident(number)) for number in range(LIMITS.keys)]
        await put(store, *keys[::2])
        entries = await store.get(keys)
        expect_equal(
            "S-1",
            [entry is not None for entry in entries],
            [True, False] * (LIMITS.keys // 2),
            f"get of {LIMITS.keys} keys",
        )

    async def test_scan_answers_in_the_order_of_the_parts(self, store: Store) -> None:
        """S-2."""
        for family in (ORDER, DEDUP, LATER, DONE):
            keys = spread(family)
            await put(store, *reversed(keys))
            found = [entry.key for entry in await scan(store, Range((family,)))]
            expect_equal("S-2", found, sorted(keys), f"keys of a scan of the whole family {family}")
        numbers = [ORDER("pool", "key", number) for number in INTS]
        await put(store, *reversed(numbers))
        found = [entry.key for entry in await scan(store, Range(ORDER("pool", "key")))]
        expect_equal("S-2", found, numbers, "keys of a scan over integers, in the order of the numbers")
        names = [DEDUP("pool", name) for name in NAMES]
        await put(store, *reversed(names))
        found = [entry.key for entry in await scan(store, Range(DEDUP("pool")))]
        expect_equal("S-2", found, names, "keys of a scan over names, in the order of their code points")

    async def test_scan_answers_values_and_revisions(self, store: Store) -> None:
        """S-2."""
        entries = [
            Entry(ready(1, n, n), b"%d" % n, await put(store, ready(1, n, n), value=b"%d" % n)) for n in range(3)
        ]
        expect_equal("S-2", await scan(store, Range(READY(lane(1)))), entries, "entries of a scan")

    async def test_scan_stays_under_its_prefix(self, store: Store) -> None:
        """S-2."""
        lanes = [ready(number, rank, 10 * number + rank + 1) for number in (0, 1, 2, 255, 256, 257) for rank in (-1, 1)]
        names = [DEDUP(pool, "k") for pool in NAMES]
        numbers = [DONE("p", "s", number, ident(1)) for number in INTS]
        await put(store, *lanes, *names, *numbers)
        for number in (0, 1, 255, 256, 257):
            found = [entry.key for entry in await scan(store, Range(READY(lane(number))))]
            expect_equal("S-2", found, [key for key in lanes if key[1] == lane(number)], f"keys under lane {number}")
        for name in NAMES:
            found = [entry.key for entry in await scan(store, Range(DEDUP(name)))]
            expect_equal("S-2", found, [DEDUP(name, "k")], f"keys under the name {name!r}")
        for number in INTS:
            found = [entry.key for entry in await scan(store, Range(DONE("p", "s", number)))]
            expect_equal("S-2", found, [DONE("p", "s", number, ident(1))], f"keys under the integer {number}")
        expect_equal("S-2", await scan(store, Range(READY(lane(3)))), [], "entries under a prefix that no key has")

    async def test_scan_begins_after_a_rest_that_need_not_be_there(self, store: Store) -> None:
        """S-2."""
        await put(store, *(ready(1, rank, 1) for rank in (-4, -2, 0, 2, 4)), ready(0, 9, 1), ready(2, -9, 1))
        for after in (-5, -4, -3, 0, 3, 4, 5):
            found = [entry.key[2] for entry in await scan(store, Range(READY(lane(1)), (after, ident(1))))]
            expect_equal("S-2", found, [rank for rank in (-4, -2, 0, 2, 4) if rank > after], f"ranks after {after}")
        found = [entry.key[2] for entry in await scan(store, Range(READY(lane(1)), (0, ident(0))))]
        expect_equal("S-2", found, [0, 2, 4], "ranks after rank 0 of a smaller id")

    @pytest.mark.parametrize("page", [1, 2, 7])
    async def test_pages_of_a_scan_meet_without_gap_or_overlap(self, store: Store, page: int) -> None:
        """S-2."""
        keys = sorted(ready(1, rank, number) for rank in (-1, 0, 1) for number in range(7))
        await put(store, *keys, ready(0, 0, 0), ready(2, 0, 0))
        for limit in (1, page):
            found = await scan(store, Range(READY(lane(1)), None, limit))
            expect_equal("S-2", [entry.key for entry in found], keys[:limit], f"the first page of {limit}")
        expect_equal("S-2", await keys_under(store, READY(lane(1)), page=page), keys, f"all pages of {page} together")
        whole = [ready(0, 0, 0), *keys, ready(2, 0, 0)]
        found_keys = await keys_under(store, READY(), page=page)
        expect_equal(
            "S-2", found_keys, whole, f"all pages of {page} of a whole family, some of which end within a lane"
        )

    async def test_a_page_may_be_as_long_as_the_limits_say(self, store: Store) -> None:
        """S-2."""
        keys = [ready(1, 0, number) for number in range(LIMITS.keys + 5)]
        await put(store, *keys)
        found = [entry.key for entry in await scan(store, Range(READY(lane(1)), None, LIMITS.keys))]
        expect_equal("S-2", found, keys[: LIMITS.keys], f"a page of {LIMITS.keys}")

    async def test_scan_answers_each_range_in_its_place(self, store: Store) -> None:
        """S-2."""
        await put(
            store,
            *(ready(number, rank, number) for number in range(40) for rank in range(1 + number % 3)),
            POOL("a"),
            POOL("b"),
        )
        numbers = [(7 * at) % 40 for at in range(LIMITS.ranges - 2)]
        numbers[1] = numbers[0]  # a range may be asked for twice
        ranges = [Range((POOL,)), *(Range(READY(lane(number)), None, 2) for number in numbers), Range(READY(lane(99)))]
        pages = await store.scan(ranges)
        wanted = [2, *(min(2, 1 + number % 3) for number in numbers), 0]
        expect_equal("S-2", [len(page) for page in pages], wanted, "lengths of the pages of many ranges")
        expect_equal(
            "S-2",
            [page[0].key[1] for page in pages[1:-1]],
            [lane(n) for n in numbers],
            "the lanes of the pages, in the order of ranges",
        )

    async def test_values_come_back_byte_for_byte(self, store: Store) -> None:
        """S-15."""
        keys = [TASK(ident(number)) for number in range(len(VALUES))]
        committed("S-15", await commit(store, puts=list(zip(keys, VALUES, strict=True))), "puts of every kind of value")
        await put(store, *(DONE("p", "s", n, ident(n)) for n in range(len(VALUES))))
        expect_equal("S-15", [entry and entry.value for entry in await store.get(keys)], list(VALUES), "values of get")
        pools = [POOL(f"{number:02}") for number in range(len(VALUES))]
        committed(
            "S-15", await commit(store, puts=list(zip(pools, VALUES, strict=True))), "puts of every kind of value"
        )
        values = [entry.value for entry in await scan(store, Range((POOL,)))]
        expect_equal("S-15", values, list(VALUES), "values of scan")
        expect(
            "S-15",
            all(type(value) is bytes for value in values),
            f"values are {[type(value).__name__ for value in values]}, not bytes",
        )

    async def test_a_value_of_the_greatest_length_comes_back_whole(self, store: Store) -> None:
        """S-15."""
        value = b'"' + b"\xc3\xa9" * ((LIMITS.value_bytes - 2) // 2) + b'"'
        await put(store, TASK(ident(1)), value=value)
        entry = await get(store, TASK(ident(1)))
        expect(
            "S-15",
            entry is not None and entry.value == value,
            f"a value of {len(value)} bytes came back as {entry and len(entry.value)} bytes",
        )

    async def test_as_many_bytes_as_a_call_may_put_are_written_and_read(self, store: Store) -> None:
        """S-15."""
        keys = [POOL(f"{number:02}") for number in range(LIMITS.call_bytes // LIMITS.value_bytes)]
        values = [b'"%s"' % (b"%x" % number * (LIMITS.value_bytes - 2)) for number in range(len(keys))]
        outcomes = await store.commit([Batch(puts=[(key, value)]) for key, value in zip(keys, values, strict=True)])
        for outcome in outcomes:
            committed("S-15", outcome, "a batch of a large call")
        lengths = [entry and len(entry.value) for entry in await store.get(keys)]
        expect_equal("S-15", lengths, [LIMITS.value_bytes] * len(keys), "lengths of the values of a large get")
        last = await get(store, keys[-1])
        expect(
            "S-15", last is not None and last.value == values[-1], "the last value of a large call came back changed"
        )

    async def test_a_page_of_long_values_is_not_cut_short(self, store: Store) -> None:
        """S-2: a page with less than its limit is the last one."""
        keys = [POOL(f"{number}") for number in range(8)]
        for key in keys:
            await put(store, key, value=b'"%s"' % (b"x" * (LIMITS.value_bytes - 2)))
        found = [entry.key for entry in await scan(store, Range((POOL,), None, len(keys) - 1))]
        expect_equal("S-2", found, keys[:-1], "keys of a page whose values have the greatest length")

    @pytest.mark.parametrize("call", ["commit", "turn"])
    async def test_a_value_over_the_limit_is_refused_before_anything_is_written(self, store: Store, call: str) -> None:
        """S-15."""
        value = b'"' + b"x" * (LIMITS.value_bytes - 1) + b'"'
        batches = [
            Batch(puts=[(POOL("a"), b"1")]),
            Batch(puts=[(POOL("b"), b"1"), (POOL("c"), value)]),
            Batch(puts=[(POOL("d"), b"1")]),
        ]
        try:
            answer: object = await (store.commit(batches) if call == "commit" else store.turn(batches, None))
        except ValueTooLarge:
            pass
        else:
            expect(
                "S-15",
                False,
                f"a value of {len(value)} bytes was not refused with ValueTooLarge; the answer was {answer}",
            )
        expect_equal("S-15", await keys_under(store, (POOL,)), [], "what a refused call has written")

    async def test_keys_of_every_family_come_back_type_for_type(self, store: Store) -> None:
        """S-15."""
        for family in FAMILIES.values():
            if family != EPOCH:
                await self._keys_come_back(store, family)

    async def _keys_come_back(self, store: Store, family: Family) -> None:
        keys = spread(family)
        await put(store, *keys)
        entries = list(await store.get(keys))
        if family not in ALSO:
            entries += sorted(await scan(store, Range((family,))))
        expect_equal(
            "S-15",
            [entry and entry.key for entry in entries],
            keys if family in ALSO else keys + sorted(keys),
            f"keys of {family}",
        )
        kinds = {tuple(type(part) for part in entry.key) for entry in entries if entry is not None}
        wanted = tuple(_TYPES[part] for part in family.parts.values())
        expect_equal("S-15", kinds, {(Family, *wanted)}, f"types of the keys of {family}")

    async def test_the_key_without_parts_is_a_key_like_others(self, store: Store) -> None:
        """S-15."""
        key = (EPOCH,)
        before = await get(store, key)
        revision = 0 if before is None else before.revision
        refused(
            "S-3", await commit(store, checks=[(key, revision + 1)], puts=[(key, b"2")]), "a stale check of the epoch"
        )
        last = committed(
            "S-3", await commit(store, checks=[(key, revision)], puts=[(key, b"1")]), "a right check of the epoch"
        )
        expect_equal("S-15", await get(store, key), Entry(key, b"1", last.revision), "the epoch")

    async def test_count_answers_how_many_keys_are_under_each_prefix(self, store: Store) -> None:
        """S-18."""
        await put(store, *(ready(number, rank, number) for number in (1, 2, 256) for rank in range(number % 7)))
        await put(store, *(DEDUP(name, key) for name in ("a", "aa", "a%") for key in ("x", "y")))
        prefixes = [
            READY(lane(2)),
            (READY,),
            READY(lane(1)),
            READY(lane(0)),
            (DEDUP,),
            DEDUP("a"),
            DEDUP("a", "x"),
            (LATER,),
            READY(lane(2)),
        ]
        expect_equal("S-18", list(await store.count(prefixes)), [2, 7, 1, 0, 6, 2, 1, 0, 2], "counts")
        committed("S-3", await commit(store, deletes=[ready(2, 0, 2)]), "a delete")
        expect_equal("S-18", list(await store.count([READY(lane(2)), (READY,)])), [1, 6], "counts after a delete")

    async def test_count_goes_beyond_a_page(self, store: Store) -> None:
        """S-18."""
        await put(store, *(ready(1, 0, number) for number in range(2 * LIMITS.keys)), ready(2, 0, 0))
        expect_equal(
            "S-18",
            list(await store.count([READY(lane(1)), (READY,)])),
            [2 * LIMITS.keys, 2 * LIMITS.keys + 1],
            "counts",
        )


_TYPES: dict[Part, type] = {Part.ID: bytes, Part.HASH: bytes, Part.INT: int, Part.NAME: str}
