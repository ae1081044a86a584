"""`converge run`: what it shows, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converge.operations.run import BEYOND_SEC
from converge.operations.signals import _heard

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

NEVER_SEC = 30.0
"""How long a process of these tests may take: far longer than it does."""


def lines(folder: Path, *tasks: dict[str, Any]) -> str:
    """Write a file of JSON lines; return its name."""
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return "tasks.jsonl"


def pages(folder: Path, *texts: str) -> str:
    """Write a file of tasks that count the words of these."""
    tasks = [
        {"required_capabilities": ["count-words"], "inputs": {"page": f"p{at}", "text": text}}
        for at, text in enumerate(texts)
    ]
    return lines(folder, *tasks)


def test_a_drained_pool_ends_the_run_with_results_and_their_total(converge: Converge, folder: Path) -> None:
    answer = converge(
        "run",
        "counting:WordCounter",
        "--agents",
        "3",
        "--pool",
        "docs",
        "--submit",
        pages(folder, "a b", "", "c d e"),
        "--drain",
    )
    assert answer.out.splitlines() == [
        "task             words",
        "p0                   2",
        "p1                   0",
        "p2                   3",
        "total (3 tasks)      5",
    ]
    assert answer.code == 0
    assert "running 3 agents of WordCounter in pool docs, store memory:" in answer.err


def test_json_is_one_object_a_line_in_the_order_of_the_file(converge: Converge, folder: Path) -> None:
    answer = converge(
        "run", "counting:WordCounter", "--pool", "docs", "--submit", pages(folder, "a b", "c"), "--drain", "--json"
    )
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert [(one["v"], one["hint"], one["state"], one["result"]) for one in found] == [
        (1, "p0", "COMPLETED", {"words": 2}),
        (1, "p1", "COMPLETED", {"words": 1}),
    ]


def test_every_line_of_a_json_log_is_an_object_and_names_the_node_and_the_task(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVERGE_LOG_FORMAT", "json")
    tasks: list[dict[str, Any]] = [{"inputs": {"text": "bad"}, "max_attempts": 1}, {"inputs": {"text": "good"}}]
    answer = converge("run", "counting:Picky", "--pool", "docs", "--submit", lines(folder, *tasks), "--drain", "--json")
    bad, good = map(json.loads, answer.out.splitlines())
    found = [json.loads(line) for line in answer.err.splitlines()]
    assert {line["node"] for line in found} == {found[0]["node"]}
    (failed,) = (line for line in found if line["level"] == "error")
    assert (failed["task"], failed["pool"], failed["logger"]) == (bad["id"], "docs", "converge.agent.Picky")
    assert failed["agent"].startswith("cv1") and failed["token"] > 0
    assert "ValueError: it is bad" in failed["exception"]
    assert not [line for line in found if line.get("task") == good["id"]]


def test_a_failed_task_makes_the_exit_code_one(converge: Converge, folder: Path) -> None:
    tasks = [{"inputs": {"text": text}, "max_attempts": 1} for text in ("good", "bad")]
    answer = converge("run", "counting:Picky", "--pool", "docs", "--submit", lines(folder, *tasks), "--drain")
    assert answer.code == 1
    assert [line.split(None, 3) for line in answer.out.splitlines()] == [
        ["task", "result", "state", "error"],
        ["good", "fine", "completed"],
        ["bad", "failed", "ValueError:", "it is bad"],
    ]


def test_tasks_of_others_in_the_pool_are_drained_too(converge: Converge) -> None:
    store = ("--store", "file:state.db")
    assert converge("run", "counting:WordCounter", "--pool", "docs", "--drain", *store).code == 0
    assert converge("submit", "--pool", "docs", "--capability", "count-words", "--input", "text=x y", *store).code == 0
    answer = converge("run", "counting:WordCounter", "--pool", "docs", "--drain", *store)
    assert answer.out.splitlines()[1].split() == ["x", "y", "2"]


def test_a_task_that_no_agent_here_may_take_is_told(converge: Converge, folder: Path) -> None:
    task = {"required_capabilities": ["fly"], "deadline": "2000-01-01T00:00:00+00:00", "inputs": {}}
    answer = converge("run", "counting:WordCounter", "--pool", "docs", "--submit", lines(folder, task), "--drain")
    assert "1 submitted tasks cannot be claimed by WordCounter: it lacks the capabilities fly" in answer.err
    assert (answer.code, "deadline" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            ["counting:WordCount", "--pool", "p"],
            3,
            'agent "counting:WordCount": counting has no "WordCount"; did you mean "WordCounter"?',
        ),
        (["countin:X", "--pool", "p"], 3, 'agent "countin:X": there is no module "countin"; did you mean "counting"?'),
        (
            ["counting:NoAgent", "--pool", "p"],
            3,
            "NoAgent is not a subclass of converge.Agent; its agents are Picky, Stuck, WordCounter",
        ),
        (["counting", "--pool", "p"], 3, "converge: AGENT: 'counting' is not allowed; expected module:Class"),
        (["--pool", "p"], 3, "agent: is missing: name a class as module:Class"),
        (["counting:WordCounter"], 3, "pool_id: is missing: WordCounter works on tasks, so name its pool with --pool"),
        (
            ["counting:WordCounter", "--pool", "p", "--store", "redis://u:geheim@h"],
            3,
            "--store redis://u:***@h: a password on the command line",
        ),
        (
            ["counting:WordCounter", "--pool", "p", "--plugin", "reddis"],
            3,
            'provides the plugin "reddis"; did you mean "redis"?',
        ),
        (
            ["counting:WordCounter", "--pool", "p", "--health", "h"],
            3,
            "--health: 'h' is not allowed; expected HOST:PORT",
        ),
        (
            ["counting:WordCounter", "--pool", "p", "--submit", "gone.jsonl"],
            2,
            "gone.jsonl: cannot be read: No such file or directory",
        ),
        (["counting:WordCounter", "--pool", "p", "--agents", "many"], 2, '"many"'),
        (
            ["counting:WordCounter", "--pool", "p", "--transport", "tcp://127.0.0.1"],
            3,
            "tcp://127.0.0.1 is not allowed: host or port is missing",
        ),
        (
            ["counting:WordCounter", "--pool", "p", "--transport", "ws://127.0.0.1"],
            3,
            "ws://127.0.0.1 is not allowed: host or port is missing",
        ),
        (["counting:WordCounter", "--pool", "p", "--store", "memory:x"], 3, "store: memory:x is not allowed"),
        (["counting:WordCounter", "--pol", "p"], 2, "Unknown option: --pol. Did you mean --pool?"),
        (["counting:WordCounter", "--pool", "p", "--store", "file:/gone/away/state.db"], 4, "/gone/away"),
    ],
)
def test_what_cannot_run_says_why_with_its_exit_code(
    converge: Converge, arguments: list[str], code: int, text: str
) -> None:
    answer = converge("run", *arguments)
    assert text in answer.err
    assert (answer.code, answer.out) == (code, "")
    assert "geheim" not in answer.err and "Traceback" not in answer.err


def test_a_pool_with_a_near_name_is_not_created_by_mistake(converge: Converge) -> None:
    store = ("--store", "file:state.db", "--drain")
    assert converge("run", "counting:WordCounter", "--pool", "docs", *store).code == 0
    answer = converge("run", "counting:WordCounter", "--pool", "doc", *store)
    assert answer.code == 3
    assert 'pool "doc" does not exist, but "docs" does; did you mean that? --create-pool creates this one' in answer.err
    assert converge("run", "counting:WordCounter", "--pool", "doc", "--create-pool", *store).code == 0
    assert converge("run", "counting:WordCounter", "--pool", "doc", *store).code == 0


def test_the_file_and_the_environment_configure_a_run(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "converge.toml").write_text(
        'agent = "counting:WordCounter"\nagents = 7\npool_id = "docs"\nlog_format = "json"'
    )
    monkeypatch.setenv("CONVERGE_AGENTS", "2")
    answer = converge("run", "-c", "converge.toml", "--drain")
    assert answer.code == 0
    (started,) = (line for line in map(json.loads, answer.err.splitlines()) if line["message"].startswith("running"))
    process = f", process {started['node'][:16]}"
    assert (started["level"], started["message"].removesuffix(process)) == (
        "info",
        "running 2 agents of WordCounter in pool docs, store memory:",
    )


MIXED = """
pool_id = "docs"
[[agents]]
type = "counting:WordCounter"
count = 2
[[agents]]
type = "counting:Picky"
pool_id = "mail"
capabilities = ["judge"]
concurrency = 3
"""


def test_agents_of_several_classes_work_in_one_process_each_with_its_own_pool_and_capabilities(
    converge: Converge, folder: Path
) -> None:
    (folder / "converge.toml").write_text(MIXED)
    tasks = [
        {"required_capabilities": ["count-words"], "inputs": {"name": "counted", "text": "a b"}},
        {"pool_id": "mail", "required_capabilities": ["judge"], "inputs": {"name": "judged", "text": "good"}},
    ]
    answer = converge("run", "-c", "converge.toml", "--submit", lines(folder, *tasks), "--drain", "--json")
    assert answer.code == 0, answer.err
    assert [(one["hint"], one["result"]) for one in map(json.loads, answer.out.splitlines())] == [
        ("counted", {"words": 2}),
        ("judged", "fine"),
    ]
    assert "running 2 agents of WordCounter in pool docs" in answer.err
    assert "running 1 agent of Picky in pool mail" in answer.err


def test_a_drain_is_of_every_pool_that_the_agents_are_in_however_near_their_names_are(
    converge: Converge, folder: Path
) -> None:
    (folder / "converge.toml").write_text(
        """store = "file:state.db"
