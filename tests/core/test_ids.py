"""Drawn ids: their order, and the bits that are kept for later."""

from __future__ import annotations

import os
import uuid

import anyio
from hypothesis import given
from hypothesis import strategies as st

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.ids import id_bytes, id_text, uuid7, uuids7

MOMENTS = st.integers(0, 2**47 * 1_000)


def _random_half(id_: bytes) -> int:
    return int.from_bytes(id_[10:], "big")


@given(MOMENTS, st.binary(min_size=6, max_size=6), st.integers(0, 2**16))
def test_ten_of_the_random_bits_are_kept_for_a_partition(now: int, entropy: bytes, number: int) -> None:
    id_ = uuid7(now, entropy, number)
    assert uuid.UUID(bytes=id_).version == 7
    assert _random_half(id_) == int.from_bytes(entropy, "big") & (2**38 - 1)


@given(MOMENTS, st.integers(0, 40))
def test_many_at_once_are_as_one_by_one(now: int, count: int) -> None:
    entropy = os.urandom(6 * count)
    found = uuids7(now, entropy) if count else []
    assert found == [uuid7(now, entropy[6 * n : 6 * n + 6], n) for n in range(count)]
    assert found == sorted(found)


async def test_an_id_with_other_bits_there_is_an_id_like_any_other() -> None:
    given_ids = [id_text(id_bytes("id", "0192f3c4-0000-7000-8000-ffffffffffff")), str(uuid.UUID(int=2**128 - 1))]
    async with open_store("memory:") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        tasks = TaskManager(store)
        drawn = await tasks.submit(Task(pool_id="p"))
        assert await tasks.submit_many([Task(pool_id="p", id=id_) for id_ in given_ids]) == given_ids
        claimed = await tasks.claim("a", pools=["p"], limit=3)
        for task in claimed:
            await tasks.complete(task, 1)
        with anyio.fail_after(10):
            assert [(await tasks.result(id_)).id for id_ in (drawn, *given_ids)] == [drawn, *given_ids]
        assert _random_half(id_bytes("id", drawn)) < 2**38
