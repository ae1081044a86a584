"""`converge agents`: the agents of processes that live, found by what they say of themselves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import open_store
from converge.codec import decode
from converge.contracts.discovery import Sighting
from converge.contracts.store import Batch, Range
from converge.model.keys import AGENT
from converge.services.discovery.reader import marker_key, marker_value, write_sighting
from converge.testing.fixtures import wait_until_sync

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

STORE = ("--store", "file:state.db")


@pytest.fixture
def running(converge: Converge, start: Start) -> Converge:
    """The command, while two `WordCounter` in pool `docs` and one `Picky` in pool `mail` run elsewhere."""
    for pool in ("docs", "mail"):
        assert converge("pools", "create", pool, *STORE).code == 0
    for arguments in (
        ["counting:WordCounter", "--agents", "2", "--pool", "docs"],
        ["counting:Picky", "--pool", "mail"],
    ):
        process = start("run", *arguments, *STORE)
        assert process.stderr is not None
        assert any("running" in line for line in process.stderr), "it ended before it ran"
    return converge


def records(answer: Any) -> list[dict[str, Any]]:
    """The JSON lines of an answer that went well; each says its version."""
    assert answer.code == 0, answer.err
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert all(one.pop("v") == 1 for one in found)
    return found


def test_agents_are_listed_by_capability_and_pool(running: Converge) -> None:
    everyone = records(running("agents", "list", "--json", *STORE))
    assert sorted(one["name"] for one in everyone) == ["Picky", "WordCounter", "WordCounter"]
    counters = records(running("agents", "list", "--capability", "count-words", "--json", *STORE))
    assert [one["name"] for one in counters] == ["WordCounter", "WordCounter"]
    assert all(
        (one["capabilities"], one["pools"], one["topics"], one["age_sec"] >= 0) == (["count-words"], ["docs"], [], True)
        for one in counters
    )
    assert [one["name"] for one in records(running("agents", "list", "--pool", "mail", "--json", *STORE))] == ["Picky"]
    assert len(records(running("agents", "list", "--limit", "1", "--json", *STORE))) == 1
    assert records(running("agents", "list", "--topic", "none", "--json", *STORE)) == []


def test_an_agent_is_shown_by_the_beginning_of_its_id_as_the_list_shows_it(running: Converge) -> None:
    plain = running("agents", "list", "--pool", "mail", *STORE).out.splitlines()
    assert plain[0].split()[5:] == ["node", "endpoints", "age", "lease", "rest", "verifies"]
    beginning = plain[1].split()[0]
    (shown,) = records(running("agents", "show", beginning, "--json", *STORE))
    assert shown["id"].startswith(beginning) and shown["name"] == "Picky"
    assert shown in [
        one | {name: shown[name] for name in ("age_sec", "lease_sec")}
        for one in records(running("agents", "list", "--json", *STORE))
    ]
    rows = [line.split() for line in running("agents", "show", shown["id"], *STORE).out.splitlines()]
    assert shown["node"] in {one["id"] for one in records(running("ps", "--json", *STORE))}
    assert ["node", shown["node"]] in rows and ["pools", "mail"] in rows
    many = running("agents", "show", "cv1", *STORE)
    assert (many.code, many.out) == (2, "") and "the ids of 3 agents begin with it" in many.err


async def forge(forged: bytes) -> None:
    """List another descriptor under the id of one of them, as whoever may write to the store can."""
    async with open_store("file:state.db") as store:
        pages = await store.scan([Range(AGENT(), None, 10)])
        victim = next(one for one in pages[0] if one.key[2])  # the marker of a lease has no name
        _, lease, id_ = victim.key
        endpoints, _ = decode(victim.value, tuple[list[str], str], "sighting")
        (marker,) = await store.get([marker_key(lease)])
        assert marker is not None
        count = decode(marker.value, tuple[int, list[str]], "marker")[0] + 1
        puts = [(AGENT(lease, id_), write_sighting(Sighting(id_, tuple(endpoints), forged)))]
        assert await store.commit([Batch((), [*puts, (marker_key(lease), marker_value(count, [id_]))])])


def test_an_agent_is_listed_with_its_lease_and_one_that_does_not_verify_with_the_reason(running: Converge) -> None:
    assert all(one["verifies"] and one["lease_sec"] > 0 for one in records(running("agents", "list", "--json", *STORE)))
    anyio.run(forge, b"never signed")
    good = [one for one in records(running("agents", "list", "--json", *STORE)) if one["verifies"]]
    (bad,) = [one for one in records(running("agents", "list", "--json", *STORE)) if not one["verifies"]]
    assert len(good) == 2 and bad["id"].startswith("cv1") and bad["why"]
    lines = running("agents", "list", *STORE).out.splitlines()
    assert sum(line.endswith(" yes") and " s left " in line for line in lines) == 2
    assert sum(f"no: {bad['why']}" in line and line.startswith(bad["id"][:15]) for line in lines) == 1
    assert len(records(running("agents", "list", "--limit", "3", "--json", *STORE))) == 2


def test_agents_of_a_process_that_has_ended_are_not_listed(converge: Converge) -> None:
    assert converge("run", "counting:WordCounter", "--pool", "docs", "--drain", *STORE).code == 0
    assert records(converge("agents", "list", "--json", *STORE)) == []
    answer = converge("agents", "show", "cv1abc", *STORE)
    assert (answer.code, answer.out) == (2, "")
    assert 'agent "cv1abc" is not listed' in answer.err


def test_processes_are_listed_with_what_they_do(
    converge: Converge, start: Callable[..., subprocess.Popen[str]], folder: Path
) -> None:
    (folder / "slow.py").write_text(
        "import anyio\nfrom converge import Agent\n\nclass Slow(Agent):\n    async def on_task(self, task):\n"
        "        self.log.info('begun')\n        await anyio.sleep_forever()\n"
    )
    store = ("--store", "file:state.db")
    assert converge("ps", *store).code == 4
    (folder / "tasks.jsonl").write_text('{"inputs": {}}\n')
    own = ("--agents", "3", "--grace", "0", "--transport", "local:a")
    process = start("run", "slow:Slow", "--pool", "p", *own, *store, "--submit", "tasks.jsonl")
    assert process.stderr is not None
    said = ""
    while "begun" not in said:
        said += (line := process.stderr.readline())
        assert line, "it has ended"
    (row,) = [json.loads(line) for line in converge("ps", "--json", *store).out.splitlines()]
    assert (row["pid"], row["agents"], row["running"], row["resting"]) == (process.pid, 3, 1, 0)
    assert row["is_alive"] and row["lease_sec"] > 0
    assert row["endpoints"] == ["local:a"]

    def is_ready() -> bool:
        (told,) = [json.loads(line) for line in converge("ps", "--json", *store).out.splitlines()]
        assert told["ready"] is (told["unready"] == [])
        return bool(told["ready"])

    wait_until_sync(is_ready, timeout=60)  # it says so within a second or two
    assert " yes " in converge("ps", *store).out
    assert row["id"][:16] in converge("ps", *store).out
    assert f"process {row['id'][:16]}\n" in said  # as in its log
    (task,) = [json.loads(line) for line in converge("tasks", "list", "--json", *store).out.splitlines()]
    assert task["claimed_by"] == row["id"]
    assert f"by node {row['id'][:16]}" in converge("tasks", "explain", task["id"], *store).out
    process.terminate()
    process.communicate(timeout=60)
    assert converge("ps", *store).err == "no processes\n"
    shown = json.loads(converge("tasks", "show", task["id"], "--json", *store).out)
    assert shown["history"][0]["took_sec"] > 0
