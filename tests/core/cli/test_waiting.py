"""What the commands do for tasks that wait, on a store in a file."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import anyio
import pytest

from converge import Agent, Node, Task, TaskManager, TaskState, open_store
from converge.cli import main
from converge.contracts.store import Batch
from converge.ids import id_bytes
from converge.model.keys import SIGNAL, STEP, TASK
from converge.operations.waiting import UNREADABLE
from converge.services.store.pages import read_all
from converge.testing.fixtures import wait_until


class Waits(Agent):
    async def on_task(self, task: Task) -> object:
        await task.emit("begun")
        child = await task.spawn(Task(pool_id="q", type="child"))
        return [await task.wait_for("approval", timeout=3_600), child.name]


pytestmark = pytest.mark.usefixtures("as_a_process")


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[str, str]:
    """The store's URL, and the id of a task that waits in it."""
    url = f"file:{tmp_path / 'state.db'}"

    async def begin() -> str:
        async with open_store(url) as store, Node(store=store) as node:
            await node.spawn(Waits, pool=["p", "q"])
            id_ = await node.tasks.submit(Task(pool_id="p"))

            async def waits() -> bool:
                return (await node.tasks.get(id_)).state == TaskState.WAITING

            await wait_until(waits)
            return id_

    return url, anyio.run(begin)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> list[dict[str, object]]:
    """What a command writes, as JSON lines."""
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_person_finds_shows_and_ends_what_waits(waiting: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    url, id_ = waiting
    (found,) = [one for one in said(capsys, "tasks", "list", "--waiting", "--store", url) if one["id"] == id_]
    assert (found["waiting_for"], found["parks"]) == ("approval", 1)
    (child,) = said(capsys, "tasks", "list", "--parent", id_, "--store", url)
    assert child["parent_id"] == id_
    assert said(capsys, "tasks", "signal", id_, "other", "--payload", "[1]", "--store", url)[0]["is_sent"]
    (shown,) = said(capsys, "tasks", "show", id_, "--store", url)
    durable = shown["durable"]
    assert isinstance(durable, dict) and (durable["unread"], durable["names"], durable["chunks"]) == (
        ["other"],
        ["approval"],
        1,
    )
    assert [(step["n"], step["name"], step["kind"]) for step in durable["steps"]] == [
        (1, "child", "spawn"),
        (2, "approval", "wait"),
    ]
    assert said(capsys, "tasks", "complete", id_, "--result", '{"ok": true}', "--store", url)[0]["state"] == "COMPLETED"
    pieces = said(capsys, "tasks", "watch", id_, "--store", url)
    assert [one["data"] for one in pieces] == ["begun", "COMPLETED"]
    assert not said(capsys, "tasks", "signal", id_, "approval", "--store", url, code=1)[0]["is_sent"]
    assert said(capsys, "tasks", "list", "--parent", id_, "--store", url)[0]["id"] == child["id"]


def test_a_person_reads_what_a_task_waits_for_and_how_it_goes_on(
    waiting: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    url, id_ = waiting
    said(capsys, "tasks", "signal", id_, "other", "--store", url)
    assert main(["tasks", "show", id_, "--store", url]) == 0
    shown = capsys.readouterr()
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in shown.out.splitlines()}
    assert re.fullmatch(
        r"state waiting for approval since \d+s, until \w{3} \d+, \d\d:\d\d( \d{4})? UTC, parked once", lines["state"]
    ), lines
    assert lines["unread signals"] == "unread signals 1 of other"
    assert re.fullmatch(r"children 1 (pending|assigned|waiting)", lines["children"])  # it may have got to its own wait
    assert re.fullmatch(r"2 approval wait, until \w{3} \d+, \d\d:\d\d 0 4 \d+", lines["2"]), lines
    assert f"to go on: converge tasks signal --store {url} {id_} approval --payload JSON" in shown.err
    assert main(["pools", "show", "p", "--store", url]) == 0
    counts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (counts["parked"], counts["later"]) == ("1", "0")


def test_a_person_fails_what_waits_and_is_told_of_what_does_not(
    waiting: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    url, id_ = waiting
    assert said(capsys, "tasks", "fail", id_, "not now", "--store", url)[0]["state"] == "FAILED"
    assert main(["tasks", "complete", id_, "--store", url]) != 0
    assert "only one that is WAITING" in capsys.readouterr().err
    assert main(["tasks", "signal", id_, "a", "--payload", "yes", "--store", url]) != 0
    assert "is not JSON" in capsys.readouterr().err


def test_a_payload_or_a_cursor_that_cannot_be_is_one_line(
    waiting: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    url, id_ = waiting
    elsewhere = ["watch", id_, "--after", "1.0.00000000"]
    for words in (["signal", id_, "go", "--payload", "[" * 100_000], ["watch", id_, "--after", "1.²"], elsewhere):
        capsys.readouterr()
        assert main(["tasks", *words, "--store", url]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("converge: ") and len(line) < 200


def test_filters_are_those_of_the_children_too(waiting: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    url, id_ = waiting
    here = ("--store", url)
    (child,) = said(capsys, "tasks", "list", "--parent", id_, *here)
    state = str(child["state"]).lower()
    other = "failed" if state != "failed" else "completed"
    for words, fits in (
        (("--state", state), True),
        (("--state", other), False),
        (("--pool", "p"), False),
        (("--pool", "q"), True),
        (("--type", "child"), True),
        (("--type", "x"), False),
        (("--skip", "1"), False),
        (("--since", "1h"), True),
        (("--dead-letters",), False),
    ):
        found = said(capsys, "tasks", "list", "--parent", id_, *words, *here)
        assert [one["id"] for one in found] == ([child["id"]] if fits else []), words
    assert main(["tasks", "list", "--parent", id_, "--state", other, *here]) == 0
    assert "no tasks that fit" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--waiting", "--state", "completed"), ("--waiting", "--dead-letters")])
def test_filters_that_no_task_can_pass_are_refused(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "list", *words, "--store", f"file:{tmp_path / 'state.db'}"]) == 2
    assert "do not combine it with" in capsys.readouterr().err


def test_a_verb_says_the_whole_id_of_its_task(waiting: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    url, id_ = waiting
    # Ids of one moment begin alike: all but the last characters.
    begins = id_[:-2]
    assert said(capsys, "tasks", "signal", begins, "other", "--store", url)[0]["id"] == id_
    assert said(capsys, "tasks", "complete", begins, "--store", url)[0]["id"] == id_


class Steers(Agent):
    async def on_task(self, task: Task) -> None:
        await task.progress(1, text="\x1b[2J")
        await task.emit("\x1b]0;mine\x07two\nlines\tend")
        await task.emit({"x": "\x9b2J"})


def test_a_record_that_cannot_be_read_hides_no_other(
    waiting: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    url, id_ = waiting

    async def spoil() -> None:
        async with open_store(url) as store:
            await TaskManager(store).signal(id_, "early")
            steps, signals = [await read_all(store, family(id_bytes("task", id_))) for family in (STEP, SIGNAL)]
            (child,) = await TaskManager(store).children(id_)
            spawn = next(step.key for step in steps if step.key[3].startswith("+"))
            keys = [signals[0].key, spawn, TASK(id_bytes("task", child.id))]
            await store.commit([Batch((), [(key, b"{") for key in keys])])

    anyio.run(spoil)
    durable = said(capsys, "tasks", "show", id_, "--store", url)[0]["durable"]
    assert isinstance(durable, dict) and durable["unread"] == [UNREADABLE]
    wait, spawn = durable["steps"]
    assert (wait["name"], wait["error"]) == ("approval", "") and spawn["error"].startswith("TornRecord: the record")
    assert durable["children"] == {} and not said(capsys, "tasks", "list", "--parent", id_, "--store", url)
    assert main(["tasks", "show", id_, "--store", url]) == 0
    assert "1 of (one that cannot be read)" in capsys.readouterr().out


def test_a_pipe_whose_reader_has_gone_is_told_of_no_place_to_go_on_from(
    waiting: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of what went into the pipe was not read: behind the last of it there would be a gap."""
    url, id_ = waiting
    assert main(["tasks", "complete", id_, "--store", url]) == 0
    capsys.readouterr()
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch, open(write, "wb", 0) as pipe:
        patch.setattr("sys.stdout", io.TextIOWrapper(pipe, write_through=True))  # as with PYTHONUNBUFFERED
        assert main(["tasks", "watch", id_, "--store", url]) == 1
    assert not capsys.readouterr().err


def test_what_a_task_puts_out_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file:{tmp_path / 'state.db'}"

    async def end() -> str:
        async with open_store(url) as store, Node(store=store) as node:
            await node.spawn(Steers, pool="p")
            id_ = await node.tasks.submit(Task(pool_id="p"))
            await node.tasks.result(id_, timeout=30)
            return id_

    id_ = anyio.run(end)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["tasks", "watch", id_, "--store", url]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["\\x1b]0;mine\\x07two", "lines\tend", '{"x": "\\x9b2J"}']
    assert "\x1b" not in shown.err and "state: COMPLETED" in shown.err
