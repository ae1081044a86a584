"""What the settings of a node name is found and checked before anything is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from converge import Node
from converge.errors import ConfigError, PluginMissing


def is_empty(folder: Path) -> bool:
    """Tell whether no store was begun in the folder."""
    return not list(folder.iterdir())


@pytest.mark.parametrize(
    "transport",
    [
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0?tls_cert=x",
        "tcp://127.0.0.1:0/path",
        "tcp://127.0.0.1:99999",
        "tcp",
        "ws://127.0.0.1",
        "ws://127.0.0.1:0/?x=1",
        "ws://:0/",
        "wss://127.0.0.1:0/",
        "local:a/b",
    ],
)
async def test_an_address_that_cannot_be_meant_is_told_before_the_store_is_touched(
    tmp_path: Path, transport: str
) -> None:
    with pytest.raises(ConfigError, match=r"is not allowed|not supported|runs on asyncio only"):
        async with Node(store=f"file:{tmp_path}/s.db", transport=transport, plugins=["tcp", "ws"]):
            pass
    assert is_empty(tmp_path)


async def test_all_addresses_that_cannot_be_meant_are_told_at_once(tmp_path: Path) -> None:
    store = f"file:{tmp_path}/s.db"
    with pytest.raises(ConfigError) as refused:
        async with Node(store=store, transport=["tcp://127.0.0.1", "local:a/b"], plugins=["tcp"]):
            pass
    assert [line.split(" is not")[0] for line in str(refused.value).splitlines()] == [
        "transport: tcp://127.0.0.1",
        "transport: local:a/b",
    ]
    both, wrong = ["tcp://127.0.0.1:0", "local:a"], ["tcp://0.0.0.0:1", "udp://h:1"]
    with pytest.raises(ConfigError) as refused:
        async with Node(store=store, transport=both, advertise=wrong, plugins=["tcp"]):
            pass
    assert [line.split(" is not")[0] for line in str(refused.value).splitlines()] == [
        "advertise: tcp://0.0.0.0:1",
        "advertise: udp://h:1",
    ]
    assert is_empty(tmp_path)


async def test_all_that_cannot_be_meant_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        async with Node(
            store="memroy:",
            transport=["udp://h:1", "tcp://127.0.0.1"],
            advertise=["tcp://0.0.0.0:1", "udp://h:1", "ws://h:1/"],
            discovery="stroe",
            plugins=["tcp"],
        ):
            pass
    said = [" ".join(line.split()[:2]) for line in str(refused.value).splitlines()]
    assert said == [
        "discovery: no",
        "store: no",
        "transport: no",
        "transport: tcp://127.0.0.1",
        "advertise: tcp://0.0.0.0:1",
        "advertise: ws://h:1/",  # of udp:// it is said already that there is no such transport
    ]


async def test_a_name_where_a_url_is_expected_says_how_one_begins(tmp_path: Path) -> None:
    expected = "transport: tcp is not allowed: expected a URL here, which begins with tcp: or tls:"
    with pytest.raises(ConfigError, match=expected):
        async with Node(store=f"file:{tmp_path}/s.db", transport=["tcp", "local:a"], plugins=["tcp"]):
            pass


async def test_a_refused_address_keeps_its_password_to_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        async with Node(store=f"file:{tmp_path}/s.db", transport="tcp://user:geheim@127.0.0.1:0"):
            pass
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"advertise": "host:99999"}, "advertise: tcp://host:99999 is not allowed"),
        ({"advertise": "host:0"}, "nobody can dial port 0"),
        ({"advertise": "tcp://0.0.0.0:7000"}, "nobody can dial 0.0.0.0"),
        ({"advertise": "[::0]:7000"}, r"nobody can dial \[::0\]"),
        ({"advertise": "0:7000"}, "nobody can dial 0"),
        ({"advertise": "tcp://[::ffff:0.0.0.0]:7000"}, "nobody can dial"),
        ({"advertise": "host:00"}, "nobody can dial port 0"),
        ({"advertise": "[ff02::1]:7000"}, "nobody can dial"),
        ({"advertise": "a..b:7000"}, r"no host has such a name: a\.\.b"),
        (
            {"discovery": "static", "options": {"static": {"endpoints": ["tcp://0.0.0.0:1"]}}},
            "endpoints: tcp://0.0.0.0:1",
        ),
        ({"discovery": "static", "options": {"static": {"endpoints": ["tcp://h:0"]}}}, "nobody can dial port 0"),
        ({"advertise": "tcp://host:7000/path"}, "is not allowed: only tcp://HOST:PORT"),
        ({"advertise": "ws://host:7000/"}, "this node has no transport for it"),
        ({"advertise": ["tcp://host:7000", "tls://host:7001"]}, "one address for each transport"),
        ({"discovery": "static", "options": {"static": {"endpoints": ["tcp://host"]}}}, "endpoints: tcp://host is not"),
        ({"discovery": "static", "options": {"static": {"endpoints": ["ws://h:1/"]}}}, "no transport for it"),
        ({"transport": ["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]}, "transport"),
        ({"transport": "127.0.0.1:7000"}, r"a URL, such as tcp://0\.0\.0\.0:7000"),
        ({"transport": ["tcp://127.0.0.1:0", "tls://127.0.0.1:0"]}, "certificate and key"),
    ],
    ids=str,
)
async def test_every_address_is_checked_when_it_is_given(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    given = {"transport": "tcp://127.0.0.1:0", "plugins": ["tcp", "ws"], **settings}
    with pytest.raises(ConfigError, match=reason):
        async with Node(store=f"file:{tmp_path}/s.db", **given):
            pass
    assert is_empty(tmp_path)


@pytest.mark.parametrize(
    ("transport", "reason"),
    [("", "is not allowed without a transport"), ("tcp://127.0.0.1:0", 'transport "tcp" has connections without TLS')],
)
async def test_tls_is_refused_where_no_transport_promises_it_before_the_store_is_touched(
    tmp_path: Path, transport: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^require_tls: {reason}"):
        async with Node(store=f"file:{tmp_path}/s.db", transport=transport, require_tls=True):
            pass
    assert is_empty(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"transport": "tpc://127.0.0.1:0"},
        {"discovery": "stroe"},
        {"transport": "tcp://127.0.0.1:0", "options": {"tcp": {"backlok": 1}}},
    ],
    ids=str,
)
async def test_a_mistyped_backend_or_option_is_told_before_the_store_is_touched(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        async with Node(store=f"file:{tmp_path}/s.db", **settings):
            pass
    assert is_empty(tmp_path)


async def test_a_store_that_nobody_provides_is_told_before_the_transport_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listened: list[str] = []

    @asynccontextmanager
    async def listen(_transport: object, address: str) -> AsyncIterator[None]:
        listened.append(address)
        yield

    monkeypatch.setattr("converge.builtin.local.transport.LocalTransport.listen", listen)
    with pytest.raises(PluginMissing):
        async with Node(store="reddis://h", transport="local:a"):
            pass
    assert not listened
