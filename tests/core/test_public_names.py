"""The names that users import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import converge
from converge import agents
from converge.runtime.agents.executor import CORE


def test_every_public_name_can_be_imported() -> None:
    assert {name: getattr(converge, name).__name__ for name in converge.__all__} == {
        name: name for name in converge.__all__
    }
    assert set(converge.__all__) <= set(dir(converge))


def test_every_decision_of_core_is_a_name_of_agents() -> None:
    assert {kind.type.__name__ for kind in CORE} <= set(agents.__all__)
    assert [name for name in agents.__all__ if not hasattr(agents, name)] == []


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'converge' has no attribute 'Agents'"):
        _ = converge.Agents  # type: ignore[attr-defined]  # that is the point


@pytest.mark.parametrize("code", ["import converge", "from converge import *"])
def test_importing_the_package_loads_no_driver_no_command_line_and_no_test_library(code: str) -> None:
    code += "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "converge" in loaded
    assert not {
        "cyclopts",
        "rich",
        "pytest",
        "hypothesis",
        "redis",
        "sqlalchemy",
        "asyncpg",
        "websockets",
        "trio",
    }.intersection(loaded)
    assert not [name for name in loaded if name.startswith("converge_")]
