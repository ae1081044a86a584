"""Finding the agent's class."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from converge.errors import ConfigError
from converge.operations.agent_class import agent_class, find_agent
from converge.runtime.config.fields import AgentGroup

SOURCE = (
    "from converge import Agent\n\nclass Counter(Agent):\n    class Inner(Agent): ...\n\nclass Wrong(Agent):\n    "
    "capabilities = 'x'\n"
)

ODD = """
from converge import Agent

class Proxy:
    @property
    def __class__(self):
        raise RuntimeError("outside of a request")

request = Proxy()

class Closed(Agent):
    def __init_subclass__(cls):
        raise RuntimeError("nothing comes after it")

def __getattr__(name):
    raise RuntimeError("not today" if name == "Today" else "") if name != "Nobody" else AttributeError(name)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with some modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lookup_agents.py").write_text(SOURCE)
    (tmp_path / "lookup_broken.py").write_text("1 / 0")
    (tmp_path / "lookup_needs.py").write_text("import lookup_driver_that_is_not_there")
    (tmp_path / "lookup_plain.py").write_text("class Thing: ...")
    (tmp_path / "lookup_odd.py").write_text(ODD)
    (tmp_path / "lookup_mute.py").write_text("class Mute(BaseException):\n    __str__ = None\n\nraise Mute")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("lookup_"):
            del sys.modules[name]


def test_a_class_is_found_in_the_working_directory_before_all_others(folder: Path) -> None:
    (folder / "colorsys.py").write_text(SOURCE)
    sys.modules.pop("colorsys", None)
    assert find_agent("colorsys:Counter", folder).__module__ == "colorsys"
    del sys.modules["colorsys"]
    assert find_agent("lookup_agents:Counter.Inner", folder).__qualname__ == "Counter.Inner"
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("lookup_agents", "is not written as module:Class, such as wordcount:WordCounter"),
        ("lookup_agent:Counter", 'there is no module "lookup_agent"; did you mean "lookup_agents"?'),
        ("lookup_agents.py:Counter", 'there is no module "lookup_agents.py"; did you mean "lookup_agents"?'),
        ("zzz.yyy:Counter", 'there is no module "zzz"; it was looked for in '),
        ("lookup_agents:Conter", 'lookup_agents has no "Conter"; did you mean "Counter"?'),
        ("lookup_agents:Zzz", 'lookup_agents has no "Zzz"; its agents are Counter, Wrong'),
        ("lookup_plain:Thing", "Thing is not a subclass of converge.Agent; it has no agents"),
        ("lookup_broken:A", "importing lookup_broken failed: ZeroDivisionError: division by zero"),
        (
            "lookup_needs:A",
            "importing lookup_needs failed: ModuleNotFoundError: No module named 'lookup_driver_that_is_not_there'",
        ),
        ("lookup_mute:A", "importing lookup_mute failed: Mute: (its text cannot be shown)"),
        ("lookup_odd:Today", '"Today" cannot be looked up: RuntimeError: not today'),
        ("lookup_odd:request", "request is not a subclass of converge.Agent; its agents are Closed"),
        ("lookup_odd:Nobody", 'lookup_odd has no "Nobody"; its agents are Closed'),
        ("lookup_agents:Wrong", "Wrong.capabilities: 'x' is not allowed"),
    ],
)
def test_what_is_no_agent_says_why(folder: Path, target: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        find_agent(target, folder)
    assert str(raised.value).startswith(f'agent "{target}"')
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("lookup_package.iner:Counter", 'did you mean "lookup_package.inner"?'),
        ("lookup_pakage.inner:Counter", 'did you mean "lookup_package.inner"?'),
        ("lookup_pakage.iner:Counter", 'did you mean "lookup_package.inner"?'),
        ("lookup_package.zzz:Counter", "it was looked for in"),
        ("lookup_plain.inner:Counter", "it was looked for in"),
    ],
)
def test_a_mistyped_part_of_a_packages_module_names_the_nearest(folder: Path, target: str, hint: str) -> None:
    (folder / "lookup_package").mkdir()
    (folder / "lookup_package/__init__.py").touch()
    (folder / "lookup_package/inner.py").write_text(SOURCE)
    with pytest.raises(ConfigError, match=re.escape(hint)) as raised:
        find_agent(target, folder)
    assert "\n" not in str(raised.value)


def test_what_an_entry_says_of_its_own_stands_in_place_of_what_the_class_says(folder: Path) -> None:
    cls = agent_class(AgentGroup(type="lookup_agents:Counter", capabilities=("count",), concurrency=7), folder)
    assert (cls.capabilities, cls.topics, cls.concurrency) == (("count",), (), 7)
    assert (cls.__name__, cls.__module__) == ("Counter", "lookup_agents")
    assert find_agent("lookup_agents:Counter", folder).concurrency == 1, "the class itself is as it was"
    assert agent_class(AgentGroup(type="lookup_agents:Counter"), folder) is find_agent("lookup_agents:Counter", folder)


def test_a_class_that_lets_nobody_inherit_cannot_be_changed_by_an_entry(folder: Path) -> None:
    with pytest.raises(ConfigError, match="it cannot have concurrency here: RuntimeError: nothing comes after it"):
        agent_class(AgentGroup(type="lookup_odd:Closed", concurrency=7), folder)
