"""Which lanes a claimer may take from, and which agents a query finds."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product

import pytest

from converge.machines.lane import Lane
from converge.machines.match import NEWS_GREATEST, Claimer, lane_news, matches, refusal, watched_news

ANY = Claimer.of((), None, None)


def lane(*, topic: str = "", type: str = "", capabilities: tuple[str, ...] = ()) -> Lane:
    return Lane(pool="docs", topic=topic, type=type, capabilities=capabilities)


def test_a_claimer_that_lacks_one_of_the_capabilities_is_refused_and_told_which() -> None:
    assert (
        refusal(lane(capabilities=("fly", "swim")), Claimer.of(["swim"], None, None)) == "it lacks the capabilities fly"
    )
    assert refusal(lane(capabilities=("fly", "swim")), Claimer.of(["swim", "fly", "run"], None, None)) is None


def test_a_task_without_a_topic_is_for_claimers_of_any_topic() -> None:
    assert refusal(lane(), Claimer.of((), ["news"], None)) is None


def test_a_topic_is_for_those_who_name_it_and_those_who_name_none() -> None:
    assert refusal(lane(topic="news"), Claimer.of((), ["news", "sport"], None)) is None
    assert refusal(lane(topic="news"), ANY) is None
    assert (
        refusal(lane(topic="news"), Claimer.of((), ["sport"], None)) == 'the topic "news" is not among its topics sport'
    )


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


def test_whoever_may_take_hears_that_a_lane_is_new_and_of_the_others_only_some_who_lack_one_more_capability() -> None:
    lanes = [
        lane(topic=topic, type=type_, capabilities=capabilities)
        for topic, type_, capabilities in product(
            ("", "news", "sport"), ("", "a", "b"), ((), ("fly",), ("fly", "swim"), ("swim",))
        )
    ]
    claimers = [
        Claimer.of(capabilities, topics, types)
        for capabilities, topics, types in product(
            ((), ("fly",), ("swim",), ("swim", "fly")), (None, ("news",), ("news", "sport")), (None, ("a",), ("b", "a"))
        )
    ]
    for one, claimer in product(lanes, claimers):
        hears = not lane_news(one).isdisjoint(watched_news("docs", claimer))
        first = Lane(pool="docs", topic=one.topic, type=one.type, capabilities=one.capabilities[:1])
        assert hears == (refusal(first, claimer) is None), (one, claimer)
        assert hears or refusal(one, claimer) is not None, (one, claimer)
        assert lane_news(one).isdisjoint(watched_news("other", claimer))


def test_a_claimer_with_very_many_capabilities_hears_of_every_new_lane_and_watches_few_channels() -> None:
    claimer = Claimer.of([f"c{number}" for number in range(NEWS_GREATEST)], None, None)
    assert len(watched_news("docs", claimer)) == 1
    assert all(
        not lane_news(lane(capabilities=some)).isdisjoint(watched_news("docs", claimer))
        for some in ((), ("c1",), ("z",))
    )
