"""The page of the agents has each attribute, handler, action and limit, with its default."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import attrs

from converge.machines.breaker import BACKOFF_GREATEST_SEC, BACKOFF_LEAST_SEC, RESTS_FROM, Breaker
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.decisions import Limits
from converge.runtime.agents.executor import CORE

PAGE = (Path(__file__).parents[2] / "docs/reference/agents.md").read_text()


def test_each_class_attribute_is_on_the_page_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", PAGE.partition("| handler |")[0], re.MULTILINE))
    attributes = {
        name: getattr(Agent, name)
        for name, kind in inspect.get_annotations(Agent).items()
        if kind.startswith("ClassVar")
    }
    written = {
        name: f"{type(value).__name__}()" if isinstance(value, Limits | Breaker) else repr(value)
        for name, value in attributes.items()
    }
    assert rows == written


def test_each_handler_is_on_the_page() -> None:
    rows = set(re.findall(r"^\| `(\w+)\([\w, ]*\)` \| ", PAGE.partition("| call |")[0], re.MULTILINE))
    assert rows == {name for name in vars(Agent) if name.startswith("on_")} | {"decide"}


def test_each_action_is_on_the_page_with_its_decision_and_its_name() -> None:
    rows = re.findall(r"^\|.*\| `(\w+)` \| `([a-z-]+)` \|$", PAGE, re.MULTILINE)
    assert rows == [(kind.type.__name__, kind.name) for kind in CORE]


def test_the_limits_and_the_breaker_are_on_the_page_with_their_defaults() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| `?([\d,]+|None)`? \| [a-z]", PAGE.partition("| of `Limits` |")[2], re.MULTILINE)
    )
    assert rows == {
        field.name: "None" if field.default is None else f"{field.default:,}" for field in attrs.fields(Limits)
    }
    breaker = Breaker()
    assert f"after `failures` in a row ({breaker.failures})" in PAGE
    assert (
        f"`rest_sec` ({breaker.rest_sec:g} s" in PAGE
        and f"`rest_greatest_sec` ({breaker.rest_greatest_sec:g} s)" in PAGE
    )
    assert (
        RESTS_FROM == 3
        and f"{BACKOFF_LEAST_SEC:g} s, twice as long each time, at most {BACKOFF_GREATEST_SEC:g} s" in PAGE
    )
