"""`converge doctor`: each wrong thing is found by its check, and nothing is made or changed."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, Identity, Message, Node
from converge.contracts.store import Level
from converge.model.identity import agent_id
from converge.operations import doctor
from converge.runtime.agents.boundary import Worker

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

STORE = ("--store", "file:state.db")


def findings(answer: Any) -> dict[str, list[dict[str, str]]]:
    """The findings by code; each has all its fields, and says how to mend what is wrong."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in answer.out.splitlines():
        one = json.loads(line)
        assert set(one) == {"v", "code", "level", "finding", "mend"} and one["v"] == 1
        assert (one["mend"] == "") == (one["level"] == "ok"), one
        found.setdefault(one["code"], []).append(one)
    return found


def wrong(answer: Any) -> set[tuple[str, str]]:
    """Code and level of what is wrong."""
    return {(one["code"], one["level"]) for some in findings(answer).values() for one in some if one["level"] != "ok"}


@pytest.fixture
def pool(converge: Converge) -> Converge:
    """The command, with a pool `docs` on the store."""
    assert converge("pools", "create", "docs", *STORE).code == 0
    return converge


def test_a_store_with_nothing_wrong_is_fine_and_as_it_was(pool: Converge, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "state.db")) as database:
        before = list(database.iterdump())
    answer = pool("doctor", "--json", *STORE)
    assert (answer.code, wrong(answer)) == (0, set())
    assert set(findings(answer)) >= {
        "python",
        "uvloop",
        "user-code",
        "config",
        "plugins",
        "store",
        "durability",
        "file-system",
        "disk",
        "clock",
        "leases",
    }
    with closing(sqlite3.connect(folder / "state.db")) as database:
        assert list(database.iterdump()) == before
    assert pool("doctor", *STORE).out.splitlines()[-1].startswith("no errors, no warnings, ")


@pytest.mark.parametrize("name", ["gone.db", "empty.db"])
def test_a_store_that_does_not_exist_is_not_made(converge: Converge, folder: Path, name: str) -> None:
    (folder / "empty.db").touch()
    answer = converge("doctor", "--json", "--store", f"file:{name}")
    assert (answer.code, wrong(answer)) == (4, {("store", "error")})
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".db") == ["empty.db"]
    assert (folder / "empty.db").stat().st_size == 0


def test_a_store_of_one_process_alone_is_not_looked_into(converge: Converge) -> None:
    answer = converge("doctor", "--json")
    assert (answer.code, wrong(answer)) == (0, set())


def test_wrong_configuration_exits_with_three_and_every_problem(converge: Converge, folder: Path) -> None:
    (folder / "a.toml").write_text("lease_secs = 3\ngrace_sec = -1")
    answer = converge("doctor", "-c", "a.toml", "--json")
    assert (answer.code, len(findings(answer)["config"])) == (3, 2)
    (folder / "b.toml").write_text('store = "file:state.db"\nplugins = ["tpc"]\n[options.file]\nbusy_sec = 100')
    answer = converge("doctor", "-c", "b.toml", "--json")
    assert (answer.code, [one["level"] for one in findings(answer)["plugins"]]) == (3, ["error", "error"])


def test_dead_letters_and_paused_work_are_warnings_that_strict_counts(pool: Converge, folder: Path) -> None:
    (folder / "tasks.jsonl").write_text('{"inputs": {"text": "bad"}, "max_attempts": 1}')
    assert pool("run", "counting:Picky", "--pool", "docs", "--submit", "tasks.jsonl", "--drain", *STORE).code == 1
    assert pool("pools", "create", "shut", "--paused", *STORE).code == 0
    assert pool("submit", "--pool", "shut", *STORE).code == 0
    answer = pool("doctor", "--json", *STORE)
    assert (answer.code, wrong(answer)) == (0, {("dead-letters", "warning"), ("paused", "warning")})
    assert findings(answer)["paused"][0]["mend"] == "converge pools resume --store file:state.db shut"
    assert pool("doctor", "--strict", *STORE).code == 1


