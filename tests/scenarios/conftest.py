"""Places in which the processes of a scenario meet: every store that this release promises, under every transport."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from converge.testing._transport.certificates import Authority
from converge.testing.place import Place


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Redis and PostgreSQL are reached on asyncio only."""
    return "asyncio"


@pytest.fixture(scope="module")
def place_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Place]:
    """`place_of("redis", "tcp")`: a place that no other test uses, on a real server or in a new file."""
    stores = {
        "file": lambda: f"file:{tmp_path_factory.mktemp('store') / 'state.db'}",
        "redis": lambda: str(request.getfixturevalue("redis_url")),
        "sql": lambda: str(request.getfixturevalue("postgres_url")),
    }

    def make(store: str, transport: str) -> Place:
        plugin = {"tls": "tcp", "wss": "ws"}.get(transport, transport)
        authority = None if plugin == transport else Authority(tmp_path_factory.mktemp("keys"), "house")
        return Place(
            store=stores[store](),
            plugins=(plugin,) if store == "file" else (store, plugin),
            transport=f"{transport}://127.0.0.1:0",
            network="converge" if store == "file" else f"t{secrets.token_hex(6)}",
            pool="scenario",
            agent="talking_agents:Talker",
            agents_folder=Path(__file__).parent,
            options={} if authority is None else {plugin: authority.issue("node")},
        )

    return make


@pytest.fixture
def place(request: pytest.FixtureRequest, place_of: Callable[[str, str], Place]) -> tuple[str, list[str], str]:
    """A store's URL, its plugins and a network of its own."""
    if request.param == "memory":
        return "memory:", [], "converge"
    made = place_of(request.param, "tcp")
    return made.store, list(made.plugins), made.network
