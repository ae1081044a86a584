"""From a Task to its stored specification and back: checks, moments, the content's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import attrs
import msgspec

from converge.codec import MOMENT_GREATEST, canonical, decode_inputs, decode_plain, encode, encode_plain, stored_text
from converge.contracts.store import LIMITS
from converge.errors import InvalidName, InvalidValue, ValueTooLarge
from converge.ids import check_name, id_text
from converge.machines.durable import FOREVER
from converge.machines.lane import lane_id
from converge.machines.task import RESULT_BYTES, TaskState, history_of, state_of
from converge.model.keys import LANE, NAME_BYTES, Key
from converge.model.place import Held, Place
from converge.model.pool import Pool
from converge.model.task import DURABLE, Spec, State, Task

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
PRIORITY_GREATEST = 1_000
ATTEMPTS_GREATEST = 1_000
TIMEOUT_GREATEST_SEC = 86_400.0 * 30
CAPABILITIES = 32
"""Required capabilities of one task: more would make lanes that nobody shares."""


class Kind(NamedTuple):
    """What all tasks of one lane have in common, checked once."""

    topic: str
    type: str
    capabilities: tuple[str, ...]
    hex: str
    key: Key


@lru_cache(maxsize=4_096)  # a submit asks for one a task, and a pool has at most 1,024 lanes
def _kind(pool: str, topic: str, type_: str, capabilities: tuple[str, ...]) -> Kind:
    names = _names("required_capabilities", capabilities)
    type_ = str(check_name("type", type_)) if type_ else ""
    topic = str(check_name("topic", topic)) if topic else ""
    lane = lane_id(pool, topic, type_, names)
    return Kind(topic, type_, names, lane.hex(), LANE(pool, lane))


def kind_of(task: Task, pool_id: str) -> Kind:
    """Return the kind that the task is of.

    Raises:
        InvalidValue, InvalidName: Which field, and what it should be.
    """
    capabilities = task.required_capabilities
    if type(capabilities) is not tuple:
        capabilities = _names("required_capabilities", capabilities)
    try:
        return _kind(pool_id, task.topic, task.type, capabilities)
    except Exception:  # one of them has no hash, so it is no name
        return _kind.__wrapped__(pool_id, task.topic, task.type, capabilities)


def to_spec(task: Task, pool: Pool, now: int, origin: str = "", kind: Kind | None = None) -> Spec:
    """Return the specification that a store keeps of the task; its order number is still 0.

    Raises:
        InvalidValue, InvalidName: Which field, and what it should be.
        ValueTooLarge: It does not fit into a value of the store.
    """
    kind = kind or kind_of(task, pool.id)
    _check_numbers(task)
    due = now if task.not_before is None else max(now, _micros("not_before", task.not_before))
    deadline = 0 if task.deadline is None else _micros("deadline", task.deadline)
    inputs = encode_plain(_mapping(task.inputs), "inputs")
    if len(inputs) > LIMITS.value_bytes - 8_192:
        raise ValueTooLarge("inputs", len(inputs), LIMITS.value_bytes - 8_192)
    priority = task.priority
    return Spec(
        pool.id,
        kind.hex,
        due,
        due - int(priority * pool.priority_step_sec * 1_000_000) if priority else due,
        now,
        "" if task.dedup_key is None else _digest(task, kind, inputs),
        kind.type,
        kind.topic,
        kind.capabilities,
        msgspec.Raw(inputs),
        priority,
        deadline,
        None if task.timeout_sec is None else float(task.timeout_sec),
        task.max_attempts,
        float(task.retry_delay_sec),
        None if task.dedup_key is None else _key("dedup_key", task.dedup_key),
        None if task.ordering_key is None else _key("ordering_key", task.ordering_key),
        0,
        _strings("trace", task.trace) if task.trace else {},
        origin,
    )


def _digest(task: Task, kind: Kind, inputs: bytes) -> str:
    """Return the digest that stands beside a dedup key: other content is found without the task's record."""
    not_before = None if task.not_before is None else _micros("not_before", task.not_before)
    deadline = None if task.deadline is None else _micros("deadline", task.deadline)
    timeout_sec = None if task.timeout_sec is None else float(task.timeout_sec)
    content = (
        kind.type, kind.topic, kind.capabilities, canonical(inputs, "inputs").decode(), task.priority, not_before,
        deadline, timeout_sec, task.max_attempts, float(task.retry_delay_sec), task.ordering_key,
    )  # fmt: skip
    return hashlib.blake2b(encode(content), digest_size=12).hexdigest()


