"""The name of a lane: the same for what may share one, another for what may not."""

from __future__ import annotations

import itertools

from converge.machines.lane import lane_id

NAMES = ("", "a", "b", "ab", 'a","b', "a/b", "ä")


def test_lanes_that_differ_in_anything_have_different_ids() -> None:
    capabilities = ((), ("a",), ("b",), ("a", "b"), ("ab",), ('a","b',))
    lanes = list(itertools.product(NAMES, NAMES, NAMES, capabilities))
    assert len({lane_id(*lane) for lane in lanes}) == len(lanes)


def test_the_id_of_a_lane_is_the_same_in_every_process_and_release() -> None:
    assert lane_id("docs", "news", "count", ("fly", "swim")).hex() == "2cdc0e3c956c84e7ae683860bf9858f7"
