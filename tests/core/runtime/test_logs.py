"""The lines of the log: what each says of the work that it belongs to, and what none may show."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import attrs
import pytest
from anyio.lowlevel import checkpoint

from converge.machines.task import TaskState
from converge.model.message import Message
from converge.model.task import Task
from converge.operations import logs
from converge.operations.logs import CONTINUED, JsonFormatter, TextFormatter
from converge.runtime.agents.agent import Agent
from converge.runtime.node import Node
from converge.testing.fixtures import wait_until

CANARY = "geheim-wort-7391"


class Written:
    """What stands on standard error."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture, self._text = capture, ""

    @property
    def text(self) -> str:
        """All of it."""
        self._text += self._capture.readouterr().err
        return self._text


@pytest.fixture
def stream(as_a_process: None, capsys: pytest.CaptureFixture[str]) -> Written:
    """What stands on standard error."""
    return Written(capsys)


def json_lines(stream: Written) -> list[dict[str, Any]]:
    """The lines of a log in JSON."""
    return [json.loads(line) for line in stream.text.splitlines()]


def record(message: str, **extra: Any) -> logging.LogRecord:
    """A record of the log."""
    made = logging.LogRecord("converge.node", logging.WARNING, "x.py", 1, message, (), None)
    made.__dict__.update(extra)
    return made