def test_work_that_no_agent_may_claim_is_an_error_with_the_reason(pool: Converge, start: Start) -> None:
    ids = [pool("submit", "--pool", "docs", "--capability", "fly", *STORE).out.strip() for _ in range(2)]
    alone = pool("doctor", "--json", *STORE)
    assert (alone.code, wrong(alone)) == (0, {("unclaimable", "warning")})
    process = start("run", "counting:WordCounter", "--pool", "docs", *STORE)
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr), "it ended before it ran"
    answer = pool("doctor", "--json", *STORE)
    assert (answer.code, wrong(answer)) == (1, {("unclaimable", "error")})
    (one,) = findings(answer)["unclaimable"]
    assert one["finding"].startswith('2 tasks are ready in pool "docs" that no agent there may claim (each needs fly)')
    assert ids[0] in one["mend"]
    assert findings(answer)["leases"][0]["finding"].startswith("1 process lives")


def test_what_a_pool_will_weigh_by_its_retention_is_told(
    pool: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tasks.jsonl").write_text('{"inputs": {"text": "a b"}}\n' * 5)
    assert pool("run", "counting:WordCounter", "--pool", "docs", "--submit", "tasks.jsonl", "--drain", *STORE).code == 0
    (one,) = findings(pool("doctor", "--json", *STORE))["weight"]
    found = re.fullmatch(
        r'pool "docs" keeps 5 ended tasks of about (\d+) bytes: ([\d.]+) completed a second are kept for 86,400 s, '
        r"which will weigh ([\d.]+) MB, and what the store adds",
        one["finding"],
    )
    assert found is not None, one["finding"]
    each, rate, weighs = map(float, found.groups())
    assert 200 < each < 2_000 and weighs == pytest.approx(rate * 86_400 * each / 1e6, rel=0.05)
    monkeypatch.setattr("converge.operations.doctor_store.WEIGHT_BYTES", 1)
    assert ("weight", "warning") in wrong(pool("doctor", "--json", *STORE))


def test_what_is_kept_for_its_dedup_key_weighs_for_as_long_as_that_is_remembered(pool: Converge, folder: Path) -> None:
    assert pool("pools", "create", "brief", "--keep-completed", "60", *STORE).code == 0
    lines = [f'{{"inputs": {{"text": "a b"}}, "dedup_key": "{number}"}}' for number in range(3)]
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    begun = pool("run", "counting:WordCounter", "--pool", "brief", "--submit", "tasks.jsonl", "--drain", *STORE)
    assert begun.code == 0
    (one,) = findings(pool("doctor", "--json", *STORE))["weight"]
    assert "completed a second are kept for 86,400 s" in one["finding"]


def test_mail_of_an_agent_that_does_not_run_is_no_work_for_others(pool: Converge, folder: Path) -> None:
    class Reader(Agent):
        async def on_message(self, message: Message) -> None:
            raise AssertionError("its node reads no mail")

    def told() -> list[dict[str, str]]:
        return findings(pool("doctor", "--json", *STORE)).get("unclaimable", [])

    async def send() -> None:
        async with Node(store=STORE[-1]) as node:
            await node.send(away, "x", mailbox=True)
            (here,) = await node.spawn(Reader)
            node.network.mail.stop()  # what comes waits
            await node.send(here.id, "x", mailbox=True)
            found.extend(await anyio.to_thread.run_sync(told))
        found.extend(await anyio.to_thread.run_sync(told))

    away, found = agent_id(Identity.generate(os.urandom).public_key), list[dict[str, str]]()
    anyio.run(send)
    (only, *later) = found
    assert only["finding"] == f"1 message waits in the mailbox of agent {away}, which does not run"
    assert "--pool" not in only["mend"] and len(later) == 2


def test_a_process_that_was_killed_shows_as_a_late_lease(pool: Converge, start: Start, folder: Path) -> None:
    (folder / "fast.toml").write_text("lease_sec = 0.5")
    process = start("run", "counting:WordCounter", "-c", "fast.toml", "--pool", "docs", *STORE)
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr), "it ended before it ran"
    process.kill()
    process.wait()
    assert any(("lease-late", "warning") in wrong(pool("doctor", "--json", *STORE)) for _ in range(100))