def is_same_task(task: Task, spec: Spec, stored: Spec) -> bool:
    """Return whether the task, whose specification is `spec`, equals what was stored under the same id."""
    if (spec.pool, spec.lane, spec.dedup_key, spec.ordering_key) != (
        stored.pool,
        stored.lane,
        stored.dedup_key,
        stored.ordering_key,
    ):
        return False
    # A `not_before` that had passed when the task was stored has left no trace.
    not_before = 0 if task.not_before is None else _micros("not_before", task.not_before)
    if not_before != stored.due if stored.due > stored.submitted else not_before > stored.submitted:
        return False
    return (
        _are_equal(spec.inputs, stored.inputs)
        and (spec.priority, spec.deadline, spec.timeout_sec) == (stored.priority, stored.deadline, stored.timeout_sec)
        and (spec.max_attempts, spec.retry_delay_sec) == (stored.max_attempts, stored.retry_delay_sec)
    )


def _are_equal(inputs: msgspec.Raw, stored: msgspec.Raw) -> bool:
    return bytes(inputs) == bytes(stored) or canonical(inputs, "inputs") == canonical(stored, "inputs")


def check_deadline(task: Task, spec: Spec) -> None:
    """Refuse a deadline that cannot be kept.

    Raises:
        InvalidValue: It has passed, or comes before the task may begin.
    """
    if spec.deadline and spec.deadline <= spec.due:
        raise InvalidValue("deadline", task.deadline, "a moment after now and after not_before")


def to_task(id_: bytes, spec: Spec, state: State | None, place: Place | None, *, by: str = "") -> Task:
    """Return the task as users see it; with its place in `held`, as its claimer `by` does.

    Raises:
        TornRecord: Its inputs or result cannot be read.
    """
    text = id_text(id_)
    values = _DEFAULTS.copy()
    values["pool_id"], values["id"], values["type"], values["topic"] = spec.pool, text, spec.type, spec.topic
    values["required_capabilities"], values["priority"], values["max_attempts"] = (
        spec.capabilities,
        spec.priority,
        spec.max_attempts,
    )
    values["inputs"] = decode_inputs(spec.inputs, text)
    values["submitted_at"] = moment(spec.submitted)
    values["timeout_sec"], values["retry_delay_sec"], values["trace"] = (
        spec.timeout_sec,
        spec.retry_delay_sec,
        spec.trace,
    )
    values["dedup_key"], values["ordering_key"] = spec.dedup_key, spec.ordering_key
    values["state"] = state_of(state, place)
    if spec.due > spec.submitted:
        values["not_before"] = moment(spec.due)
    if spec.deadline:
        values["deadline"] = moment(spec.deadline)
    if spec.parent:
        values["parent_id"] = id_text(bytes.fromhex(spec.parent))
    attempts = 0
    if state is not None:
        attempts = state.attempts
        values["history"], values["error"] = history_of(state), state.error
        if state.v >= DURABLE:
            _add_durable(values, state, text)
    if type(place) is Held:
        attempts += 1
        values["token"], values["nonce"], values["claimed_by"] = place.token, place.nonce.hex(), by
        values["claimed_at"] = moment(place.claimed_at)
    elif state is not None:
        values["token"], values["nonce"], values["claimed_by"] = state.token, state.nonce, state.by
        values["result"] = decode_plain(state.result, text)
        values["finished_at"] = moment(state.finished) if state.finished else None
    values["attempts"] = attempts
    return _task(values)


def _add_durable(values: dict[str, Any], state: State, text: str) -> None:
    values["parks"] = state.parks
    if bytes(state.inputs) != b"null":
        values["inputs"] = decode_inputs(state.inputs, text)
    if state.wait is not None and values["state"] == TaskState.WAITING:
        values["waiting_for"], values["waiting_since"] = state.wait.text, moment(state.wait.since)
        if state.due < FOREVER:
            values["not_before"] = moment(state.due)