[[agents]]
type = "counting:Picky"
pool_id = "docs"
[[agents]]
type = "counting:Picky"
pool_id = "docs2"
"""
    )
    assert converge("run", "-c", "converge.toml", "--drain").code == 0, (
        "a near name that the same file names is no slip of the pen"
    )
    for pool in ("docs", "docs2"):
        assert converge("submit", "--pool", pool, "--input", f"name={pool}", "--store", "file:state.db").code == 0
    answer = converge("run", "-c", "converge.toml", "--drain", "--json")
    assert sorted(json.loads(line)["hint"] for line in answer.out.splitlines()) == ["docs", "docs2"]
    (folder / "converge.toml").write_text((folder / "converge.toml").read_text().replace("docs2", "docss2"))
    answer = converge("run", "-c", "converge.toml", "--drain")
    assert (answer.code, 'pool "docss2" does not exist, but "docs2" does' in answer.err) == (3, True)


def test_an_entry_whose_class_is_not_there_ends_the_run_before_anything_is_opened(
    converge: Converge, folder: Path
) -> None:
    (folder / "converge.toml").write_text(MIXED.replace("Picky", "Pick"))
    answer = converge("run", "-c", "converge.toml", "--store", "file:state.db")
    assert (answer.code, answer.err) == (
        3,
        'converge: agent "counting:Pick": counting has no "Pick"; did you mean "Picky"?\n',
    )
    assert not (folder / "state.db").exists()


def test_retention_that_is_configured_for_a_pool_that_exists_is_told_not_to_count(
    converge: Converge, folder: Path
) -> None:
    (folder / "converge.toml").write_text("[retention]\ncompleted_sec = 60")
    start = (
        "run",
        "counting:WordCounter",
        "--pool",
        "docs",
        "--store",
        "file:state.db",
        "--drain",
        "-c",
        "converge.toml",
    )
    assert "retention" not in converge(*start).err, "it is the new pool's"
    assert "retention" not in converge(*start).err, "it is the same"
    (folder / "converge.toml").write_text("[retention]\ncompleted_sec = 30")
    assert "converge.toml: retention: pool docs exists and keeps its own: completed tasks 60 s" in converge(*start).err


@pytest.mark.parametrize("command", [["run", "counting:WordCounter", "--pool", "p"], ["tasks", "list"]])
def test_an_unknown_option_of_a_backend_names_the_file_that_has_it(
    converge: Converge, folder: Path, command: list[str]
) -> None:
    (folder / "converge.toml").write_text('store = "redis://127.0.0.1:1"\n[options.redis]\ntimeout = 3')
    answer = converge(*command, "-c", "converge.toml")
    assert answer.code == 3
    assert 'converge: converge.toml: options.redis: timeout: unknown key; did you mean "timeout_sec"?' in answer.err


def until(process: subprocess.Popen[str], words: str) -> None:
    """Read the process's log until these words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the process ended before it said {words!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_a_run_cleanly(start: Start, number: signal.Signals) -> None:
    process = start("run", "counting:WordCounter", "--agents", "2", "--pool", "docs", "--store", "file:state.db")
    until(process, "running 2 agents")
    process.send_signal(number)
    _, log = process.communicate(timeout=NEVER_SEC)
    assert process.returncode == 0, log
    assert f"{number.name}: stopping" in log and "Traceback" not in log


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_it_at_once_even_if_its_loop_is_blocked(
    start: Start, folder: Path, number: signal.Signals, code: int
) -> None:
    process = start("run", "counting:Stuck", "--pool", "docs", "--submit", lines(folder, {}), "--drain")
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    os.kill(process.pid, number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    os.kill(process.pid, number)
    assert process.wait(NEVER_SEC) == code


def test_one_signal_ends_it_in_time_even_if_its_loop_is_blocked_for_ever(start: Start, folder: Path) -> None:
    process = start("run", "counting:Stuck", "--pool", "docs", "--submit", lines(folder, {}), "--grace", "0.5")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "stuck\n"
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    _, log = process.communicate(timeout=NEVER_SEC)
    assert process.returncode == 143
    assert 0.5 + BEYOND_SEC <= time.monotonic() - began < 0.5 + BEYOND_SEC + 15
    assert "the process did not stop within 6 s" in log or "did not stop within 5 s" in log
    assert "in on_task" in log, "where it stands"


def on_a_terminal(*arguments: str) -> tuple[str, str]:
    """Run the command with a terminal as its output and another as its error output; return what it wrote to each."""
    ours, theirs = zip(pty.openpty(), pty.openpty(), strict=True)
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-m", "converge", *arguments], stdout=theirs[0], stderr=theirs[1], env=environment
    ) as process:
        for terminal in theirs:
            os.close(terminal)
        written = [bytearray(), bytearray()]
        open_ = dict(zip(ours, written, strict=True))
        while open_:
            for terminal in select.select(list(open_), [], [], NEVER_SEC)[0]:
                # The other side has closed: Linux says so with an error, others with an empty read.
                with contextlib.suppress(OSError):
                    if data := os.read(terminal, 65_536):
                        open_[terminal].extend(data)
                        continue
                del open_[terminal]
                os.close(terminal)
        assert process.wait(NEVER_SEC) == 0
    return written[0].decode(), written[1].decode()


