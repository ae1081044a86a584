"""`converge agents ping` and `converge doctor --probe`: real messages and a real task, measured, or why they fail."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

STORE = ("--store", "file:state.db")


def begin(start: Start, *arguments: str) -> subprocess.Popen[str]:
    """Return a process that runs agents on the store."""
    process = start("run", *arguments, *STORE)
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr), "it ended before it ran"
    return process


def agent_in(converge: Converge, name: str) -> str:
    """Return the id of the one agent of that name."""
    (found,) = [
        one["id"]
        for one in map(json.loads, converge("agents", "list", "--json", *STORE).out.splitlines())
        if one["name"] == name
    ]
    return str(found)


@pytest.mark.timeout(240)
def test_an_agents_node_is_pinged_and_probed_or_the_reason_is_told(converge: Converge, start: Start) -> None:
    reached = begin(start, "counting:WordCounter", "--pool", "docs", "--transport", "tcp://127.0.0.1:0")
    begin(start, "counting:Picky", "--pool", "docs")  # without a transport
    counter = agent_in(converge, "WordCounter")

    told = converge("agents", "ping", counter[:15], "--count", "3", *STORE)
    assert told.code == 0, told.err
    assert f"agent {counter} (WordCounter) at tcp://127.0.0.1:" in told.out and "3 messages, round trip" in told.out
    record = json.loads(converge("agents", "ping", counter, "--count", "2", "--json", *STORE).out)
    assert record["id"] == counter and 0 < record["round_trip_sec"] < record["connect_sec"] + 10
    assert len(record["round_trips_sec"]) == 2

    nowhere = converge("agents", "ping", agent_in(converge, "Picky"), *STORE)
    assert nowhere.code == 4 and "a process that listens nowhere" in nowhere.err
    assert converge("agents", "ping", counter, "--count", "0", *STORE).code == 2

    findings = list(map(json.loads, converge("doctor", "--probe", "--json", *STORE).out.splitlines()))
    probed = {one["code"]: one for one in findings if one["code"].startswith("probe")}
    assert {code: one["level"] for code, one in probed.items() if one["level"] == "error"} == {}
    assert "and its receipt take" in probed["probe-message"]["finding"]
    assert any("1 of 2 processes listen nowhere, and are not tried" in one["finding"] for one in findings)
    assert "from submit to result" in probed["probe-task"]["finding"]
    assert [one["id"] for one in map(json.loads, converge("pools", "list", "--json", *STORE).out.splitlines())] == [
        "docs"
    ]

    reached.kill()
    reached.wait()
    gone = converge("agents", "ping", counter, *STORE)  # its lease lives for a while
    assert gone.code == 4 and "cannot connect" in gone.err, gone.err
    probed_again = converge("doctor", "--probe", *STORE)
    assert probed_again.code == 1 and "no message reaches process" in probed_again.out


def test_a_probe_removes_what_a_killed_one_has_left(converge: Converge, folder: Path) -> None:
    left, own = "converge-probe-1000000000-0badc0de", "converge-probe-of-my-own"
    for pool in (left, own):
        assert converge("pools", "create", pool, *STORE).code == 0
    assert converge("submit", "--pool", left, "--input", "n=1", *STORE).code == 0
    told = converge("doctor", "--probe", *STORE)
    assert "no process that lives is reached over a network" in told.out
    assert [one["id"] for one in map(json.loads, converge("pools", "list", "--json", *STORE).out.splitlines())] == [own]
    assert converge("tasks", "list", "--json", *STORE).out == ""
