"""The task of a handler is read as it is looked at, and is a task like any other."""

from __future__ import annotations

import copy
import pickle

import attrs
import msgspec
import pytest
from msgspec.structs import astuple

from converge.errors import TornRecord
from converge.model.place import Found, Held
from converge.model.task import Attempt, Spec, State, Task
from converge.runtime.agents.claimed import claimed_task, replaced_inputs
from converge.services.tasks.records import to_task

HELD = Held(b"l" * 16, b"n" * 16, 77, 1_700_000_000_000_000)
SPEC = Spec("docs", "0" * 32, 5, 5, 5, type="t", topic="x", inputs=msgspec.Raw(b'{"n":1}'), priority=3, deadline=9)
STATE = State("PENDING", 2, 5, 5, history=(Attempt(4, "failed", "a", "why", 3, 2),), error="why")


def found(state: State | None = STATE, spec: Spec = SPEC) -> Found:
    return Found(b"i" * 16, spec, state, HELD)


@pytest.mark.parametrize("state", [None, STATE])
def test_each_attribute_alone_is_what_the_whole_task_says(state: State | None) -> None:
    expected = to_task(*astuple(found(state)), by="me")
    for field in attrs.fields(Task):
        task = claimed_task(found(state), "me")
        assert getattr(task, field.name) == getattr(expected, field.name)
        assert task.effect_key == expected.effect_key
        assert (task.id, task.inputs, task.attempts) == (expected.id, expected.inputs, expected.attempts)
        assert task == expected and type(task) is Task


def test_it_compares_prints_copies_and_pickles_as_a_task() -> None:
    expected = to_task(*astuple(found()), by="me")
    assert claimed_task(found(), "me") == claimed_task(found(), "me") and expected == claimed_task(found(), "me")
    assert claimed_task(found(), "me") != object()
    assert repr(claimed_task(found(), "me")) == repr(expected)
    assert isinstance(claimed_task(found(), "me"), Task)
    assert pickle.loads(pickle.dumps(claimed_task(found(), "me"))) == expected  # noqa: S301  # our own bytes
    assert copy.deepcopy(claimed_task(found(), "me")) == expected == copy.copy(claimed_task(found(), "me"))
    assert attrs.evolve(claimed_task(found(), "me"), priority=9).priority == 9
    assert attrs.asdict(claimed_task(found(), "me")) == attrs.asdict(expected)


def test_what_was_read_stays_the_same_object() -> None:
    task = claimed_task(found(), "me")
    inputs = task.inputs
    assert task.priority == 3 and task.inputs is inputs


def test_its_inputs_can_be_replaced() -> None:
    task = claimed_task(found(), "me")
    assert replaced_inputs(task, {"n": 2}) == attrs.evolve(task, inputs={"n": 2}) and task.inputs == {"n": 1}


def test_it_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        claimed_task(found(), "me").priority = 4  # type: ignore[misc]  # the test is of just that


def test_what_cannot_be_read_raises_where_it_is_looked_at() -> None:
    torn = claimed_task(found(spec=Spec("docs", "0" * 32, 5, 5, 5, inputs=msgspec.Raw(b'{"n":'))), "me")
    assert torn.attempts == 3
    with pytest.raises(TornRecord):
        _ = torn.inputs
