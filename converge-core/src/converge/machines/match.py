"""Matching: which lanes a claimer may take from, and which agents a query finds; each refusal in words."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Set
from itertools import product

import attrs
import msgspec

from converge.machines.lane import Lane

NEWS_GREATEST = 256
"""Channels of new lanes that one claimer watches in a pool; one that would need more hears of every new lane."""

_ANY = None


@attrs.frozen(kw_only=True)
class Claimer:
    """What a claimer can do. `topics` or `types` None: any."""

    capabilities: frozenset[str] = frozenset()
    topics: frozenset[str] | None = None
    types: frozenset[str] | None = None

    @classmethod
    def of(
        cls, capabilities: Collection[str], topics: Collection[str] | None, types: Collection[str] | None
    ) -> Claimer:
        """Return the claimer with these; an empty collection of topics or types means any, as None does."""
        return cls(
            capabilities=frozenset(capabilities),
            topics=frozenset(topics) if topics else None,
            types=frozenset(types) if types else None,
        )


def refusal(lane: Lane, claimer: Claimer) -> str | None:
    """Return why the claimer may not take from the lane, or None if it may.

    A task without a topic is for everybody; a task without a type is not for a claimer that names its types.
    """
    missing = set(lane.capabilities) - claimer.capabilities
    if missing:
        return f"it lacks the capabilities {', '.join(sorted(missing))}"
    if lane.topic and claimer.topics is not None and lane.topic not in claimer.topics:
        return f'the topic "{lane.topic}" is not among its topics {", ".join(sorted(claimer.topics))}'
    if claimer.types is not None and lane.type not in claimer.types:
        return f'the task type "{lane.type}" is not among its task types {", ".join(sorted(claimer.types))}'
    return None


def lane_news(lane: Lane) -> set[str]:
    """Return the channels to wake when a lane is new: a watcher of these may take from it, as far as they tell.

    One channel for the whole pool would wake anybody, most often one who may not take from the lane.
    """
    first = lane.capabilities[0] if lane.capabilities else ""
    kinds = product((lane.topic, _ANY), (lane.type, _ANY))
    return {_news(lane.pool, first, topic, type_) for topic, type_ in kinds} | {_news(lane.pool)}


def watched_news(pool: str, claimer: Claimer) -> list[str]:
    """Return the channels that tell the claimer of new lanes of the pool."""
    topics = (_ANY,) if claimer.topics is None else ("", *sorted(claimer.topics))
    types = (_ANY,) if claimer.types is None else tuple(sorted(claimer.types))
    capabilities = ("", *sorted(claimer.capabilities))
    if len(topics) * len(types) * len(capabilities) > NEWS_GREATEST:
        return [_news(pool)]
    return [_news(pool, *kind) for kind in product(capabilities, topics, types)]


def _news(pool: str, *kind: str | None) -> str:
    return f"news.{hashlib.blake2b(msgspec.json.encode((pool, *kind)), digest_size=16).hexdigest()}"


def matches(
    *,
    topics: Collection[str],
    capabilities: Collection[str],
    pool_id: str | None,
    has: tuple[Set[str], Set[str], Set[str]],
) -> bool:
    """Return whether an agent that has these is found: any of the topics, all of the capabilities, in the pool."""
    agent_topics, agent_capabilities, agent_pools = has
    if topics and agent_topics.isdisjoint(topics):
        return False
    return agent_capabilities >= set(capabilities) and (pool_id is None or pool_id in agent_pools)
