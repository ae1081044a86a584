"""Whatever a program gives in whatever field, it is given back as it was, or refused by an error of ours that can be
shown; and nobody else's call meets it afterwards.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from converge import MemoryStore, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Store
from converge.errors import ConvergeError
from converge.services.store.handle import StoreHandle

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


class Text(str):
    """Text as libraries give it: of HTML, of arrays."""


class Mute(str):
    """A text whose methods raise."""

    __slots__ = ()

    def encode(self, *_: Any) -> NoReturn:
        """See the class."""
        raise RuntimeError("asked")

    __repr__ = __str__ = __format__ = isascii = encode


class Number(int):
    """A number that cannot be shown."""

    def __repr__(self) -> NoReturn:
        raise RuntimeError("asked")


class Fraction(float):
    """A number as libraries give it."""


class Hidden:
    """What cannot be shown."""

    def __repr__(self) -> NoReturn:
        raise RuntimeError("no text")


class Zone(tzinfo):
    """A time zone that raises."""

    def utcoffset(self, _: datetime | None) -> NoReturn:
        """See the class."""
        raise RuntimeError("no offset")

    dst = tzname = utcoffset


class Level(enum.IntEnum):
    """A number with a name."""

    HIGH = 3


def deep(depth: int) -> list[Any]:
    """Return lists in lists."""
    return [deep(depth - 1)] if depth else []


CIRCLE: dict[str, Any] = {}
CIRCLE["itself"] = CIRCLE
FAR = timezone(timedelta(hours=-23, minutes=-59))
ODD: list[Any] = [
    *(None, True, 0, -1, 1, 2**31 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, -(10**400), Level.HIGH, Number(3)),
    *(0.0, 5.5, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, Fraction(0.5), Decimal("NaN"), 1j),
    *("", "a", "x" * 65, "x" * 201, "\0", "a\0b", "\ud800", "\udcff", "é" * 101, "a/b", "\n", "%s", "p"),
    *(Text("p"), Text("\ud800"), Mute("p"), b"", b"\xff\0", bytearray(b"x"), memoryview(b"x"), object, len, ...),
    *(Hidden(), range(3), {1}, CIRCLE, deep(40), {"\ud800": 1}, {Text("\ud800"): 1}, {Text("k"): Text("v")}),
    *({1: 2}, {"$bytes": "x"}, {"a": [{"b": b"x"}]}, {"a": float("nan")}, {"a": Mute("z")}, {"a": Number(3)}),
    *({"a": Fraction(0.5)}, {"x" * 10_000: 1}, [None], ["a\0"], ["\ud800"], [Mute("z")], [Hidden()], ["x"] * 1_000),
    *(datetime.min, datetime.max, datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=FAR)),
    *(datetime.min.replace(tzinfo=UTC), datetime(9998, 12, 31, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=Zone())),
    *(timedelta(1), "x" * 2_000_000),
]


async def ends(call: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
    """Return what the call returned; None where it refused."""
    try:
        return await call(*arguments, **named)
    except ConvergeError as error:
        str(error).encode()
        return None


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """A store with two pools."""
    store = MemoryStore()
    yield await with_pools(store)
    await StoreHandle.of(store).close()


async def with_pools(store: Store) -> Store:
    """Return the store, with two pools."""
    for pool in ("p", "w"):
        await PoolManager(store).create_pool(Pool(id=pool))
    return store


@pytest.mark.parametrize("url", ["memory:", "file:"])
async def test_a_task_with_anything_in_a_field_is_refused_or_given_back(url: str, tmp_path: Path) -> None:
    async with open_store(url if url == "memory:" else f"file:{tmp_path / 'state.db'}") as store:
        tasks, stored = TaskManager(await with_pools(store)), 0
        for field in inspect.signature(Task).parameters:
            for odd in ODD:
                fields: dict[str, Any] = {"pool_id": "p", field: odd}
                if (task_id := await ends(tasks.submit, Task(**fields))) is not None:
                    stored += 1
                    assert (await tasks.get(task_id)).id == task_id
        assert stored > len(ODD), "nearly everything was refused"
        assert len(await tasks.list(limit=10_000)) > len(ODD)


Finish = Callable[[TaskManager, Task, Any], Awaitable[Any]]

FINISHES: dict[str, Finish] = {
    "result": lambda tasks, task, odd: tasks.complete(task, odd),
    "reported": lambda tasks, task, odd: tasks.report("agent", task.id, odd),
    "after": lambda tasks, task, odd: tasks.fail(task, "so", after=odd),
    "why": lambda tasks, task, odd: tasks.release(task, odd),
    "by": lambda tasks, task, odd: tasks.cancel(task.id, by=odd, why=odd),
    "grace": lambda tasks, task, odd: tasks.cancel(task.id, grace_sec=odd),
    "signal": lambda tasks, task, odd: tasks.signal(task.id, odd),
    "payload": lambda tasks, task, odd: tasks.signal(task.id, "name", odd),
    "key": lambda tasks, task, odd: tasks.signal(task.id, "name", key=odd),
    "timeout": lambda tasks, task, odd: tasks.release(task, timeout=odd),
}


@pytest.mark.parametrize("what", FINISHES)
async def test_a_claim_ended_with_anything_stays_or_ends(store: Store, what: str) -> None:
    tasks = TaskManager(store)
    for odd in ODD:
        task_id = await tasks.submit(Task(pool_id="w"))
        (claimed,) = await tasks.claim("agent", ["w"])
        await ends(FINISHES[what], tasks, claimed, odd)
        assert (await tasks.get(task_id)).id == task_id
        await tasks.cancel(task_id)


async def test_a_claim_for_anything_is_refused_or_finds_nothing(store: Store) -> None:
    tasks = TaskManager(store)
    for odd in ODD:
        if not isinstance(odd, str):
            assert not await ends(tasks.claim, "agent", ["w"], limit=odd)
            assert not await ends(tasks.claim, "agent", ["w"], timeout=odd)
        assert not await ends(tasks.claim, "agent", ["w"], [odd])
        assert not await ends(tasks.claim, "agent", ["w"], topics=[odd])
        assert not await ends(tasks.claim, "agent", ["w"], types=[odd])
        assert not await ends(tasks.claim, "agent", [odd])
        assert not await ends(tasks.result, "01990000-0000-7000-8000-000000000000", odd)


async def test_plain_data_of_other_classes_is_given_back_as_plain_data(store: Store) -> None:
    """Libraries return texts and numbers of classes of their own."""
    tasks = TaskManager(store)
    given: dict[str, Any] = {Text("k"): [Text("v"), Level.HIGH, Number(3), Fraction(0.5)]}
    task_id = await tasks.submit(Task(pool_id="w", inputs=given))
    (claimed,) = await tasks.claim("agent", ["w"])
    assert claimed.inputs == {"k": ["v", 3, 3, 0.5]}
    await tasks.complete(claimed, Text("done"))
    assert (await tasks.get(task_id)).result == "done"
