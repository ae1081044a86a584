"""What the page on stopping tells of other programs' settings fits what a stop takes, and names flags and variables
that there are.
"""

from __future__ import annotations

import configparser
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from converge.cli import run
from converge.operations.run import BEYOND_SEC
from converge.runtime import stopping
from converge.runtime.agents.ailments import Code
from converge.runtime.config.config import Config, load

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "how-to/stop-cleanly.md").read_text()


@pytest.fixture
def unit() -> configparser.ConfigParser:
    """The unit file of the page."""
    (text,) = re.findall(r"converge-worker.service <<'END'\n(.*?)END\n", PAGE, re.DOTALL)
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read_string(text)
    return parser


@pytest.fixture
def pod() -> Any:
    """The pod of the page's manifest."""
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    return json.loads(text)["spec"]["template"]["spec"]


def test_what_is_beyond_the_grace_time_is_what_the_steps_add_up_to() -> None:
    assert stopping.RELEASE_SEC * 2 + stopping.ON_STOP_SEC + stopping.LAST_SEC < BEYOND_SEC
    assert f"{stopping.RELEASE_SEC:g} s" in PAGE and f"at least {stopping.ON_STOP_SEC:g} s" in PAGE
    assert f"the grace time and at most {BEYOND_SEC:g} s" in PAGE
    assert f"`grace_sec`, {Config().grace_sec:g} s unless set" in PAGE
    assert f"`lease_sec`, {Config().lease_sec:g} s" in PAGE


def test_systemd_waits_as_long_as_a_stop_may_take(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) >= Config().grace_sec + BEYOND_SEC
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert service["RestartPreventExitStatus"].split() == ["2", "3"]


def test_kubernetes_waits_as_long_as_a_stop_may_take(pod: Any) -> None:
    (container,) = pod["containers"]
    grace_sec = float(container["args"][container["args"].index("--grace") + 1])
    assert pod["terminationGracePeriodSeconds"] >= grace_sec + BEYOND_SEC


def test_the_commands_of_the_page_have_flags_that_there_are(unit: configparser.ConfigParser, pod: Any) -> None:
    parameters = {f"--{name.replace('_', '-')}" for name in inspect.signature(run.run).parameters} | {"-c"}
    (container,) = pod["containers"]
    flags = {word for word in (*container["args"], *unit["Service"]["ExecStart"].split()) if word.startswith("-")}
    assert flags <= parameters


def test_the_variables_of_the_page_are_keys(pod: Any) -> None:
    (container,) = pod["containers"]
    config = load(environ={one["name"]: one.get("value", "memory:") for one in container["env"]})
    assert config.log_format == "json"


def test_every_reason_of_health_has_a_row_and_every_row_a_reason() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "reference/health.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(str(code) for code in Code)