def _task(values: dict[str, Any]) -> Task:
    """Make a task of all its attributes, in a fifth of the time of its 25-argument initialiser."""
    task = object.__new__(Task)
    object.__setattr__(task, "__dict__", values)
    return task


_DEFAULTS: dict[str, Any] = {field.name: getattr(Task(pool_id=""), field.name) for field in attrs.fields(Task)}


def encode_result(result: Any) -> bytes:
    """Return the JSON of a result.

    Raises:
        InvalidValue: It is not plain data.
        ValueTooLarge: It does not fit beside the task's history.
    """
    data = encode_plain(result, "result")
    if len(data) > RESULT_BYTES:
        raise ValueTooLarge("result", len(data), RESULT_BYTES)
    return data


@lru_cache(maxsize=1_024)  # the tasks of one submit, or of one take, share theirs
def moment(micros: int) -> datetime:
    """Return store time as an aware datetime."""
    return _EPOCH + micros * _MICROSECOND


def _micros(path: str, value: object) -> int:
    expected = "an aware datetime, with a time zone"
    if not isinstance(value, datetime):
        raise InvalidValue(path, value, expected)
    try:
        micros = (value - _EPOCH) // _MICROSECOND
    except Exception as error:  # a zone may be anybody's class
        raise InvalidValue(path, value, expected) from error
    if micros > MOMENT_GREATEST:
        raise InvalidValue(path, value, "a moment before the year 9999, a date in every time zone")
    return max(micros, 0)


def _check_numbers(task: Task) -> None:
    if (
        type(task.priority) is int
        and -PRIORITY_GREATEST <= task.priority <= PRIORITY_GREATEST
        and type(task.max_attempts) is int
        and 1 <= task.max_attempts <= ATTEMPTS_GREATEST
        and type(task.retry_delay_sec) is float
        and task.retry_delay_sec == 1.0
        and task.timeout_sec is None
    ):
        return  # the usual case, told apart from all others without a call
    _integer("priority", task.priority, -PRIORITY_GREATEST, PRIORITY_GREATEST)
    _integer("max_attempts", task.max_attempts, 1, ATTEMPTS_GREATEST)
    _seconds("retry_delay_sec", task.retry_delay_sec, 0.0)
    if task.timeout_sec is not None:
        _seconds("timeout_sec", task.timeout_sec, 0.001)


def _integer(path: str, value: object, least: int, greatest: int) -> None:
    if type(value) is not int or not least <= value <= greatest:
        raise InvalidValue(path, value, f"an integer from {least} to {greatest:,}")


def _seconds(path: str, value: object, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= TIMEOUT_GREATEST_SEC:
        raise InvalidValue(path, value, f"seconds, from {least:g} to {TIMEOUT_GREATEST_SEC:,.0f} (30 days)")


def _names(path: str, values: object) -> tuple[str, ...]:
    if not values:
        return ()
    if isinstance(values, str) or not isinstance(values, list | tuple | set | frozenset):
        raise InvalidValue(path, values, "a sequence of names")
    if len(values) > CAPABILITIES:
        raise InvalidValue(path, f"{len(values)} names", f"at most {CAPABILITIES}")
    return tuple(sorted({check_name(path, value) for value in values}))


def _mapping(inputs: object) -> dict[str, Any]:
    if type(inputs) is dict:
        return inputs
    if isinstance(inputs, Mapping):
        return dict(inputs)
    raise InvalidValue("inputs", inputs, "a mapping of names to plain data")


def _strings(path: str, values: object) -> dict[str, str]:
    if not isinstance(values, Mapping) or any(type(part) is not str for pair in values.items() for part in pair):
        raise InvalidValue(path, values, "a mapping of text to text")
    return {stored_text(name): stored_text(value) for name, value in values.items()}


def _key(path: str, value: str | None) -> str | None:
    if value is None:
        return None
    if type(value) is not str or not value or "\0" in value:
        raise InvalidName(path, value, f"text of 1 to {NAME_BYTES} bytes without NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = NAME_BYTES + 1
    if size > NAME_BYTES:
        raise InvalidName(path, value, f"text of 1 to {NAME_BYTES} bytes without NUL")
    return value