def test_keys_and_passwords_that_others_can_read_are_errors(converge: Converge, folder: Path) -> None:
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    (keys / "node.0.key").touch(mode=0o600)
    (folder / "a.toml").write_text(f'identity_dir = "{keys}"\nstore = "redis://me:hunter2@localhost:1/0"\n')
    os.chmod(folder / "a.toml", 0o600)
    answer = converge("doctor", "-c", "a.toml", "--json")
    assert wrong(answer) == {("store", "error")} and "hunter2" not in answer.out
    os.chmod(folder / "a.toml", 0o644)
    os.chmod(keys / "node.0.key", 0o644)
    answer = converge("doctor", "-c", "a.toml", "--json")
    assert wrong(answer) == {("store", "error"), ("keys", "error"), ("secrets", "error")}
    os.chmod(keys, 0o755)
    assert ("keys", "error") in wrong(converge("doctor", "-c", "a.toml", "--json"))


def test_a_store_of_another_host_without_tls_is_told(converge: Converge) -> None:
    answer = converge(
        "doctor", "--json", "--store", "redis://192.0.2.1:1/0?socket_connect_timeout=1", "--plugin", "no:redis"
    )
    assert answer.code == 3  # it was refused, so nothing was connected to
    (one,) = findings(answer)["plaintext"]
    assert "192.0.2.1" in one["finding"] and "rediss://" in one["mend"]


@pytest.mark.parametrize(("level", "skew"), [("ok", 0.5), ("warning", 5.0), ("error", 120.0)])
def test_a_clock_that_is_off_is_told_by_how_much(
    pool: Converge, monkeypatch: pytest.MonkeyPatch, level: str, skew: float
) -> None:
    import converge.operations.store_info as facts

    async def skewed(_store: object) -> tuple[float, float]:
        return skew, 0.001

    monkeypatch.setattr(facts, "clock_skew", skewed)
    (one,) = findings(pool("doctor", "--json", *STORE))["clock"]
    assert (one["level"], f"{skew:.3f} s ahead of" in one["finding"]) == (level, True)


def test_a_disk_with_little_room_is_told(pool: Converge, monkeypatch: pytest.MonkeyPatch) -> None:
    import converge.builtin.file.store as file_store

    monkeypatch.setattr(file_store, "facts", lambda path: {"path": path, "free_bytes": 1_000_000, "wal_bytes": 2**30})
    assert wrong(pool("doctor", "--json", *STORE)) == {("disk", "error"), ("wal", "warning")}


@pytest.mark.parametrize(("lanes", "level"), [(820, "warning"), (1_024, "error")])
def test_a_pool_whose_lanes_run_out_is_told(pool: Converge, folder: Path, lanes: int, level: str) -> None:
    (folder / "tasks.jsonl").write_text("\n".join(json.dumps({"topic": f"t{at}"}) for at in range(lanes)))
    assert pool("submit", "--pool", "docs", "tasks.jsonl", *STORE).code == 0
    answer = pool("doctor", "--json", *STORE)
    assert ("lanes", level) in wrong(answer)
    assert f"{lanes:,} of 1,024" in findings(answer)["lanes"][0]["finding"]


