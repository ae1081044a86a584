"""What a task's failure costs: bad data fails at once and slows nobody down, and a handler's word is kept."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from converge import Agent, Message, Node, Task, TaskState
from converge.agents import Outcome, ReportTask
from converge.errors import AttemptEnd, InvalidValue, NoRetry, Release, RetryAfter
from converge.machines.attempt import outcome_of
from converge.machines.events import Failed
from converge.testing.fixtures import wait_until

APPS = Path(__file__).parent / "scripts/apps"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both event loops."""
    return str(request.param)


def test_thirty_bad_lines_end_at_full_speed(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"max_attempts": 1}\n' * 30)
    began = time.monotonic()
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "converge",
            "run",
            "fail:F",
            "--pool",
            "t",
            "--submit",
            "bad.jsonl",
            "--drain",
            "--json",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(APPS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    took = time.monotonic() - began
    states = [json.loads(line)["state"] for line in ran.stdout.splitlines()]
    assert (ran.returncode, states) == (1, ["FAILED"] * 30), ran.stderr[-1_000:]
    assert "rests" not in ran.stderr, "a batch of bad data is no reason to rest"
    assert took < 30, f"{took:.1f} s: 2 s on a quiet machine; rests of the agent would take more than a minute"


async def end_of(agent: type[Agent], **fields: Any) -> tuple[Task, Agent]:
    """Return how one task ended, and the agent that worked on it."""
    with anyio.fail_after(30):
        async with Node(poll_sec=0.05) as node:
            (one,) = await node.spawn(agent, pool="p")
            task = await node.tasks.result(await node.tasks.submit(Task(pool_id="p", retry_delay_sec=0.0, **fields)))
            return task, one


@attrs.frozen
class Text:
    """What `Picky` wants."""

    text: str


class Picky(Agent):
    """Has its inputs checked."""

    inputs = Text

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return "never called"


class Odd(Agent):
    """Returns what is not plain data."""

    async def on_task(self, task: Task) -> object:
        """See the class."""
        return object()


class OddPlain(Agent):
    """The same in a thread."""

    def on_task(self, task: Task) -> object:
        """See the class."""
        return object()


class Large(Agent):
    """Returns what does not fit."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return "x" * 800_000


@pytest.mark.parametrize("agent", [Picky, Odd, OddPlain, Large])
async def test_data_that_cannot_be_used_fails_at_once(agent: type[Agent]) -> None:
    task, one = await end_of(agent)
    assert (task.state, task.attempts) == (TaskState.FAILED, 1)
    assert ("text" if agent is Picky else "result") in task.error
    assert one.health.failures == 0


Word = Callable[[], BaseException]


def raising(word: Word, *, is_plain: bool = False) -> type[Agent]:
    """An agent that raises it at the first attempt or claim, and completes then."""
    seen: list[str] = []

    def work(task: Task) -> int:
        seen.append(task.id)
        if len(seen) == 1:
            raise word()
        return len(seen)

    async def async_work(self: Agent, task: Task) -> int:
        return work(task)

    return type("Saying", (Agent,), {"on_task": (lambda self, task: work(task)) if is_plain else async_work})


def group_of(*words: BaseException) -> Word:
    """The words as a task group raises them."""
    return lambda: BaseExceptionGroup("", words)


@pytest.mark.parametrize("is_plain", [False, True])
async def test_no_retry_fails_the_task_at_once_and_says_why(is_plain: bool) -> None:
    task, one = await end_of(raising(lambda: NoRetry("the page is gone"), is_plain=is_plain), max_attempts=5)
    assert (task.state, task.attempts, task.error) == (TaskState.FAILED, 1, "the page is gone")
    assert (one.health.failures, one.health.state) == (0, "closed")


@pytest.mark.parametrize("is_plain", [False, True])
async def test_retry_after_waits_as_long_as_it_says_and_counts(is_plain: bool) -> None:
    task, _ = await end_of(raising(lambda: RetryAfter(0.3, "busy"), is_plain=is_plain))
    assert (task.state, task.attempts, task.result) == (TaskState.COMPLETED, 2, 2)
    failed, completed = task.history
    assert failed.why == "busy" and completed.claimed_at - failed.at >= 300_000


async def test_retry_after_at_the_last_attempt_is_the_end() -> None:
    task, _ = await end_of(raising(lambda: RetryAfter(0.3)), max_attempts=1)
    assert (task.state, task.attempts, task.error) == (TaskState.FAILED, 1, "asked to be tried again after 0.3 s")


@pytest.mark.parametrize("is_plain", [False, True])
async def test_a_release_is_not_counted(is_plain: bool) -> None:
    task, _ = await end_of(raising(lambda: Release("not mine"), is_plain=is_plain), max_attempts=1)
    assert (task.state, task.attempts, task.result) == (TaskState.COMPLETED, 1, 2)
    assert [(line.what, line.why) for line in task.history] == [("released", "not mine"), ("completed", "")]


@pytest.mark.parametrize("is_plain", [False, True])
async def test_the_log_calls_a_task_that_was_handed_back_released(
    caplog: pytest.LogCaptureFixture, is_plain: bool
) -> None:
    caplog.set_level(logging.INFO, logger="converge.agent")
    await end_of(raising(lambda: Release("not mine"), is_plain=is_plain))
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("converge.agent")]
    assert line.startswith("task ") and line.endswith(" released: not mine")


class Silent(NoRetry):
    """Does not call the constructor above it."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("word", "state", "attempts"),
    [
        (group_of(NoRetry("x")), TaskState.FAILED, 1),
        (group_of(Release(), BaseExceptionGroup("", [NoRetry("x")])), TaskState.FAILED, 1),
        (group_of(NoRetry("x"), ValueError("y")), TaskState.COMPLETED, 2),
        (Silent, TaskState.FAILED, 1),
    ],
)
async def test_the_strictest_word_of_a_group_counts_if_there_is_nothing_else_in_it(
    word: Word, state: TaskState, attempts: int
) -> None:
    task, _ = await end_of(raising(word))
    assert (task.state, task.attempts) == (state, attempts)


