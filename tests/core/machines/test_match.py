"""Which lanes a claimer may take from, and which agents a query finds."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from converge.machines.lane import Lane
from converge.machines.match import Claimer, matches, refusal

ANY = Claimer.of((), None, None)


def lane(*, topic: str = "", type: str = "", capabilities: tuple[str, ...] = ()) -> Lane:
    return Lane(pool="docs", topic=topic, type=type, capabilities=capabilities)


def test_a_claimer_that_lacks_one_of_the_capabilities_is_refused_and_told_which() -> None:
    assert refusal(lane(capabilities=("fly", "swim")), Claimer.of(["swim"], None, None)) == "it lacks the capabilities fly"
    assert refusal(lane(capabilities=("fly", "swim")), Claimer.of(["swim", "fly", "run"], None, None)) is None


def test_a_task_without_a_topic_is_for_claimers_of_any_topic() -> None:
    assert refusal(lane(), Claimer.of((), ["news"], None)) is None


def test_a_topic_is_for_those_who_name_it_and_those_who_name_none() -> None:
    assert refusal(lane(topic="news"), Claimer.of((), ["news", "sport"], None)) is None
    assert refusal(lane(topic="news"), ANY) is None
    assert refusal(lane(topic="news"), Claimer.of((), ["sport"], None)) == 'the topic "news" is not among its topics sport'


def test_a_task_without_a_type_is_not_for_a_claimer_that_names_its_types() -> None:
    assert refusal(lane(), Claimer.of((), None, ["count"])) is not None
    assert refusal(lane(type="count"), Claimer.of((), None, ["count"])) is None
    assert refusal(lane(type="count"), ANY) is None


def test_topics_are_compared_whole_and_by_case() -> None:
    for other in ("new", "news/sport", "News"):
        assert refusal(lane(topic=other), Claimer.of((), ["news"], None)) is not None


def test_no_topics_and_no_types_mean_any() -> None:
    assert Claimer.of((), (), ()) == ANY


@pytest.mark.parametrize(
    ("topics", "capabilities", "pool_id", "is_found"),
    [
        ((), (), None, True),
        (("news", "x"), (), None, True),
        (("x",), (), None, False),
        ((), ("fly", "swim"), None, True),
        ((), ("fly", "x"), None, False),
        ((), (), "docs", True),
        ((), (), "x", False),
        (("news",), ("fly",), "x", False),
    ],
)
def test_a_query_finds_any_of_its_topics_with_all_of_its_capabilities_in_its_pool(
    topics: Collection[str], capabilities: Collection[str], pool_id: str | None, is_found: bool
) -> None:
    has = ({"news"}, {"fly", "swim"}, {"docs"})
    assert matches(topics=topics, capabilities=capabilities, pool_id=pool_id, has=has) is is_found