class Talking(Agent):
    """Logs in every way that a handler has."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        self.log.info("by its own log", extra={"detail": "more"})
        await checkpoint()
        logging.getLogger("some.library").info("by a library")
        return self.id


class Threaded(Agent):
    """Logs in a worker thread."""

    def on_task(self, task: Task) -> str:
        """See the class."""
        logging.getLogger("some.library").info("by a thread")
        return self.id


class Failing(Agent):
    """Fails with what it was given."""

    @attrs.frozen
    class Inputs:
        """Its inputs."""

        count: int

    inputs = Inputs

    async def on_task(self, task: Task) -> None:
        """See the class."""


async def test_every_line_that_a_handler_writes_names_agent_pool_task_and_token(stream: Written) -> None:
    logs.set_up("json", "info")
    tokens: dict[str, int] = {}
    async with Node(store="memory:") as node:
        for cls in (Talking, Threaded):
            await node.spawn(cls, count=3, pool=cls.__name__)
        ids = await node.tasks.submit_many(
            [Task(pool_id=cls.__name__) for cls in (Talking, Threaded) for _ in range(20)]
        )
        ends = [await node.tasks.result(id_, timeout=20) for id_ in ids]
        lines = [line for line in json_lines(stream) if str(line["message"]).startswith("by ")]
        assert {line["node"] for line in lines} == {node.identity.id}
    by_task = {(line["task"], line["message"]): line for line in lines}
    assert len(by_task) == len(lines) == 20 + 20 + 20
    for task in ends:
        for (task_id, message), line in by_task.items():
            if task_id == task.id:
                assert (line["agent"], line["pool"]) == (task.result, task.pool_id), message
                tokens[task_id] = line["token"]
                assert isinstance(line["token"], int)
    assert set(tokens) == set(ids)
    assert all(line["detail"] == "more" for (_, message), line in by_task.items() if message == "by its own log")


async def test_the_token_of_the_line_is_the_tasks_own(stream: Written) -> None:
    logs.set_up("json", "info")
    seen: list[int | None] = []

    class Telling(Agent):
        async def on_task(self, task: Task) -> None:
            seen.append(task.token)
            self.log.info("here")

    async with Node(store="memory:") as node:
        await node.spawn(Telling, pool="p")
        await node.tasks.result(await node.tasks.submit(Task(pool_id="p")), timeout=10)
    (line,) = (line for line in json_lines(stream) if line["message"] == "here")
    assert [line["token"]] == seen


async def test_the_lines_of_a_failed_task_name_it_and_hold_nothing_of_its_inputs(stream: Written) -> None:
    logs.set_up("text", "debug")
    async with Node(store="memory:") as node:
        await node.spawn(Failing, pool="p")
        task_id = await node.tasks.submit(Task(pool_id="p", inputs={"count": CANARY, CANARY: 1}, max_attempts=1))
        assert (await node.tasks.result(task_id, timeout=10)).state == TaskState.FAILED
    assert f"task={task_id} token=" in stream.text
    assert "pool=p" in stream.text
    assert CANARY not in stream.text


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
@pytest.mark.parametrize(
    "forged",
    [
        "x\n2026-01-01 00:00:00 INFO    converge.node: all is well",
        "x\r2026-01-01 forged",
        "\x1b[2J\x1b[31mred",
        "\x07\x08\x9b31m",
        "\u2028next\u2029next\x85next",
        "\u202egnp.exe",
        "\udcff",
    ],
)
def test_what_others_chose_stays_on_its_line_and_is_inert(formatter: logging.Formatter, forged: str) -> None:
    line = formatter.format(record(f"agent {forged} came", agent=forged, pool=forged))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["message"] == f"agent {forged} came"


def test_a_traceback_cannot_look_like_a_line_of_the_log() -> None:
    try:
        raise ValueError("bad\n2026-01-01 00:00:00 INFO    converge.node: all is well \x1b[31m")
    except ValueError:
        made = record("it failed", exc_info=sys.exc_info())
    first, *below = TextFormatter().format(made).split("\n")
    assert first.endswith("it failed")
    assert any("all is well" in line for line in below)
    assert all(line.startswith(CONTINUED) and line.isprintable() for line in below)
    (line,) = JsonFormatter().format(made).split("\n")
    assert "ValueError: bad" in json.loads(line)["exception"]


@pytest.mark.parametrize("formatter", [TextFormatter([CANARY, "x"]), JsonFormatter([CANARY, "x"])])
def test_no_line_shows_a_secret(formatter: logging.Formatter) -> None:
    try:
        raise ConnectionError(f"redis://user:{CANARY}@host:6379/0 refused; options were {{'password': '{CANARY}'}}")
    except ConnectionError:
        made = record(
            f"postgresql://u:other-secret@h/db?password=third-secret and {CANARY}",
            exc_info=sys.exc_info(),
            detail=CANARY,
        )
    line = formatter.format(made)
    assert not [secret for secret in (CANARY, "other-secret", "third-secret") if secret in line]
    assert "redis://user:***@host:6379/0 refused" in line
    assert "extra" in formatter.format(record("extra")), "a secret of one letter would mask every word"


def test_outside_of_any_work_a_line_has_no_fields(stream: Written) -> None:
    logs.set_up("text", "info")
    logging.getLogger("converge.node").info("hello %s", "world")
    (line,) = stream.text.splitlines()
    assert line.endswith("INFO    converge.node: hello world")


def test_the_detail_of_a_record_stands_below_its_line() -> None:
    text = TextFormatter().format(record("blocked", detail="File a.py\n  line 1\n"))
    assert text.split("\n")[1:] == [f"{CONTINUED}File a.py", f"{CONTINUED}  line 1"]


async def test_the_lines_of_a_message_are_its_recipients_and_not_about_the_senders_task(stream: Written) -> None:
    logs.set_up("json", "info")

    class Recipient(Agent):
        async def on_message(self, message: Message) -> None:
            self.log.info("received")

    class Sender(Agent):
        async def on_task(self, task: Task) -> None:
            await self.send(task.inputs["to"], "hello")

    async with Node(store="memory:") as node:
        (recipient,) = await node.spawn(Recipient)
        await node.spawn(Sender, pool="p")
        await node.tasks.result(await node.tasks.submit(Task(pool_id="p", inputs={"to": recipient.id})), timeout=10)
        await wait_until(lambda: "received" in stream.text)
    (line,) = (line for line in json_lines(stream) if line["message"] == "received")
    assert line["agent"] == recipient.id
    assert line["message_id"]
    assert not {"task", "pool", "token"} & set(line)


async def test_a_result_that_is_no_plain_data_is_refused_by_its_type_and_is_not_shown(stream: Written) -> None:
    logs.set_up("text", "debug")

    class Careless(Agent):
        async def on_task(self, task: Task) -> Any:
            return {"found": {CANARY}, "more": CANARY}

    async with Node(store="memory:") as node:
        await node.spawn(Careless, pool="p")
        task = await node.tasks.result(await node.tasks.submit(Task(pool_id="p", max_attempts=1)), timeout=10)
    assert "result.found: a value of type set is not allowed; expected plain data" in stream.text
    assert CANARY not in stream.text
    assert CANARY not in task.error


def test_an_agent_may_log_before_it_has_an_id(caplog: pytest.LogCaptureFixture) -> None:
    class Early(Agent):
        def __init__(self) -> None:
            self.log.warning("made")

    Early()
    (line,) = caplog.records
    assert (line.name, line.getMessage(), hasattr(line, "agent")) == ("converge.agent.Early", "made", False)