class Hiding(NoRetry):
    """Answers no question for what it keeps."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]  # that is what is wrong with it
        """See the class."""
        raise RuntimeError("not to be read")


def with_(word: AttemptEnd, **kept: object) -> AttemptEnd:
    """Return the word with other values than it was made with."""
    vars(word).update(kept)
    return word


@pytest.mark.parametrize(
    ("word", "is_retried", "why", "sec"),
    [
        (Hiding("x"), False, "its text", None),
        (with_(NoRetry("x"), why=b"bytes"), False, "b'bytes'", None),
        (with_(NoRetry("x"), why=7), False, "7", None),
        (with_(RetryAfter(5, "x"), sec="5"), True, "x", None),
        (with_(RetryAfter(5, "x"), sec=-1e308), True, "x", 0.0),
        (with_(RetryAfter(5, "x"), sec=float("nan")), True, "x", 0.0),
        (with_(RetryAfter(5, "x"), sec=10**400), True, "its text", None),
    ],
    ids=str,
)
def test_a_word_that_was_spoiled_still_counts(word: AttemptEnd, is_retried: bool, why: str, sec: float | None) -> None:
    assert outcome_of(word, "its text", "me", 0.5) == Failed(why, "me", is_retried, 0.5, sec)


@pytest.mark.parametrize("sec", [-1, float("nan"), "30", None, True])
def test_a_wait_is_a_number_of_seconds(sec: Any) -> None:
    with pytest.raises(InvalidValue, match="seconds, 0 or more"):
        RetryAfter(sec)


class Deciding(Agent):
    """Does what the test says with its first task, and completes it then."""

    said: Sequence[Any] = ()
    outcomes: Sequence[Outcome] = ()
    calls = 0

    async def decide(self, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        """See the class."""
        type(self).calls += 1
        (said,) = self.said if type(self).calls == 1 else [{"result": "done"}]
        if isinstance(said, BaseException):
            raise said
        return [ReportTask(task_id=task.id, **said) for task in tasks]

    async def on_outcomes(self, outcomes: list[Outcome]) -> None:
        """See the class."""
        self.outcomes = [*self.outcomes, *outcomes]


def deciding(said: Any) -> type[Agent]:
    """An agent that says this first."""
    return type("Deciding", (Deciding,), {"said": (said,), "calls": 0})


class Evil(dict[str, int]):
    """A result that raises when it is read."""

    def items(self) -> Any:
        """See the class."""
        raise RuntimeError("not to be read")


@pytest.mark.parametrize(("result", "kind"), [(object(), InvalidValue), (Evil(n=1), RuntimeError)])
async def test_a_result_that_cannot_be_stored_ends_a_task_that_decide_holds_and_the_agent_goes_on(
    result: object, kind: type[Exception]
) -> None:
    with anyio.fail_after(30):
        async with Node(poll_sec=0.05) as node:
            agent: Agent
            (agent,) = await node.spawn(deciding({"result": result}), pool="p")
            bad, good = await node.tasks.submit_many([Task(pool_id="p"), Task(pool_id="p")])
            ended = await node.tasks.result(bad)
            assert (ended.state, ended.attempts) == (TaskState.FAILED, 1) and kind.__name__ in ended.error
            assert (await node.tasks.result(good)).result == "done"
            assert isinstance(agent, Deciding)
            await wait_until(lambda: len(agent.outcomes) == 2)
            assert isinstance(agent.outcomes[0].error, kind)


@pytest.mark.parametrize(
    ("said", "state", "attempts", "whys"),
    [
        (NoRetry("no use"), TaskState.FAILED, 1, ["no use"]),
        (RetryAfter(0.3, "busy"), TaskState.COMPLETED, 2, ["busy", ""]),
        (Release("not mine"), TaskState.COMPLETED, 1, ["not mine", ""]),
        ({"error": "no use", "is_retried": False}, TaskState.FAILED, 1, ["no use"]),
        ({"error": "busy", "retry_after_sec": 0.3}, TaskState.COMPLETED, 2, ["busy", ""]),
        ({"error": "not mine", "is_released": True}, TaskState.COMPLETED, 1, ["not mine", ""]),
    ],
    ids=str,
)
async def test_decide_has_the_same_words(said: Any, state: TaskState, attempts: int, whys: list[str]) -> None:
    task, _ = await end_of(deciding(said))
    assert (task.state, task.attempts, [line.why for line in task.history]) == (state, attempts, whys)
    if "busy" in whys:
        failed, completed = task.history
        assert completed.claimed_at - failed.at >= 300_000


def test_each_word_is_a_word() -> None:
    assert {NoRetry, RetryAfter, Release} <= set(AttemptEnd.__subclasses__())