def test_a_store_that_the_folder_of_keys_does_not_remember_is_an_error_until_it_is_accepted(
    pool: Converge, folder: Path
) -> None:
    (folder / "a.toml").write_text('identity_dir = "keys"\nstore = "file:state.db"')
    assert pool("run", "counting:WordCounter", "-c", "a.toml", "--pool", "docs", "--drain").code == 0
    assert wrong(pool("doctor", "-c", "a.toml", "--json")) == set()
    with closing(sqlite3.connect(folder / "state.db")) as database, database:
        database.execute("delete from f_epoch")
    assert wrong(pool("doctor", "-c", "a.toml", "--json")) == {("history", "error")}
    assert pool("run", "counting:WordCounter", "-c", "a.toml", "--pool", "docs", "--drain").code != 0
    assert pool("store", "accept", "--yes", "-c", "a.toml").code == 0
    assert wrong(pool("doctor", "-c", "a.toml", "--json")) == set()
    assert pool("run", "counting:WordCounter", "-c", "a.toml", "--pool", "docs", "--drain").code == 0


@pytest.mark.parametrize(("value", "text"), [("{", "cannot be read"), ('{"id": "docs", "v": 99}', "newer release")])
def test_records_that_cannot_be_read_are_an_error_of_their_own(
    pool: Converge, folder: Path, value: str, text: str
) -> None:
    with closing(sqlite3.connect(folder / "state.db")) as database, database:
        database.execute("update f_pool set v = ?", (value,))
    answer = pool("doctor", "--json", *STORE)
    assert (answer.code, wrong(answer)) == (1, {("records", "error")})
    assert text in findings(answer)["records"][-1]["finding"] and "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("value", "text"), [('{"pool": "docs", "v": 99}', "a newer release has written"), ("{", "cannot be read")]
)
def test_a_record_that_does_not_stop_the_checks_is_told_beside_them(
    pool: Converge, folder: Path, value: str, text: str
) -> None:
    assert pool("submit", "--pool", "docs", *STORE).code == 0
    with closing(sqlite3.connect(folder / "state.db")) as database, database:
        database.execute("update f_lane set v = ?", (value,))
    answer = pool("doctor", "--json", *STORE)
    assert ("records", "error") in wrong(answer) and text in findings(answer)["records"][0]["finding"]
    assert "leases" in findings(answer)


def test_a_file_on_a_network_file_system_is_an_error(
    pool: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mounts").write_text(f"host:/export {folder} nfs4 rw 0 0\n")
    monkeypatch.setattr("converge.builtin.file.place.MOUNTS", folder / "mounts")
    answer = pool("doctor", "--json", *STORE)
    assert (answer.code, wrong(answer)) == (4, {("store", "error")})
    assert "network file system (nfs4)" in findings(answer)["store"][0]["finding"]


def test_a_store_of_less_durability_than_its_backend_can_have_is_told(
    pool: Converge, monkeypatch: pytest.MonkeyPatch
) -> None:
    import converge.builtin.file.schema as schema

    monkeypatch.setattr(schema, "settings", lambda _: {"journal_mode": "wal", "synchronous": "normal"})
    monkeypatch.setattr("converge.builtin.file.database.settings", schema.settings)
    answer = pool("doctor", "--json", *STORE)
    assert (answer.code, wrong(answer)) == (1, {("durability", "error")})
    assert "synchronous is normal" in findings(answer)["durability"][0]["finding"]


def test_options_of_another_database_than_the_stores_are_told(converge: Converge, folder: Path) -> None:
    (folder / "converge.toml").write_text("[options.mysql]\nconnections = 2\n[options.redis]\nconnections = 2\n")
    named = findings(converge("doctor", "--json", "-c", "converge.toml", "--store", "sqlite:///state.db"))
    (told,) = named["options"]
    assert told["finding"] == "options.mysql is not used: the store reads options.sqlite"
    (folder / "converge.toml").write_text("[options.sqlite]\nbusy_sec = 2.0\n")
    assert "options" not in findings(converge("doctor", "--json", "-c", "converge.toml", "--store", "sqlite:///s.db"))


def test_an_event_loop_whose_tasks_cannot_be_looked_at_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> type[Worker]:
        return Worker

    monkeypatch.setattr(doctor, "worker_kind", slow)
    (finding,) = (one for one in doctor.check_process() if one.code == "user-code")
    assert finding.level == Level.WARNING and "a task of its own" in finding.text
