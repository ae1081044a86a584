"""A retry submits one copy of a task that failed or was cancelled, and of no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import attrs
import pytest

from converge.builtin.memory import MemoryStore
from converge.errors import NoSuchTask, NotRetried
from converge.ids import id_text
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.tasks.retry import SAME, retry_id, retry_of

OF_THE_STORE = {
    *("state", "attempts", "claimed_by", "token", "nonce", "result", "error", "history"),
    *("submitted_at", "claimed_at", "finished_at"),
    *("waiting_for", "waiting_since", "parks", "parent_id"),
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskManager]:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    manager = TaskManager(store)
    yield manager
    await manager._handle.close()


def test_every_attribute_of_a_task_is_copied_or_left_out_on_purpose() -> None:
    decided = {*SAME, "id", "dedup_key", "not_before", "deadline", "trace"}
    assert decided | OF_THE_STORE == {field.name for field in attrs.fields(Task)}
    assert not decided & OF_THE_STORE


def test_moments_that_have_passed_are_left_out_and_others_kept() -> None:
    past, future = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
    old = retry_of(Task(pool_id="p", id="1", not_before=past, deadline=past), "2", NOW)
    new = retry_of(Task(pool_id="p", id="1", not_before=future, deadline=future), "2", NOW)
    assert (old.not_before, old.deadline, new.not_before, new.deadline) == (None, None, future, future)


async def test_a_copy_can_fail_and_be_retried_in_its_turn(tasks: TaskManager) -> None:
    ids = [await tasks.submit(Task(pool_id="p", dedup_key="k", ordering_key="o", priority=3))]
    for _ in range(3):
        (claimed,) = await tasks.claim("a", ["p"])
        assert (claimed.id, claimed.priority, claimed.ordering_key) == (ids[-1], 3, "o")
        await tasks.fail(claimed, "no", retry=False)
        ids.append(await tasks.retry(ids[-1]))
        assert await tasks.retry(ids[-2]) == ids[-1]
    assert len(set(ids)) == 4
    assert (await tasks.get(ids[-1])).trace == {"retry_of": ids[-2]}


async def test_a_cancelled_task_is_retried(tasks: TaskManager) -> None:
    id_ = await tasks.submit(Task(pool_id="p"))
    await tasks.cancel(id_)
    assert (await tasks.get(await tasks.retry(id_))).state == "PENDING"


async def test_a_task_that_is_pending_assigned_completed_or_not_there_is_not_retried(tasks: TaskManager) -> None:
    id_ = await tasks.submit(Task(pool_id="p"))
    with pytest.raises(NotRetried, match="is PENDING"):
        await tasks.retry(id_)
    (claimed,) = await tasks.claim("a", ["p"])
    with pytest.raises(NotRetried, match="is ASSIGNED"):
        await tasks.retry(id_)
    await tasks.complete(claimed)
    with pytest.raises(NotRetried, match="is COMPLETED"):
        await tasks.retry(id_)
    with pytest.raises(NoSuchTask):
        await tasks.retry(id_text(retry_id(bytes(16), 0)))
    assert len(await tasks.list()) == 1
