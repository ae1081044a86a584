"""`converge config`: shown with origins and without passwords, checked whole, described by a schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]


def settings(answer: Any) -> dict[str, tuple[Any, str]]:
    """Value and origin of each key that was shown."""
    assert answer.code == 0, answer.err
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert {line["v"] for line in lines} == {1}
    return {line["key"]: (line["value"], line["origin"]) for line in lines}


def test_each_value_says_where_it_comes_from(converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "c.toml").write_text('pool_id = "docs"\nlease_sec = 5\ngrace_sec = 3\n[retention]\nfailed_sec = 7')
    monkeypatch.setenv("CONVERGE_GRACE_SEC", "4")
    monkeypatch.setenv("CONVERGE_NETWORK", "mine")
    shown = settings(converge("config", "show", "-c", "c.toml", "--network", "yours", "--json"))
    assert {
        key: shown[key] for key in ("pool_id", "lease_sec", "grace_sec", "network", "store", "retention.failed_sec")
    } == {
        "pool_id": ("docs", "c.toml"),
        "lease_sec": (5.0, "c.toml"),
        "grace_sec": (4.0, "CONVERGE_GRACE_SEC"),
        "network": ("yours", "--network"),
        "store": ("memory:", "default"),
        "retention.failed_sec": (7.0, "c.toml"),
    }
    plain = converge("config", "show", "-c", "c.toml", "--origin", "--changed").out.splitlines()
    assert plain[0].split() == ["key", "value", "origin"] and len(plain) == 7
    assert ["grace_sec", "4", "CONVERGE_GRACE_SEC"] in [line.split() for line in plain]


def test_no_password_is_shown(converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "c.toml").write_text(
        '[options.mine]\npassword = "hunter2"\npassword_file = "/run/pw"\ndeep = {token = "hunter2"}'
    )
    monkeypatch.setenv("CONVERGE_STORE", "redis://me:hunter2@cache:6379/0")
    for more in ([], ["--json"]):
        answer = converge("config", "show", "-c", "c.toml", *more)
        assert "hunter2" not in answer.out + answer.err
        assert "redis://me:***@cache:6379/0" in answer.out and "/run/pw" in answer.out


def test_a_file_without_a_fault_says_so(converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERGE_LEASE_SEC", "nonsense")  # the environment plays no part
    (folder / "c.toml").write_text('store = "file:a"\n[options.file]\nbusy_sec = 1')
    answer = converge("config", "check", "c.toml")
    assert (answer.code, answer.err) == (0, "") and "it sets 2 keys" in answer.out


def test_everything_that_is_wrong_with_a_file_is_told_at_once(converge: Converge, folder: Path) -> None:
    (folder / "c.toml").write_text(
        'lease_secs = 3\ngrace_sec = -1\nstore = "redi://x"\nplugins = ["tpc"]\nhost = '
        '"::1"\n[options.fle]\na = '
        "1\n[options.file]\nbusy_sec = "
        "100"
    )
    answer = converge("config", "check", "c.toml")
    assert (answer.code, answer.out) == (3, "")
    for part in (
        'c.toml: lease_secs: unknown key; did you mean "lease_sec"?',
        "c.toml: grace_sec: -1 is not allowed; expected 0 to 3,600",
        'c.toml: store: no installed distribution provides the store with the URL scheme "redi"; did you mean "redis"?',
        'c.toml: plugins: no installed distribution provides the plugin "tpc"; did you mean "tcp"?',
        "c.toml: host: counts only where transport is a name",
        'c.toml: options.fle: unknown key; did you mean "file"?',
        "c.toml: options.file: busy_sec: 100 is not allowed",
    ):
        assert f"converge: {part}" in answer.err, part
    record = json.loads(converge("config", "check", "c.toml", "--json").out)
    assert (record["is_valid"], len(record["problems"])) == (False, len(answer.err.splitlines()))


def test_the_files_of_tls_need_not_be_where_a_configuration_is_checked(converge: Converge, folder: Path) -> None:
    (folder / "c.toml").write_text(
        'transport = "tls://0.0.0.0:7000"\n[options.tcp]\ncertificate = "/run/tls.crt"\nkey = "/run/tls.key"'
    )
    answer = converge("config", "check", "c.toml")
    assert (answer.code, answer.err) == (0, "")


def test_addresses_and_what_else_is_looked_up_are_told_at_once_too(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "c.toml").write_text(
        'discovery = "stroe"\ntransport = ["tcp://127.0.0.1:99999", "udp://h:1"]\nadvertise = "tcp://0.0.0.0:1"\n'
        "[options.tcp]\nbacklok = 1"
    )
    told = [
        "discovery: no installed distribution provides the plugin",
        "transport: tcp://127.0.0.1:99999 is not allowed",
        "transport: no installed distribution provides the transport",
        "advertise: tcp://0.0.0.0:1 is not allowed: nobody can dial 0.0.0.0",
        "options.tcp: backlok: unknown key",
    ]
    lines = converge("config", "check", "c.toml").err.splitlines()
    assert len(lines) == len(told) and all(any(f"c.toml: {one}" in line for line in lines) for one in told), lines
    # as flags and variables, beside what is wrong in itself; each names its key itself
    monkeypatch.setenv("CONVERGE_DISCOVERY", "stroe")
    answer = converge(
        "run", "x:Y", "--pool", "p", "--agents", "0", "--store", "memroy:",
        "--transport", "tcp://127.0.0.1:99999", "--advertise", "tcp://0.0.0.0:1",
    )  # fmt: skip
    assert answer.code == 3
    lines = [line.removeprefix("converge: ") for line in answer.err.splitlines()]
    assert [line.split(": ")[0] for line in lines] == [
        "--agents", "--store", "CONVERGE_DISCOVERY", "--transport", "--advertise",
    ]  # fmt: skip
    assert lines[1].startswith("--store: no installed") and lines[2].startswith("CONVERGE_DISCOVERY: no installed")


@pytest.mark.parametrize(
    ("name", "text"),
    [("gone.toml", "No such file"), ("latin.toml", "cannot be read"), ("broken.toml", "cannot be read")],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(
    converge: Converge, folder: Path, name: str, text: str
) -> None:
    (folder / "latin.toml").write_bytes(b'store = "caf\xe9"')
    (folder / "broken.toml").write_text("store = ")
    answer = converge("config", "check", name)
    assert (
        answer.code == 3
        and f"converge: {name}: " in answer.err
        and text in answer.err
        and "Traceback" not in answer.err
    )


def test_the_schema_has_every_key_with_its_bounds_and_the_options_of_named_plugins(converge: Converge) -> None:
    plain = json.loads(converge("config", "schema").out)
    keys = plain["properties"]
    assert plain["additionalProperties"] is False
    assert (keys["max_connections"]["minimum"], keys["max_connections"]["maximum"], keys["agents"]["default"]) == (
        1,
        100_000,
        1,
    )
    assert keys["log_level"]["enum"] == ["debug", "info", "warning", "error"]
    assert keys["grace_sec"]["description"] == "how long tasks may take to end at a stop, in s"
    assert keys["options"]["properties"]["file"]["properties"]["busy_sec"]["maximum"] == 60.0
    assert "tcp" not in keys["options"]["properties"]
    named = json.loads(converge("config", "schema", "--plugin", "tcp", "--json").out)
    assert (named["v"], named["properties"]["options"]["properties"]["tcp"]["properties"]["backlog"]["minimum"]) == (
        1,
        1,
    )
