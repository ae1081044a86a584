"""Classes of agents that cannot be meant are refused where they are named, whatever their attributes do when asked."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

import pytest

from converge import Agent, Task
from converge.errors import InputError, InvalidValue
from converge.machines.breaker import REST_GREATEST_SEC, Breaker, Circuit
from converge.runtime.agents.agent import check_agent_class
from converge.runtime.agents.decisions import Limits, Tool


class Raising:
    """Raises when it is looked up, on the class too."""

    def __get__(self, agent: object, cls: type) -> Any:
        raise LookupError("nobody knows")


class Nameless(type):
    """Hides the name of its classes."""

    def __getattribute__(cls, name: str) -> Any:
        if name == "__name__":
            raise LookupError("nobody knows")
        return super().__getattribute__(name)


class Working(Agent):
    """Works."""

    async def on_task(self, task: Task) -> Any:
        """See the class."""


def made(name: str, value: Any) -> type[Agent]:
    """Return a class with this attribute."""
    return type("Odd", (Working,), {name: value})


@pytest.mark.parametrize("name", ["capabilities", "topics", "task_types"])
@pytest.mark.parametrize("value", [5, None, (one for one in ["a"])])
def test_names_are_in_a_collection(name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=rf"Odd.{name}: .* is not allowed; expected a sequence of names"):
        check_agent_class(made(name, value))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tools", 5, "a mapping, or a sequence of names"),
        ("tools", None, "a mapping, or a sequence of names"),
        ("allowed_actions", 5, "a sequence of names"),
        ("allowed_actions", ([],), "the name of an action, or a class of decisions"),
        ("on_task", None, "a function: a class without this handler does not name it"),
        ("on_start", "no function", "a function: a class without this handler does not name it"),
    ],
)
def test_other_attributes_are_what_they_must_be(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidValue, match=rf"Odd.{name}.*; expected {expected}"):
        check_agent_class(made(name, value))


@pytest.mark.parametrize("name", ["capabilities", "concurrency", "tools", "inputs", "breaker", "on_task", "on_stop"])
def test_an_attribute_that_raises_is_a_mistake_of_its_class(name: str) -> None:
    with pytest.raises(InputError, match="Odd: a class that raises LookupError: nobody knows is not allowed"):
        check_agent_class(made(name, Raising()))


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="LookupError: nobody knows"):
        check_agent_class(cast(type[Agent], Nameless("Odd", (Working,), {})))


def test_a_handler_may_be_whatever_can_be_called() -> None:
    values: list[Any] = [staticmethod(repr), classmethod(repr), property(repr), repr]
    for value in values:  # a property gives one when it is asked
        check_agent_class(made("on_task", value))


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Breaker, "failures"),
        (Breaker, "rest_sec"),
        (Breaker, "rest_greatest_sec"),
        (Limits, "in_flight"),
        (Limits, "per_sec"),
    ],
)
@pytest.mark.parametrize("value", [Decimal(5), Fraction(5), "5"])
def test_limits_are_numbers_that_ours_go_together_with(cls: type[Any], name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=rf"{cls.__name__}.{name}: .* expected an int or a float"):
        cls(**{name: value})


def test_counts_are_whole_and_tools_have_plain_timeouts() -> None:
    with pytest.raises(InvalidValue, match=r"Limits.decisions: 2.5 is not allowed; expected an int"):
        Limits(decisions=2.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r"Tool.timeout_sec: .* expected an int or a float"):
        Tool(len, timeout_sec=Decimal(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("sec", [float("inf"), 10**400])
def test_no_rest_is_longer_than_a_store_can_tell(sec: Any) -> None:
    circuit = Circuit(Breaker(on=(Exception,), failures=1, rest_sec=sec, rest_greatest_sec=sec))
    assert REST_GREATEST_SEC / 2 < circuit.failed("ill", 0.0, 0.5) <= 1.25 * REST_GREATEST_SEC