def test_a_terminal_shows_a_progress_bar_and_a_drawn_table(folder: Path) -> None:
    out, err = on_a_terminal(
        "run", "counting:WordCounter", "--pool", "docs", "--submit", pages(folder, "a b", "c"), "--drain"
    )
    assert "2/2" in err and "\x1b[" in err, "the bar"
    assert "│ p0" in out and "total (2 tasks)" in out and "2/2" not in out


def test_the_help_is_there_without_importing_what_runs_agents(start: Start) -> None:
    process = start("--help")
    out, _ = process.communicate(timeout=NEVER_SEC)
    assert process.returncode == 0
    assert all(word in out for word in ("run", "submit", "tasks", "plugins"))


def test_a_drain_that_a_signal_cuts_short_says_what_is_left(
    start: Callable[..., subprocess.Popen[str]], folder: Path
) -> None:
    (folder / "slow.py").write_text(
        "import anyio\nfrom converge import Agent\n\nclass Slow(Agent):\n    async def on_task(self, task):\n"
        "        self.log.info('begun')\n        await anyio.sleep_forever()\n"
    )
    (folder / "tasks.jsonl").write_text('{"inputs": {}}\n' * 5)
    flags = ("--pool", "p", "--store", "file:state.db", "--submit", "tasks.jsonl", "--drain", "--grace", "0")
    process = start("run", "slow:Slow", *flags)
    assert process.stderr is not None
    while "begun" not in (line := process.stderr.readline()):
        assert line, "it has ended"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the drain was cut short: 0 have ended, 5 are left in p" in errors


