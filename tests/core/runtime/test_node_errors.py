"""Errors of a node come out as themselves, not wrapped in the groups of its tasks."""

from __future__ import annotations

import pytest

from converge import ConvergeError, Node
from converge.errors import ListenFailed, Undeliverable


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
