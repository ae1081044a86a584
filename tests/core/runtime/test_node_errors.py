"""Errors of a node come out as themselves, not wrapped in the groups of its tasks."""

from __future__ import annotations

from typing import Any

import pytest

from converge import Agent, ConvergeError, Node
from converge.errors import ConfigError, InvalidValue, ListenFailed, Undeliverable, UnknownSetting
from converge.runtime.config.config import Config


async def test_what_the_block_raises_is_what_its_caller_catches() -> None:
    with pytest.raises(Undeliverable) as caught:
        async with Node() as node:
            await node.send("cv1" + "a" * 52, "x", timeout=1.0)
    assert isinstance(caught.value, ConvergeError)


async def test_a_foreign_error_of_the_block_goes_through() -> None:
    with pytest.raises(KeyError):
        async with Node():
            raise KeyError("mine")


async def test_a_failed_start_says_why() -> None:
    async with Node(plugins=["tcp"], transport="tcp://127.0.0.1:0") as one:
        with pytest.raises(ListenFailed):
            async with Node(plugins=["tcp"], transport=one.network.endpoints[0]):
                pass


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"lease_sec": -3}, "Node: lease_sec: -3 is not allowed; expected 0.5 to 3,600"),
        ({"poll_sec": 0}, "Node: poll_sec: 0 is not allowed"),
        ({"max_connections": 0}, "Node: max_connections: 0 is not allowed"),
        ({"lease_sec": 60, "stall_sec": 30.0}, "Node: stall_sec: 30 is not allowed; expected at least lease_sec, 60"),
        ({"plugins": "redis"}, "Node: plugins: 'redis' is not allowed; expected a list"),
        ({"store": 7}, "Node: store: 7 is not allowed; expected text"),
    ],
    ids=str,
)
def test_a_node_refuses_what_the_configuration_refuses(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Node(**setting)


@pytest.mark.parametrize(("name", "nearest"), [("lease_secs", "lease_sec"), ("stor", "store")])
def test_a_mistyped_argument_of_a_node_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownSetting, match=f'Node: {name}: unknown key; did you mean "{nearest}"'):
        Node(**{name: 3})  # type: ignore[arg-type]  # which is the point


def test_a_long_lease_of_a_node_has_a_longer_stall_as_in_the_configuration() -> None:
    assert Node(lease_sec=600).settings.stall_sec == 6_000
    assert Node().settings.stall_sec == Config().stall_sec


async def test_an_agent_in_place_of_its_class_is_refused() -> None:
    async with Node() as node:
        with pytest.raises(InvalidValue, match="expected a subclass of converge"):
            await node.spawn(Agent())  # type: ignore[arg-type]  # which is the point