def test_a_drain_sums_up_why_tasks_have_not_completed(converge: Converge, folder: Path) -> None:
    (folder / "bad.py").write_text(
        "from converge import Agent\nfrom converge.errors import NoRetry\n\nclass Bad(Agent):\n"
        "    async def on_task(self, task):\n        if task.inputs['n'] > 1:\n"
        "            raise NoRetry(f\"line {task.inputs['n']} is bad\")\n"
    )
    (folder / "tasks.jsonl").write_text("".join(f'{{"inputs": {{"n": {n}}}}}\n' for n in range(5)))
    flags = ("--pool", "p", "--store", "file:state.db", "--submit", "tasks.jsonl", "--drain")
    answer = converge("run", "bad:Bad", *flags)
    assert answer.code == 1
    assert "drained: 2 completed, 3 not, in " in answer.err
    assert "3 not completed: " in answer.err and " is bad" in answer.err


def test_what_is_wrong_is_told_beside_what_is_missing(converge: Converge) -> None:
    answer = converge("run", "counting:WordCounter", "--store", "memroy:", "--transport", "tpc://x")
    assert answer.code == 3
    assert [word in answer.err for word in ("pool_id: is missing", '"memroy"', '"tpc"')] == [True] * 3, answer.err


def test_addresses_may_be_given_one_by_one(start: Start) -> None:
    here, there = "tcp://127.0.0.1:0", "ws://127.0.0.1:0"
    seen = ("--advertise", "tcp://a:1", "--advertise", "ws://b:2/")
    run = ("run", "counting:WordCounter", "--pool", "docs", "--store", "file:state.db")
    process = start(*run, "--transport", here, "--transport", there, *seen)
    until(process, "known to others as tcp://a:1, ws://b:2/")
    process.terminate()
    process.communicate(timeout=NEVER_SEC)
    assert process.returncode == 0


