"""Real processes of `converge run --processes N`: one summary, restarts, signals, crash loops, keys, ports."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import preloaded
import pytest

from converge.env import SYSTEM
from converge.errors import ConfigError
from converge.operations.processes import Processes, for_process, marked
from converge.operations.processes import Start as Command
from converge.runtime.config.config import Config
from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until_sync

pytestmark = pytest.mark.timeout(120)

PATIENCE_SEC = 60.0

AGENTS = """
import os
import time

from converge import Agent

class Pid(Agent):
    async def on_task(self, task):
        return {"pid": os.getpid()}

class Slow(Agent):
    async def on_start(self):
        self.log.info("ready")

    def on_task(self, task):
        time.sleep(60)

class Crashing(Agent):
    async def on_start(self):
        os._exit(7)
"""


class Started:
    """A supervisor, and what it and its processes have written."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.errors = folder / "errors"
        with self.errors.open("wb") as errors:
            self.process: subprocess.Popen[str] = preloaded.start(
                [sys.executable, "-m", "converge", "run", *arguments],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def log(self) -> str:
        """What stands on standard error so far."""
        return self.errors.read_text()

    @property
    def ids(self) -> list[tuple[str, int]]:
        """The number and id of each process that was started."""
        return [(number, int(id_)) for number, id_ in re.findall(r"process \[(\d+)\] has the pid (\d+)", self.log)]

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for it."""
        wait_until_sync(is_so, timeout=PATIENCE_SEC, what=what)

    def end(self) -> tuple[int, str]:
        """Wait until it has ended; return its exit code and output. None of its processes lives on."""
        out, _ = self.process.communicate(timeout=PATIENCE_SEC)
        self.until(lambda: not any(map(lives, self.ids)), "all processes have ended")
        return self.process.returncode, out

    def is_ready(self, count: int) -> bool:
        """Whether so many processes have started their agents."""
        return self.log.count("converge.node: running") >= count


def lives(process: tuple[str, int]) -> bool:
    """Whether the process is there and has not ended."""
    try:
        return Path(f"/proc/{process[1]}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `converge run ARGUMENTS --processes 2` on a file of its own."""
    (tmp_path / "several.py").write_text(AGENTS)
    made: list[Started] = []

    def run(agent: str, *more: str, store: str = "file:state.db", grace: str = "1") -> Started:
        flags = ("--processes", "2", "--pool", "p", "--store", store, "--grace", grace)
        made.append(Started(tmp_path, f"several:{agent}", *flags, *more))
        return made[-1]

    yield run
    for one in made:
        for _, id_ in [("", one.process.pid), *one.ids] if one.process.poll() is None else one.ids:
            if lives(("", id_)):
                os.kill(id_, signal.SIGKILL)
        with one.process:  # also where a test has failed, its pipe is closed
            pass


def test_a_drain_ends_with_one_summary_of_what_all_processes_did(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("{}\n" * 20)
    run = start("Pid", "--submit", "tasks.jsonl", "--drain", "--json")
    code, out = run.end()
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, [row["state"] for row in rows]) == (0, ["COMPLETED"] * 20), run.log
    assert {row["result"]["pid"] for row in rows} <= {id_ for _, id_ in run.ids}
    assert [number for number, _ in run.ids] == ["0", "1"]
    assert re.search(r"\n\[[01]\] ", run.log), "each line of a process has its mark"


def test_tasks_that_failed_are_the_exit_code_of_a_drain(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text('{"max_attempts": 1, "timeout_sec": 0.1}\n')
    code, out = start("Slow", "--submit", "tasks.jsonl", "--drain", "--json").end()
    assert (code, json.loads(out)["state"]) == (1, "FAILED")


def test_a_process_that_is_killed_is_started_again_and_a_signal_stops_all(start: Start) -> None:
    run = start("Pid")
    run.until(lambda: run.is_ready(2), "both run")
    (number, id_) = run.ids[0]
    os.kill(id_, signal.SIGKILL)
    run.until(lambda: run.is_ready(3), "another one runs")
    assert [one for one, _ in run.ids] == ["0", "1", number]
    assert f"process [{number}] ended with signal 9; it starts again in" in run.log
    run.process.terminate()
    assert run.end() == (0, "")


def test_a_signal_while_processes_start_is_a_clean_stop(start: Start) -> None:
    run = start("Pid")
    run.until(lambda: len(run.ids) == 2, "both are started")
    run.process.terminate()
    assert run.end() == (0, "")


def test_a_signal_that_cuts_a_drain_short_is_the_exit_code(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("{}\n")
    run = start("Slow", "--submit", "tasks.jsonl", "--drain")
    run.until(lambda: run.is_ready(2), "both run")
    run.process.terminate()
    assert run.end()[0] == 143


def test_a_second_signal_ends_all_at_once(start: Start) -> None:
    run = start("Pid", grace="600")
    run.until(lambda: run.is_ready(2), "both run")
    for _, id_ in run.ids:
        stand_still(id_)  # so that none can stop
    run.process.send_signal(signal.SIGINT)
    run.until(lambda: "SIGINT: stopping" in run.log, "the first is heard")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 143


def test_processes_stop_by_themselves_when_their_supervisor_is_killed(start: Start) -> None:
    run = start("Pid")
    run.until(lambda: run.is_ready(2), "both run")
    run.process.kill()
    assert run.end()[0] == -signal.SIGKILL


def test_a_crash_loop_stops_all_with_a_clear_error(start: Start) -> None:
    run = start("Crashing")
    assert run.end()[0] == 1
    said = "ended 5 times within 10 s of its start, the last time with exit code 7; all are stopped"
    assert said in run.log.splitlines()[-1] and len(run.ids) <= 10


async def test_user_code_may_end_a_process_with_any_exit_code() -> None:
    """A library may call `exit(2)` in the middle of a task; the other processes have nothing to do with that."""
    codes, up = ["2", "3"], list[int]()
    ends = "test -e $NUMBER || { touch $NUMBER; exit $CODE; }; echo up; exec cat"
    processes: Processes

    def relay(number: int, _: bytes) -> None:
        up.append(number)
        if len(up) == 2:
            processes.begin_stop()

    with TemporaryDirectory() as folder:
        program = ["/bin/sh", "-c", f"cd {folder} && {ends}"]
        start = Command(program, "NUMBER", relay, lambda number: {"CODE": codes[number]})
        processes = Processes(start, 2, SYSTEM, 10.0)
        await processes.run()
    assert (sorted(up), processes.worst) == ([0, 1], 0)


async def test_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """The system may have no process, memory or descriptor left at that moment; the other processes go on meanwhile."""
    program, up = tmp_path / "program", set[int]()
    program.write_text("#!/bin/sh\necho up\nexec cat\n")  # which cannot be run as it is
    processes = Processes(Command([str(program)], "NUMBER", lambda number, _: relay(number)), 2, SYSTEM, 10.0)

    def relay(number: int) -> None:
        up.add(number)
        if len(up) == 2:
            processes.begin_stop()

    class Mending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "cannot be started: [Errno 13]" in record.getMessage():
                program.chmod(0o700)

    log = logging.getLogger("converge.run")
    log.addHandler(handler := Mending())
    try:
        await processes.run()
    finally:
        log.removeHandler(handler)
    assert processes.worst == 0


def test_a_configuration_that_a_process_refuses_stops_all(start: Start) -> None:
    run = start("Pid", "--transport", "nosuch://127.0.0.1:0")
    assert run.end()[0] == 3
    assert "refused its configuration; all are stopped" in run.log


def test_a_store_of_one_process_is_refused(start: Start) -> None:
    run = start("Pid", store="memory:")
    assert run.end() == (3, "")
    assert "store: memory: is seen by this process only" in run.log and run.ids == []


def test_each_process_has_keys_of_its_own(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('identity_dir = "keys"\n')
    run = start("Pid", "-c", "keys.toml", "--agents", "2")
    run.until(lambda: run.is_ready(2), "both run")
    run.process.terminate()
    assert run.end()[0] == 0
    names = sorted(file.name for file in (tmp_path / "keys").iterdir())
    assert len([name for name in names if re.search(r"Pid\.\d+\.key$", name)]) == 4, names
    assert len([name for name in names if re.match(r"node\.\d+\.key$", name)]) == 2, names


@pytest.mark.parametrize(
    ("address", "second"),
    [
        ("tcp://127.0.0.1:7000", "tcp://127.0.0.1:7002"),
        ("ws://[::1]:7000/path", "ws://[::1]:7002/path"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("tcp://host", "tcp://host"),
        ("", ""),
    ],
)
def test_a_process_listens_at_the_port_plus_its_number(address: str, second: str) -> None:
    config = for_process(Config(transport=address, advertise="example.org:9000", processes=3), 2)
    assert (config.transport, config.advertise, config.processes) == (second, "example.org:9002", 1)


def test_a_port_that_is_none_is_refused() -> None:
    assert for_process(Config(transport="tcp", host="h", port=65_000), 5).port == 65_005
    with pytest.raises(ConfigError, match="65000 is not allowed with so many processes"):
        for_process(Config(transport="tcp", host="h", port=65_000), 600)


def test_lines_have_the_mark_of_their_process() -> None:
    assert marked(2, b"caf\xc3\xa9 \xff", is_json=False) == "[2] café \\xff"
    assert json.loads(marked(2, b'{"message": "x"}', is_json=True)) == {"process": 2, "message": "x"}
    for text in ("Traceback", "{'a': 1}", "{not JSON", '["a"]'):
        assert marked(2, text.encode(), is_json=True) == f"[2] {text}"
    assert json.loads(marked(2, b"{}", is_json=True)) == {"process": 2}
    assert json.loads(marked(2, b'{"process": 1, "message": "x"}', is_json=True)) == {"process": 2, "message": "x"}
    deep = '{"a":' + "[" * 60_000
    assert marked(2, deep.encode(), is_json=True) == f"[2] {deep}"


@pytest.mark.usefixtures("start")
def test_a_standard_error_that_takes_no_line_ends_no_process(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("{}\n" * 4)
    flags = ["--processes", "2", "--pool", "p", "--store", "file:state.db", "--submit", "tasks.jsonl"]
    with open("/dev/full", "wb") as full:
        process = preloaded.start(
            [sys.executable, "-m", "converge", "run", "several:Pid", *flags, "--drain", "--json"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
    out, _ = process.communicate(timeout=PATIENCE_SEC)
    assert (process.returncode, len(out.splitlines())) == (0, 4), out


def test_the_supervisor_serves_the_health_of_all_processes_as_one(start: Start) -> None:
    one = start("Pid", "--health", "0")
    one.until(lambda: "health at http://" in one.log, "the address is told")
    url = re.search(r"health at http://([\d.:]+)", one.log)

    def ask(path: str) -> tuple[int, str]:
        assert url is not None
        connection = http.client.HTTPConnection(url[1], timeout=PATIENCE_SEC)
        with closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    one.until(lambda: ask("/readyz")[0] == 200, "both are ready")

    def are_counted() -> bool:  # one that takes too long to answer is left out
        told = ask("/metrics")[1]
        return all(f'converge_agents{{process="{number}",state="live"}} 1.0' in told for number in (0, 1))

    one.until(are_counted, "the agents of both are counted")
    number, id_ = one.ids[0]
    stand_still(id_)
    try:
        assert ask("/livez")[0] == 200
        status, body = ask("/readyz")
        assert (status, f"[{number}] " in body) == (503, True), body
    finally:
        os.kill(id_, signal.SIGCONT)
    one.process.terminate()
    assert one.end()[0] == 0


def test_a_path_too_long_for_the_sockets_is_told_before_anything_starts(
    converge: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (deep := folder / ("d" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    run = ["run", "counting:WordCounter", "--pool", "p", "--processes", "2", "--store", "file:state.db"]
    answer = converge(*run, "--health", "0", "--drain")
    assert answer.code == 3, answer
    assert answer.err.endswith(
        f"converge: health: the path of {deep} is too long for the sockets of the processes; set TMPDIR to a shorter "
        "one\n"
    )
