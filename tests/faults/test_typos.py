"""A slip of the pen starts nothing: one line that names what was meant, exit code 3, in less than a second."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import preloaded
import pytest

from converge.testing.fleet import COMMAND

AGENTS = Path(__file__).parent
RUN = ("run", "worker_agents:Worker", "--store", "file:state.db", "--pool", "docs")

# what was mistyped: the command line, the configuration file, what the line must name
TYPOS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "config key": (RUN, "lease_secs = 3.0\n", "lease_sec"),
    "config section": (RUN, "[retentoin]\ncompleted_sec = 3.0\n", "retention"),
    "retention key": (RUN, "[retention]\ncomplete_sec = 3.0\n", "completed_sec"),
    "config value": (RUN, 'log_format = "jsn"\n', "json"),
    "plugin": ((*RUN, "--plugin", "reddis"), "", "redis"),
    "backend": ((*RUN[:2], "--store", "memorry", "--pool", "docs"), "", "memory:"),
    "backend options": (RUN, "[options.fil]\nbusy_sec = 2.0\n", "file"),
    "backend option": (RUN, "[options.file]\nbusysec = 2.0\n", "busy_sec"),
    "URL scheme": ((*RUN[:2], "--store", "flie:state.db", "--pool", "docs"), "", "file"),
    "scheme of a plugin": ((*RUN[:2], "--store", "rediss2://127.0.0.1/0", "--pool", "docs"), "", "rediss"),
    "transport": ((*RUN, "--transport", "loacl"), "", "local"),
    "discovery": ((*RUN, "--discovery", "stroe"), "", "store"),
    "pool": ((*RUN[:4], "--pool", "dosc"), "", "docs"),
    "agent module": (("run", "worker_agent:Worker", *RUN[2:]), "", "worker_agents"),
    "agent class": (("run", "worker_agents:Worke", *RUN[2:]), "", "Worker"),
}

TIMED = TYPOS if os.environ.get("FULL_TESTS") == "1" else ("config key", "agent class")
"""Those that take most of their way before they are told; the others take some of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the agents' module and a store that has the pool `docs`."""
    made = tmp_path_factory.mktemp("typos")
    (made / "worker_agents.py").write_bytes((AGENTS / "worker_agents.py").read_bytes())
    preloaded.run(
        [COMMAND, "pools", "create", "docs", "--store", "file:state.db"],
        cwd=made,
        check=True,
        capture_output=True,
        timeout=100,
    )
    return made


@pytest.mark.parametrize("what", TYPOS)
def test_a_typo_is_told_in_one_line_within_a_second(folder: Path, what: str) -> None:
    """The whole process is measured, the faster of two; on a machine that is busy with other things, beside one that
    only tells its version. Without FULL_TESTS=1 few are measured: what the others import is imported before.
    """
    command, config, meant = TYPOS[what]
    if config:
        (folder / "converge.toml").write_text(config)
        command = (*command, "-c", "converge.toml")
    took, takes = [], []
    for _ in range(2):
        began = time.monotonic()
        start = subprocess.run if what in TIMED else preloaded.run
        ran = start([COMMAND, *command], cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        took.append(time.monotonic() - began)
        assert ran.returncode == 3, ran.stderr
        assert ran.stdout == ""
        lines = ran.stderr.splitlines()
        assert len(lines) == 1, ran.stderr
        assert (f'"{meant}"' in lines[0] and "did you mean" in lines[0]) or (
            "expected one of" in lines[0] and meant in lines[0]
        ), lines[0]
        if took[-1] < 1.0 or what not in TIMED:
            break
        began = time.monotonic()
        subprocess.run([COMMAND, "--version"], check=True, capture_output=True, timeout=100)
        takes.append(time.monotonic() - began)
    print(f"{what}: {min(took):.2f} s: {lines[0]}")  # noqa: T201 - shown when the test fails, or asked for
    assert what not in TIMED or min(took) < max([1.0, *(4 * one for one in takes)])
