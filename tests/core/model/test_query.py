"""A query of agents is checked when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from converge.errors import InvalidName, InvalidValue
from converge.model.descriptor import DiscoveryQuery


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"topics": "weather"}, InvalidValue, r"^query\.topics: .*weather"),
        ({"capabilities": 5}, InvalidValue, r"^query\.capabilities: 5"),
        ({"topics": ["a b"]}, InvalidName, "topic.*a b"),
        ({"capabilities": [None]}, InvalidName, "capability.*None"),
        ({"pool_id": ""}, InvalidName, "pool"),
        ({"limit": -1}, InvalidValue, r"^query\.limit: -1"),
        ({"limit": True}, InvalidValue, r"^query\.limit: True"),
        ({"limit": "5"}, InvalidValue, r"^query\.limit: .*5"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        DiscoveryQuery(**given)


def test_lists_and_other_sequences_of_names_are_one() -> None:
    query = DiscoveryQuery(topics=["a", "b"], capabilities=("c",), pool_id="p", limit=0)
    assert (query.topics, query.capabilities, query.limit) == (("a", "b"), ("c",), 0)
    assert query == DiscoveryQuery(topics=("a", "b"), capabilities=["c"], pool_id="p", limit=0)
