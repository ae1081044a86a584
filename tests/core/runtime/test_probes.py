"""The health endpoint: what it answers while a node starts, works, is blocked, and loses its store."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from converge import Agent, Message, Node, Task
from converge.errors import ConfigError, HandlerFailed, NoRetry, Undeliverable
from converge.runtime.config.health_address import LOOPBACK, Address, parsed
from converge.runtime.probes.answer import Health
from converge.runtime.probes.server import CONNECTIONS, HealthServer
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port

GO_ON = threading.Event()
"""Ends a block of the event loop."""


class Worker(Agent):
    """Does what its task says."""

    async def on_task(self, task: Task) -> str:
        """Fail for good, fail once, block the loop, or be done."""
        match task.inputs.get("how"):
            case "bad":
                raise NoRetry("bad input")
            case "once" if task.attempts == 1:
                raise ValueError("again")
            case "block":
                GO_ON.wait(60)  # the event loop stands still meanwhile: what the test is about
        return "done"


def ask(url: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask the endpoint once."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def asked(node: Node, path: str) -> tuple[int, Any]:
    """Ask a node's endpoint from another thread."""
    assert node.health_url is not None
    status, body = await to_thread.run_sync(ask, node.health_url, path)
    return status, json.loads(body)


async def metrics(node: Node) -> dict[str, float]:
    """A node's metrics, by name and labels."""
    assert node.health_url is not None
    status, body = await to_thread.run_sync(ask, node.health_url, "/metrics")
    assert status == 200
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


async def test_a_node_that_works_is_live_and_ready_and_counts_its_attempts() -> None:
    async with Node(health="0", poll_sec=0.05) as node:
        await node.spawn(Worker, count=2, pool="docs")
        ids = await node.tasks.submit_many(
            [
                Task(pool_id="docs"),
                Task(pool_id="docs", inputs={"how": "once"}, retry_delay_sec=0.01),
                Task(pool_id="docs", inputs={"how": "bad"}),
            ]
        )
        await wait_until(lambda: sum(len(feed.slots.slots) for feed in node.feeds) == 2)
        for id_ in ids[:2]:
            assert (await node.tasks.result(id_)).result == "done"
        assert (await asked(node, "/livez"))[0] == 200
        await wait_until(lambda: node.health().is_ready)
        status, told = await asked(node, "/readyz")
        assert (status, told["ready"], told["live"], told["reasons"]) == (200, True, True, [])
        pool = [("pool", "docs")]
        await wait_until(lambda: node.feeds[0].finishing.failed >= 1)
        found = await metrics(node)
        outcomes = {name: int(count) for name, count in found.items() if name.startswith("converge_task_attempts_t")}
        assert outcomes == {
            f"converge_task_attempts_total{[('outcome', how), *pool]}": count
            for how, count in (("completed", 2), ("retried", 1), ("failed", 1), ("released", 0), ("lost", 0))
        }
        assert found[f"converge_claim_latency_seconds_count{pool}"] == 3
        assert found[f"converge_task_seconds_count{pool}"] == 4
        assert found["converge_agents[('state', 'live')]"] == 2
        assert (found["converge_ready[]"], found["converge_live[]"]) == (1, 1)
        assert found["converge_lease_remaining_seconds[]"] > 1
        assert found["process_open_fds[]"] > 3


async def test_the_oldest_ready_task_of_each_pool_is_told() -> None:
    async with Node(health="0") as node:
        await node.spawn(Worker, pool="docs")
        url, line = str(node.health_url), b'converge_oldest_ready_seconds{pool="docs"}'
        await wait_until(lambda: line in ask(url, "/metrics")[1])
        assert (await metrics(node))["converge_oldest_ready_seconds[('pool', 'docs')]"] == 0


