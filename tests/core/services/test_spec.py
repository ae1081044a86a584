"""Tasks to specifications and back, without a store."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from msgspec.structs import astuple

from converge.errors import InvalidName, InvalidValue
from converge.model.place import Found, Held
from converge.model.pool import Pool
from converge.model.task import State, Task
from converge.services.tasks.records import is_same_task, moment, to_spec, to_task

ID, PLACE = b"i" * 16, Held(b"l" * 16, b"n" * 16, 77, 5_000_000)
NOW = 1_764_000_000_000_000
POOL = Pool(id="docs")
STATES = [None, State(state="PENDING", attempts=2, due=NOW, rank=NOW, error="no")]


def found(state: State | None = None, **given: Any) -> Found:
    given = {
        "inputs": {"text": "a b", "data": b"\0"},
        "required_capabilities": ["swim", "fly"],
        "trace": {"id": "1"},
    } | given
    return Found(ID, to_spec(Task(pool_id="docs", **given), POOL, NOW), state, PLACE)


@pytest.mark.parametrize(
    "task", [Task(pool_id="docs"), to_task(*astuple(found()), by="me")], ids=["submitted", "claimed"]
)
def test_a_task_has_no_attribute_that_it_does_not_name(task: Task) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'input'"):
        task.input  # type: ignore[attr-defined]  # noqa: B018  # that is the test


def test_a_task_is_the_same_when_its_not_before_has_passed_between_two_submits() -> None:
    task = Task(pool_id="docs", not_before=moment(NOW + 5))
    stored = to_spec(task, POOL, NOW)
    assert is_same_task(task, to_spec(task, POOL, NOW + 10), stored)
    assert not is_same_task(Task(pool_id="docs"), to_spec(Task(pool_id="docs"), POOL, NOW + 10), stored)
    keyed = attrs.evolve(task, dedup_key="once")
    assert to_spec(keyed, POOL, NOW + 10).digest == to_spec(keyed, POOL, NOW).digest != ""


OTHERS: list[dict[str, Any]] = [
    {"inputs": {"n": 2}}, {"type": "x"}, {"topic": "x"}, {"required_capabilities": ("x",)}, {"priority": 1},
    {"timeout_sec": 1.0},
    {"max_attempts": 4}, {"retry_delay_sec": 2.0}, {"ordering_key": "k"}, {"not_before": moment(NOW + 5)},
    {"deadline": moment(NOW + 5)},
    {"dedup_key": "k"},
]  # fmt: skip


@pytest.mark.parametrize("changes", OTHERS, ids=lambda changes: next(iter(changes)))
def test_a_task_that_differs_in_one_thing_is_another(changes: dict[str, Any]) -> None:
    task = Task(pool_id="docs", inputs={"n": 1})
    other = attrs.evolve(task, **changes)
    spec, changed = to_spec(task, POOL, NOW), to_spec(other, POOL, NOW)
    assert not is_same_task(other, changed, spec)
    assert not is_same_task(task, spec, changed)
    assert is_same_task(other, changed, changed)
    if "dedup_key" not in changes:
        digests = {to_spec(attrs.evolve(one, dedup_key="once"), POOL, NOW).digest for one in (task, other)}
        assert len(digests) == 2


@pytest.mark.parametrize("names", [{"type": ["x"]}, {"topic": 5}, {"type": "no blank"}], ids=str)
def test_a_name_that_is_none_is_refused_whatever_was_seen_before(names: dict[str, Any]) -> None:
    with pytest.raises(InvalidName):
        to_spec(Task(pool_id="docs", **names), POOL, NOW)


@pytest.mark.parametrize(
    "numbers", [{"priority": True}, {"max_attempts": 1.0}, {"retry_delay_sec": True}, {"timeout_sec": False}], ids=str
)
def test_what_only_equals_a_number_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        to_spec(Task(pool_id="docs", **numbers), POOL, NOW)


def test_a_moment_is_aware_and_exact() -> None:
    assert moment(NOW) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=NOW)


def test_a_task_that_lacks_its_pool_or_has_a_slip_of_the_pen_in_a_name_is_refused() -> None:
    with pytest.raises(TypeError, match="pool_id"):
        Task()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="prority"):
        Task(pool_id="docs", prority=3)  # type: ignore[call-arg]


def test_tasks_share_no_inputs_and_are_equal_if_they_say_the_same() -> None:
    one, other = Task(pool_id="docs"), Task(pool_id="docs", priority=0, inputs={})
    assert one == other
    assert one.inputs is not other.inputs
    assert one.trace is not other.trace
    assert attrs.asdict(one) == attrs.asdict(other)


def test_the_signature_of_a_task_names_every_attribute() -> None:
    assert list(inspect.signature(Task).parameters) == [field.name for field in attrs.fields(Task)]