def test_what_cannot_be_read_hides_nothing_that_is_not_there(converge: Converge) -> None:
    wrong = ("--pool", "p p", "--health", "1.2.3", "--store", "memroy:", "--transport", "tpc://x:1")
    answer = converge("run", "counting:WordCounter", *wrong)
    assert answer.code == 3
    assert [word in answer.err for word in ("'p p'", "'1.2.3'", '"memroy"', '"tpc"')] == [True] * 4, answer.err


def test_a_file_that_needs_a_transport_serves_commands_that_run_no_agents(converge: Converge, folder: Path) -> None:
    (folder / "tls.toml").write_text("require_tls = true\n")
    file = ("-c", "tls.toml", "--store", "file:state.db")
    refused = converge("run", "counting:WordCounter", "--pool", "p", "--drain", *file)
    assert (refused.code, "tls.toml: require_tls: is not allowed without a transport" in refused.err) == (3, True)
    assert not (folder / "state.db").exists()
    assert converge("config", "check", "tls.toml").code == 0
    assert converge("pools", "create", "p", *file).code == 0
    assert converge("agents", "list", *file).code == 0
    assert "require_tls" not in converge("doctor", *file).out


def test_a_terminal_that_closes_stops_a_run_once_however_often_it_is_said(start: Start, folder: Path) -> None:
    (folder / "gated.py").write_text(
        "import anyio, os\nfrom converge import Agent\n\nclass Gated(Agent):\n    async def on_task(self, task):\n"
        "        self.log.info('begun')\n"
        "        while not os.path.exists('gate'):\n            await anyio.sleep(0.1)\n"
    )
    process = start("run", "gated:Gated", "--pool", "p", "--store", "file:state.db", "--submit", lines(folder, {}))
    until(process, "begun")
    process.send_signal(signal.SIGHUP)
    until(process, "SIGHUP: stopping")
    process.send_signal(signal.SIGHUP)  # by the shell, too
    (folder / "gate").touch()
    _, log = process.communicate(timeout=NEVER_SEC)
    assert process.returncode == 0 and "handed back" not in log, log


@pytest.mark.parametrize("as_is", [signal.SIG_IGN, lambda number, frame: None], ids=["nohup", "handled"])
def test_a_closed_terminal_that_is_ignored_or_handled_stops_nothing(as_is: Any) -> None:
    before = signal.signal(signal.SIGHUP, as_is)
    try:
        assert signal.SIGHUP not in _heard()
    finally:
        signal.signal(signal.SIGHUP, before)