@pytest.mark.parametrize(("stall_sec", "live"), [(600.0, 200), (2.0, 503)])
async def test_the_endpoint_answers_while_the_loop_is_blocked_and_says_so(stall_sec: float, live: int) -> None:
    """Only a restart helps once stall_sec has passed."""
    GO_ON.clear()
    async with Node(health="0", lease_sec=2.0, stall_sec=stall_sec) as node:  # short: stall_sec is no shorter
        await node.spawn(Worker, pool="docs")
        url, seen = str(node.health_url), list[tuple[int, int, str]]()

        def look() -> None:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and not seen:
                found, (ready, body) = ask(url, "/livez")[0], ask(url, "/readyz")
                # The loop may stand elsewhere before: a busy machine does not let it run.
                if found == live and b"threading.py" in body:
                    seen.append((found, ready, body.decode()))
                time.sleep(0.05)  # between two looks
            GO_ON.set()

        watching = threading.Thread(target=look)
        watching.start()
        await node.tasks.submit(Task(pool_id="docs", inputs={"how": "block"}))
        await to_thread.run_sync(watching.join)
    ((found, ready, text),) = seen
    assert (found, ready, "loop_blocked" in text) == (live, 503, True)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", Address(LOOPBACK, 8080)),
        (":8080", Address(LOOPBACK, 8080)),
        ("0.0.0.0:1", Address("0.0.0.0", 1)),
        ("[::1]:80", Address("::1", 80)),
        ("localhost:0", Address("localhost", 0)),
        ("unix:/run/h", Address(path="/run/h")),
    ],
)
def test_an_address_is_a_port_a_host_with_a_port_or_a_path(text: str, address: Address) -> None:
    assert parsed(text)._replace(path=address.path) == address


@pytest.mark.parametrize(
    "text", ["x", "a:b", "1.2.3.4", "127.0.0.1:70000", "http://a:1", "::1:80", "unix:", "a b:1", "\u0663\u0663"]
)
def test_what_is_no_address_is_refused_when_it_is_given(text: str) -> None:
    with pytest.raises(ConfigError, match=r"health: .* is not allowed; expected HOST:PORT"):
        Node(health=text)


async def test_an_address_in_use_is_told_before_the_store_is_opened(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"health: cannot listen at {address}: "):
            async with Node(health=address, store=f"file:{tmp_path / 'state.db'}"):
                raise AssertionError("nobody may listen there")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_a_name_that_no_host_has_is_told_as_an_address(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"health: cannot listen at {host}:80: .*; name another address"):
        async with Node(health=f"{host}:80"):
            raise AssertionError("nobody may listen there")


async def test_other_paths_and_methods_are_refused() -> None:
    async with Node(health="0") as node:
        url = str(node.health_url)
        assert (await to_thread.run_sync(ask, url, "/"))[0] == 404
        assert (await to_thread.run_sync(ask, url, "/livez", "POST"))[0] == 405
        assert await to_thread.run_sync(ask, url, "/livez", "HEAD") == (200, b"")


async def test_a_client_that_says_nothing_and_one_that_says_garbage_stop_nobody() -> None:
    async with Node(health="0") as node:
        url = str(node.health_url)
        host, _, port = url.removeprefix("http://").rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(20)]
        try:
            for one in silent[:10]:
                one.sendall(b"\x00\xff" * 100)
            assert (await asked(node, "/livez"))[0] == 200
        finally:
            for one in silent:
                one.close()


async def test_the_endpoint_ends_with_the_node_and_a_second_node_may_have_its_path(tmp_path: Path) -> None:
    path = f"unix:{tmp_path / 'health.sock'}"
    for _ in range(2):
        async with Node(health=path) as node:
            assert node.health_url == path
            with pytest.raises(ConfigError, match="another process listens there"):
                async with Node(health=path):
                    raise AssertionError("two nodes at one path")
    assert not (tmp_path / "health.sock").exists()
    async with Node(health="0") as node:
        url = str(node.health_url)
    with pytest.raises(ConnectionRefusedError):
        ask(url, "/livez")


async def test_a_forked_child_leaves_the_address_to_its_parent() -> None:
    async with Node(health="0") as node:
        url = str(node.health_url)
        reading, writing = os.pipe()
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.write(begins, b"1")
            os.read(reading, 1)  # lives for as long as the parent wants
            os._exit(0)
        os.close(reading)
        await to_thread.run_sync(os.read, begun, 1)  # what a child does first is done
        os.close(begun)
        os.close(begins)
        assert (await asked(node, "/livez"))[0] == 200
        await node.stop()
        status, told = await asked(node, "/readyz")
        assert (status, told["reasons"][0]["code"]) == (503, "stopping")
    try:
        with pytest.raises(ConnectionRefusedError):
            ask(url, "/livez")
    finally:
        os.close(writing)
        await to_thread.run_sync(os.waitpid, child, 0)


class Echo(Agent):
    """Answers with what it was sent, once it is not asked to fail."""

    async def on_message(self, message: Message) -> object:
        """Return the payload."""
        if message.payload == "bad":
            raise ValueError("bad")
        return message.payload


async def test_messages_and_refusals_are_counted_by_what_came_of_them(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"store": f"file:{tmp_path / 's.db'}", "transport": "tcp://127.0.0.1:0", "poll_sec": 0.1}
    async with Node(health="0", **settings) as one, Node(health="0", trust="drop", **settings) as strict:
        (agent,) = await one.spawn(Echo)
        (guarded,) = await strict.spawn(Echo)
        await strict.send(agent.id, 1)
        assert await strict.ask(agent.id, 2) == 2
        with pytest.raises(HandlerFailed):
            await strict.ask(agent.id, "bad")
        with pytest.raises(Undeliverable, match="not trusted"):
            await one.send(guarded.id, 1)
        sent, received = await metrics(strict), await metrics(one)
        hows = ("accepted", "handled", "handler_failed")
        outcomes = {how: sent[f"converge_messages_sent_total{[('outcome', how)]}"] for how in hows}
        assert outcomes == {"accepted": 1, "handled": 1, "handler_failed": 1}
        assert received["converge_messages_received_total[('outcome', 'accepted')]"] == 3
        assert received["converge_messages_sent_total[('outcome', 'undeliverable')]"] == 1
        assert sent["converge_messages_received_total[('outcome', 'refused')]"] == 1
        assert sent["converge_refusals_total[('reason', 'untrusted')]"] == 1
        assert sent["converge_connections[]"] == received["converge_connections[]"] == 1


def test_a_stop_is_clean_though_the_thread_has_ended_before_it_is_woken() -> None:
    server = HealthServer("127.0.0.1:0", lambda: Health(is_live=True, is_ready=True), CollectorRegistry())
    pull = server._server.pull_trigger

    def pull_late() -> None:
        pull()  # as the last request does, after which the thread sees that it is to stop
        server._thread.join(30)
        pull()

    server._server.pull_trigger = pull_late
    server.close()
    assert not server._thread.is_alive()


def test_clients_that_hold_every_connection_keep_no_probe_out() -> None:
    server = HealthServer("127.0.0.1:0", lambda: Health(is_live=True, is_ready=True), CollectorRegistry())
    host, port = server.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        stack.callback(server.close)
        held = []
        for _ in range(3 * CONNECTIONS):
            held.append(stack.enter_context(socket.create_connection((host, int(port)), 30)))
            held[-1].sendall(b"GET /livez HTTP/1.1\r\nX: ")
        assert ask(server.url, "/livez")[0] == 200
        with suppress(ConnectionResetError):  # where it had something unread
            assert held[0].recv(1) == b"", "the oldest was closed"
        held[-1].sendall(b"y\r\n\r\n")
        assert held[-1].recv(12) == b"HTTP/1.1 200", "the newest was not"


def test_where_no_thread_can_be_started_the_address_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "converge-health":
            raise RuntimeError("can't start new thread")
        start(thread)

    where, well = f"127.0.0.1:{free_port()}", Health(is_live=True, is_ready=True)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't start new thread"):
        patch.setattr(threading.Thread, "start", refuse)
        HealthServer(where, lambda: well, CollectorRegistry())
    HealthServer(where, lambda: well, CollectorRegistry()).close()


class Exhausted:
    """A listening socket of a process that is out of descriptors for three tries."""

    def __init__(self, real: socket.socket) -> None:
        self._real, self._tries = real, 0

    def accept(self) -> tuple[socket.socket, Any]:
        self._tries += 1
        if self._tries <= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._real.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_probes_that_come_at_once_are_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    let_go = threading.Event()

    def answer() -> Health:
        let_go.wait(30)
        return Health(is_live=True, is_ready=True)

    server = HealthServer("0", answer, CollectorRegistry())
    try:
        probes = [threading.Thread(target=ask, args=(server.url, "/livez")) for _ in range(6)]
        for one in probes:
            one.start()
        queue, until = server._server.task_dispatcher.queue, time.monotonic() + 20
        while (depth := len(queue)) != 4 and time.monotonic() < until:
            time.sleep(0.01)  # the library's queue has no event
        assert depth == 4, "each of its two threads answers one"
        let_go.set()
        for one in probes:
            one.join()
    finally:
        let_go.set()
        server.close()
    assert [record.name for record in caplog.records] == ["converge.health"], "where it listens"


def test_out_of_descriptors_it_says_so_once_and_answers_when_there_are_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = HealthServer("127.0.0.1:0", lambda: Health(is_live=True, is_ready=True), CollectorRegistry())
    monkeypatch.setattr(server._server, "socket", Exhausted(server._server.socket))
    try:
        assert ask(server.url, "/livez")[0] == 200
    finally:
        server.close()
    told = [record for record in caplog.records if record.name in ("converge.health", "waitress")]
    told = [record for record in told if record.levelno >= logging.WARNING]
    assert [record.name for record in told] == ["converge.health"]
    assert "Too many open files" in told[0].getMessage()
